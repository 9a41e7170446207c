"""Lift and WideLast (arXiv:2511.15572): students that end wider."""

import contextlib
import math

import drawn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from small_vit import filled, image, nested, outputs, small

from vitkd_jax import train, weights
from vitkd_jax.cluster import sharding
from vitkd_jax.data import datasets
from vitkd_jax.distill import view
from vitkd_jax.distill.methods import regress, relation, spectral, vitkd
from vitkd_jax.evaluation import scoring
from vitkd_jax.models import layers, vit
from vitkd_jax.training import experiment, leaves

TOK = dict(pool_type="tok", gelu="erf")
LIFT = dict(**TOK, lift=24)
WIDE = dict(**TOK, last_width=24, last_heads=3)


def norm(x, leaves, name, eps):
  """LayerNorm in float64."""
  x = np.float64(x)
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
  return x * leaves[f"{name}/scale"] + leaves[f"{name}/bias"]


def test_lift_reads_the_last_blocks_patches():
  leaves = filled(small(**LIFT))
  _, plain = outputs(
    small(**TOK),
    {
      k: v
      for k, v in (filled(small(**TOK)) | leaves).items()
      if not k.startswith(("lift", "head"))
    }
    | {k: v for k, v in filled(small(**TOK)).items() if k.startswith("head")},
  )
  logits, out = outputs(small(**LIFT))
  raw = np.float64(plain["encoder/block01/+mlp"])
  lifted = norm(raw @ leaves["lift/kernel"], leaves, "lift/LayerNorm_0", 1e-5)
  np.testing.assert_allclose(out["encoded"], lifted, atol=1e-4)
  pooled = lifted[:, 1:].mean(1)
  np.testing.assert_allclose(out["head_input"], pooled, atol=1e-4)
  want = pooled @ leaves["head/kernel"] + leaves["head/bias"]
  np.testing.assert_allclose(logits, want, atol=1e-4)
  assert "Transformer/encoder_norm/scale" not in leaves


def test_widelast_widens_before_its_last_block():
  leaves = filled(small(**WIDE))
  logits, out = outputs(small(**WIDE))
  before = out["encoder/block00/+mlp"]
  x = norm(
    np.float64(before) @ leaves["Transformer/widen/kernel"],
    leaves,
    "Transformer/widen/LayerNorm_0",
    1e-6,
  )
  block = layers.Encoder1DBlock(mlp_dim=36, num_heads=3, gelu="erf")
  own = "Transformer/encoderblock_1/"
  params = nested(
    {k.removeprefix(own): v for k, v in leaves.items() if k.startswith(own)}
  )
  x, _ = jax.jit(block.apply)({"params": params}, jnp.float32(x), None)
  np.testing.assert_allclose(out["encoder/block01/+mlp"], x, atol=1e-4)
  encoded = norm(x, leaves, "Transformer/encoder_norm", 1e-6)
  want = encoded[:, 0] @ leaves["head/kernel"] + leaves["head/bias"]
  np.testing.assert_allclose(logits, want, atol=1e-4)
  # The other blocks are those of the plain model.
  _, plain = outputs(
    small(**TOK),
    {
      k: leaves.get(k) if "block_1" not in k and "norm" not in k else v
      for k, v in filled(small(**TOK)).items()
      if not k.startswith("head")
    }
    | {k: v for k, v in filled(small(**TOK)).items() if k.startswith("head")},
  )
  np.testing.assert_allclose(before, plain["encoder/block00/+mlp"], atol=1e-5)


def count(**fields):
  model = vit.Model(1000, variant="deit_tiny_patch16_224", **fields)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
  )["params"]
  sizes = {
    name: math.prod(leaf.shape)
    for name, leaf in traverse_util.flatten_dict(shapes, sep="/").items()
  }
  return sum(sizes.values()), sum(model.forward_flops((14, 14))), sizes


def test_the_papers_sizes():
  """Its 5.98 M and +1.2 %, and 7.24 M and +23 %.

  Our position embeddings have no entry for the CLS token, 192 numbers less.
  The authors' WideLast has 7,313,896 by the formula of its layers: their figure
  is without the 192 x 384 of the projection.
  """
  _, plain, _ = count()
  total, lifted, _ = count(lift=384)
  assert total + 192 == 5_983_528
  assert lifted / plain == pytest.approx(1.012, abs=5e-4)
  total, wide, sizes = count(last_width=384, last_heads=6)
  assert total + 192 == 7_313_896
  assert sizes["Transformer/widen/kernel"] == 192 * 384
  assert total + 192 - 192 * 384 == 7_240_168
  assert wide / plain == pytest.approx(1.23, abs=0.02)


@pytest.mark.parametrize(
  "fields, said",
  [
    (dict(lift=0), "lift=0: expected an integer in [1, "),
    (dict(last_width=24), "both last_width and last_heads, or neither, got 24"),
    (dict(last_heads=2), "both last_width and last_heads, or neither"),
    (dict(WIDE, last_heads=5), "24 is not divisible by last_heads 5"),
    (dict(LIFT, **WIDE), "lift and last_width=24 do not go together"),
    (dict(WIDE, scan=True), "last_width and scan=True do not go together"),
    (dict(LIFT, distilled=True), "lift and distilled=True do not go"),
    (dict(LIFT, rep_size=8), "lift and rep_size=8 do not go together"),
    (
      dict(lift=24, pool_type="gap", fc_norm=True),
      "lift and fc_norm=True do not go together",
    ),
    (
      dict(lift=24, pool_type="map"),
      "lift needs pool_type='tok' or 'gap', got",
    ),
  ],
)
def test_fields_that_do_not_go_together_are_refused(fields, said):
  with pytest.raises(ValueError, match=r".") as refusal:
    small(**fields)
  assert said in str(refusal.value)


@pytest.mark.parametrize("fields", [LIFT, WIDE])
def test_a_file_holds_them_and_another_library_does_not(fields, tmp_path):
  named = dict(variant="test/7", image_size=28, **fields)
  params = drawn.params(5, **named)
  path = tmp_path / "a.safetensors"
  weights.save(path, params, format="flat", **named)
  again = weights.load(path, num_classes=5, **named)
  jax.tree.map(np.testing.assert_array_equal, params, again)
  for format in ("timm", "huggingface", "big_vision"):
    out = tmp_path / ("b.npz" if format == "big_vision" else "b")
    with pytest.raises(
      ValueError, match=r"'stablehlo' or 'onnx' for a model with l"
    ):
      weights.save(out, params, format=format, **named)
  assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("fields", [LIFT, WIDE])
def test_a_frozen_one_computes_the_same(fields):
  model = small(**fields, layerscale_init=0.1)
  params = nested(filled(model))
  want, _ = jax.jit(model.apply)({"params": params}, image())
  frozen, other = model.frozen(params, "float32")
  quick, other = frozen.quick_to_compile(other)
  got, _ = jax.jit(quick.apply)({"params": other}, image())
  np.testing.assert_allclose(got, want, atol=1e-5)


def side(**more):
  fields = dict(
    width=8, depth=3, grid=(2, 2), num_classes=4, num_prefix_tokens=1
  )
  fields |= dict(has_class_token=True, has_head=True, qkv_heads=1)
  return view.Side(**fields | more)


def test_widths_are_those_of_a_place():
  wide = side(last_width=12, end_width=12)
  lifted = side(last_width=8, end_width=12)
  assert [wide.width_of(i) for i in (0, 1, 2, -1, -3)] == [8, 8, 12, 12, 8]
  assert [lifted.width_of(i) for i in (0, 2, -1)] == [8, 8, 8]
  assert wide.width_of(0, "encoded") == lifted.width_of(2, "encoded") == 12
  assert wide.pooled_width == lifted.pooled_width == 12
  assert side().width_of(-1, "encoded") == side().pooled_width == 8


@pytest.mark.parametrize(
  "method, said",
  [
    (spectral.Spectral(blocks=(-1,)), "as wide as the student, 12, got 8"),
    (regress.Regress(projector="none"), "the student, 12, with projector"),
    (
      regress.Regress(projector="none", tap="pooled"),
      "the student, 12, with projector 'none', got 8",
    ),
    (
      relation.Relation(blocks=(-1,), relation_heads=8),
      "the widths 12 (student) and 8 (teacher), got 8",
    ),
    (
      vitkd.ViTKD(low_blocks=(0, 2)),
      "expected maps of the student of one width, got 8 and 12",
    ),
  ],
)
def test_methods_see_the_width_of_what_they_compare(method, said):
  wide = side(last_width=12, end_width=12)
  with pytest.raises(ValueError, match=r".") as refusal:
    method.needs(method, wide, side())
  assert said in str(refusal.value)
  # They fit where the widths do.
  if not isinstance(method, vitkd.ViTKD):
    method.needs(method, side(), side())


def test_a_teacher_may_end_wider_too():
  method = vitkd.ViTKD()
  with pytest.raises(ValueError, match="of the teacher of one width, got 8"):
    method.needs(method, side(), side(end_width=12))


@pytest.mark.parametrize(
  "fields", [dict(lift=64), dict(last_width=64, last_heads=2)]
)
def test_they_train_by_maps_of_their_ends(tiny_config, fields):
  """Every parameter moves; at the teacher's width none projects."""
  tiny_config.student = dict(
    variant="test/7", depth=2, pool_type="tok", head_zeroinit=False, **fields
  )
  tiny_config.methods = dict(
    regress=dict(projector="none", place="encoded", weights=dict(regress=0.2)),
    srrl={},
    vitkd=dict(low_blocks=(0,)),
  )
  tiny_config.augment = dict(label_smoothing=0.1)
  tiny_config.run.log_every = 1
  parts = experiment.build(tiny_config, devices=jax.devices()[:1])
  assert "regress" not in parts.state_shapes().params["methods"]
  state, step = drawn.state(parts), parts.make_train_step()
  before = jax.device_get(state.params)
  with contextlib.closing(parts.inputs.train(0)) as batches:
    batch = sharding.global_batch(next(batches), parts.mesh)
  state, report = step(state, parts.teacher_params, batch)
  assert not report["bad"].any()
  after = jax.tree_util.tree_leaves_with_path(jax.device_get(state.params))
  for (path, new), old in zip(after, jax.tree.leaves(before), strict=True):
    assert np.any(new != old), jax.tree_util.keystr(path)


@pytest.mark.parametrize(
  "fields", [dict(lift=24), dict(last_width=24, last_heads=3)]
)
def test_a_workdir_is_evaluated_and_started_from(
  student_alone, tmp_path, fields, drawn_state
):
  student_alone.student = dict(
    variant="test/7", depth=2, pool_type="tok", **fields
  )
  student_alone.run.epochs, student_alone.schedule.warmup_epochs = 0.5, 0.0
  result = train.train(student_alone, str(tmp_path))
  info = datasets.info("fashion_mini")
  found = scoring.evaluate(
    scoring.load(str(tmp_path), info),
    datasets.load("fashion_mini", "test[:24]"),
    info,
    batch_size=8,
  )
  assert found["loss"] == pytest.approx(result["eval_ema_loss"], rel=1e-5)
  student_alone.student.init = str(tmp_path)
  parts = experiment.build(student_alone)
  exported = safetensors.numpy.load_file(tmp_path / "student.safetensors")
  read = traverse_util.flatten_dict(parts.start.params(), sep="/")
  assert read.keys() == exported.keys()
  with pytest.raises(
    ValueError, match="'stablehlo' or 'onnx' for a model with l"
  ):
    weights.save(
      tmp_path / "timm",
      parts.start.params(),
      format="timm",
      variant="test/7",
      depth=2,
      pool_type="tok",
      **fields,
    )


def test_layers_of_the_new_leaves():
  assert leaves.layers("Transformer/widen/kernel", 12) == 12
  assert leaves.layers("lift/kernel", 12) == 13
