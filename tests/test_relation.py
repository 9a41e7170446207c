"""Queries, keys and values as a method compares them."""

import drawn
import jax
import jax.numpy as jnp
import jitted
import numpy as np
import pytest
from stepping import steps

from vitkd_jax.distill import losses as as_published
from vitkd_jax.distill import view
from vitkd_jax.distill.methods import relation
from vitkd_jax.models import attention, vit

losses = jitted.Module(as_published)
DEIT = dict(
  variant="deit_pico_patch4_28", width=8, depth=2, num_heads=2, mlp_dim=16,
  patch_size=(7, 7),
)  # fmt: skip


def shown(scan=False, **fields):
  """The model's qkv by block, and its parameters."""
  params = drawn.params(**DEIT, **fields)
  model = vit.Model(5, **DEIT, **fields)
  image = np.random.default_rng(0).normal(size=(2, 28, 28, 3))
  if scan:
    model, params = model.quick_to_compile(params)
  apply = jax.jit(model.with_qkv().apply)
  _, out = apply({"params": params}, np.float32(image))
  return out, params


@pytest.mark.parametrize("scan", [False, True])
def test_they_are_the_projections_of_the_normalised_tokens(scan):
  out, params = shown(scan=scan)
  if scan:
    block = jax.tree.map(lambda x: x[1], params["Transformer"]["encoderblock"])
  else:
    block = params["Transformer"]["encoderblock_1"]
  x = np.float64(out["encoder"]["block00"]["+mlp"])
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  x = x * block["LayerNorm_0"]["scale"] + block["LayerNorm_0"]["bias"]
  heads = block["MultiHeadDotProductAttention_0"]
  for name, got in zip(
    ("query", "key", "value"), out["encoder"]["block01"]["qkv"], strict=True
  ):
    want = np.einsum("btd,dhe->bthe", x, heads[name]["kernel"])
    want += heads[name]["bias"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_both_forms_of_attention_show_the_same():
  rng = np.random.default_rng(1)

  def draw(*shape):
    return jnp.float32(rng.normal(size=shape))

  parts = [(draw(6, 3, 2), draw(3, 2)) for _ in range(3)]
  args = draw(2, 5, 6), parts, (draw(3, 2, 6), draw(6))
  stacked, apart = (
    jax.jit(f)(*args)
    for f in (attention._attend_stacked, attention._attend_apart)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    stacked,
    apart,
  )


def test_a_model_shows_them_only_when_asked():
  model = vit.Model(5, **DEIT)
  image = jax.ShapeDtypeStruct((1, 28, 28, 3), np.float32)
  params = drawn.params(**DEIT)
  _, out = jax.eval_shape(model.apply, {"params": params}, image)
  assert out["encoder"]["block00"].keys() == {"sa", "+sa", "mlp", "+mlp"}
  with pytest.raises(ValueError, match="unknown model field 'show_qkv'"):
    vit.Model(5, show_qkv=True)


SIDE = view.Side(8, 2, (4, 4), 1, 5, qkv_heads=2)


def test_the_term_is_the_mean_over_blocks():
  method = relation.Relation(
    blocks=(0, -1), teacher_blocks=(1, 0), pairs=("qk", "vv")
  )
  needs = method.needs(method, SIDE, SIDE)
  assert needs.student.qkv == (0, -1)
  assert needs.teacher.qkv == (1, 0)
  views, outs = [], []
  for seed, taps in ((0, needs.student), (1, needs.teacher)):
    params = drawn.params(**DEIT, seed=seed)
    image = np.float32(np.random.default_rng(2).normal(size=(2, 28, 28, 3)))
    model = vit.Model(5, **DEIT).with_qkv()
    logits, out = jax.jit(model.apply)({"params": params}, image)
    views.append(view.make(SIDE, taps, logits, out))
    outs.append([out["encoder"][f"block{i:02d}"]["qkv"] for i in range(2)])
  label = view.Label(jnp.eye(5)[:2])
  got = method.apply({}, *views, label, {})["relation"]
  student, teacher = outs
  want = sum(
    losses.qkv_relation(a, b, pairs=("qk", "vv"))
    for a, b in ((student[0], teacher[1]), (student[1], teacher[0]))
  )
  np.testing.assert_allclose(got, want / 2, rtol=1e-6)
  patches = relation.Relation(tokens="patches", blocks=(0,))
  taps = patches.needs(patches, SIDE, SIDE)
  assert taps.student.qkv == (0,)
  got = patches.apply({}, views[0], views[1], label, {})["relation"]
  cut = [[x[:, 1:] for x in qkv] for qkv in (student[0], teacher[0])]
  np.testing.assert_allclose(got, losses.qkv_relation(*cut), rtol=1e-6)


@pytest.mark.parametrize(
  "fields, teacher, said",
  [
    (dict(pairs=()), {}, "at least one pair"),
    (dict(pairs=("qx",)), {}, "one of qq, .* got 'qx'"),
    (dict(tokens="cls"), {}, "'cls'"),
    (dict(blocks=(2,)), {}, "names block 2"),
    (dict(blocks=()), {}, "one block or more"),
    (dict(teacher_blocks=(0, 1)), {}, "got 1 and 2"),
    (dict(relation_heads=3), {}, "divide the widths 8 .* and 8"),
    ({}, dict(width=9), "divide the widths 8 .* and 9 .*, got 2"),
    ({}, dict(num_prefix_tokens=2), "17 on a grid of 4x4, got 18 on 4x4"),
    (dict(tokens="patches"), dict(grid=(2, 8)), "16 on 2x8"),
    ({}, dict(qkv_heads=0), "got one without"),
  ],
)
def test_what_cannot_be_related_is_refused(fields, teacher, said):
  method = relation.Relation(**fields)
  with pytest.raises(ValueError, match=said):
    method.needs(method, SIDE, view.Side(**(vars(SIDE) | teacher)))


def test_it_trains(tiny_config, teacher_file, tmp_path):
  """A student of two heads learns from a teacher of its tokens."""
  variant = "deit3_pico_patch4_28"  # the teacher's, without its weights
  tiny_config.student = dict(variant=variant, layerscale_init=None, scan=True)
  tiny_config.augment = {}
  tiny_config.task.weight = 0.0
  tiny_config.methods = dict(relation=dict(blocks=(0,), teacher_blocks=(-1,)))
  tiny_config.schedule.warmup_epochs = 0.0
  _, _, found = steps(tiny_config, jax.devices()[:1], count=4)
  values = [each["relation"] for each in found]
  assert values[0] > values[-1] > 0
