"""Tests of vitkd_jax.models.cait and of talking heads."""

import jax
import jax.numpy as jnp
import numpy as np
from on_paper import attend, gelu_erf, mlp, norm, talk
import pytest
from small_vit import filled, flat, image, nested, outputs, shapes

from vitkd_jax import weights
from vitkd_jax.models import attention, backbones, cait, talking, variants, vit

C = 5
SMALL = dict(width=16, depth=2, mlp_dim=24, num_heads=2, patch_size=(4, 4))
ATTENTION = "MultiHeadDotProductAttention_0"


def small(**fields):
  return cait.Model(C, **SMALL | fields)


def by_hand(model, p, picture):
  """One image [H, W, 3]: the maps of every block, the token, the logits."""
  patch, x = model.patch_size[0], []
  for i in range(picture.shape[0] // patch):
    for j in range(picture.shape[1] // patch):
      window = picture[i * patch :, j * patch :][:patch, :patch]
      x.append(np.einsum("ijc,ijcd->d", window, p["embedding"]["kernel"]))
  x = np.stack(x) + p["embedding"]["bias"] + p["pos_embedding"][0]
  out = {}

  def rest(x, y, block, key):
    out[f"{key}/sa"] = y * block["layerscale_sa"]
    x = out[f"{key}/+sa"] = x + out[f"{key}/sa"]
    y = mlp(norm(x, block["LayerNorm_1"]), block["MlpBlock_0"], gelu_erf)
    out[f"{key}/mlp"] = y * block["layerscale_mlp"]
    x = out[f"{key}/+mlp"] = x + out[f"{key}/mlp"]
    return x

  for i in range(model.depth):
    block = p["Transformer"][f"encoderblock_{i}"]
    y = talk(norm(x, block["LayerNorm_0"]), block[ATTENTION])
    x = rest(x, y, block, f"encoder/block{i:02d}")
  token = p["cls"][0]
  for i in range(model.class_depth):
    block = p[f"classblock_{i}"]
    memory = norm(np.concatenate([token, x]), block["LayerNorm_0"])
    y = attend(memory[:1], memory, block[ATTENTION])
    token = rest(token, y, block, f"class_encoder/block{i:02d}")
  out["encoded"] = norm(x, p["encoder_norm"])
  out["head_input"] = norm(token, p["encoder_norm"])[0]
  head = p["head"]
  out["logits"] = out["head_input"] @ head["kernel"] + head["bias"]
  return out


def test_the_whole_model_by_hand():
  """On images that are not square; three heads tell an axis from another."""
  model = small(width=18, num_heads=3)
  params = jax.tree.map(np.float64, nested(filled(model)))
  with jax.default_matmul_precision("highest"):
    logits, out = outputs(model)
  for b, picture in enumerate(np.float64(image())):
    expected = by_hand(model, params, picture)
    np.testing.assert_allclose(logits[b], expected["logits"], atol=1e-5)
    for path, value in expected.items():
      np.testing.assert_allclose(out[path][b], value, atol=1e-5, err_msg=path)


def test_heads_that_do_not_talk_are_plain_attention():
  """Mixed by the identity; what is added before the softmax cancels."""
  x = np.random.default_rng(0).standard_normal((2, 6, 12), np.float32)
  module = talking.TalkingHeads(3)
  params = jax.jit(module.init)(jax.random.key(0), x)["params"]
  for name, shift in (("mix_scores", 7.0), ("mix_weights", 0.0)):
    params[name] = {"kernel": jnp.eye(3), "bias": jnp.full(3, shift)}
  rest = {k: v for k, v in params.items() if not k.startswith("mix")}
  np.testing.assert_allclose(
    jax.jit(module.apply)({"params": params}, x),
    jax.jit(attention.Attention(3).apply)({"params": rest}, x),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)]
)
def test_both_ways_to_talk_are_one_function(dtype, tolerance):
  """The other tests run the default alone; a TPU takes the other."""
  rng = np.random.default_rng(0)

  def array(*shape):
    return jnp.asarray(rng.standard_normal(shape), dtype)

  q, k, v = (array(2, 5, 3, 4) for _ in range(3))
  before, after = ((array(3, 3), array(3)) for _ in range(2))
  with jax.default_matmul_precision("highest"):
    one, other = (
      np.float64(jax.jit(talk)(q, k, v, before, after))
      for talk in (talking._talk, talking._talk_folded)
    )
  assert np.abs(one - other).max() <= tolerance * np.abs(one).max()


def test_the_contract():
  """What the trainer reads of a teacher."""
  model = small()
  assert (model.num_prefix_tokens, model.has_class_token) == (0, False)
  assert model.has_linear_head()
  assert not cait.Model(None, **SMALL).has_linear_head()
  assert model.grid(8, 12) == (2, 3)
  logits, out = outputs(model)
  head = nested(filled(model))["head"]
  np.testing.assert_allclose(
    out["head_input"] @ head["kernel"] + head["bias"], logits, atol=1e-5
  )
  features, _ = outputs(
    cait.Model(None, **SMALL),
    {k: v for k, v in filled(model).items() if not k.startswith("head/")},
  )
  np.testing.assert_allclose(features, out["head_input"], atol=1e-6)


@pytest.mark.parametrize("change", ["frozen", "quick_to_compile", "both"])
def test_equal_forms(change):
  model = small()
  params = nested(filled(model))
  expected, maps = outputs(model)
  if change != "quick_to_compile":
    model, params = model.frozen(params, "float32")
    assert not any("layerscale" in path for path in flat(params))
  if change != "frozen":
    model, params = model.quick_to_compile(params)
  logits, out = jax.jit(model.apply)({"params": params}, image())
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  np.testing.assert_allclose(
    out["encoder"]["block01"]["+mlp"], maps["encoder/block01/+mlp"], atol=1e-5
  )


def test_a_frozen_teacher_in_bfloat16():
  model = small()
  expected, maps = outputs(model)
  frozen, params = model.frozen(nested(filled(model)), "bfloat16")
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
  logits, out = jax.jit(frozen.apply)({"params": params}, image())
  assert logits.dtype == np.float32
  for got, reference in (
    (logits, expected),
    (out["encoder"]["block01"]["+mlp"], maps["encoder/block01/+mlp"]),
  ):
    error = np.linalg.norm(np.float32(got) - reference)
    # 8 bits of mantissa, over two blocks.
    assert error < 0.03 * np.linalg.norm(reference)


def test_flops_are_those_of_the_matrix_products():
  """The compiler's count, of a model whose products outweigh the rest."""
  model = cait.Model(
    C, width=256, depth=1, class_depth=1, num_heads=2, patch_size=(8, 8)
  )
  picture = image(64, 64, 1)
  params = jax.eval_shape(model.init, jax.random.key(0), picture)
  cost = jax.jit(model.apply).lower(params, picture).compile().cost_analysis()
  assert cost is not None
  assert sum(model.forward_flops((8, 8))) == pytest.approx(
    cost["flops"], rel=0.03
  )


@pytest.mark.parametrize(
  ("fields", "match"),
  [
    (dict(num_heads=3), "width 16 is not divisible by num_heads 3"),
    (dict(class_depth=0), r"class_depth=0: expected an integer in \[1, 512\]"),
    (dict(gelu="relu"), "gelu='relu': expected one of 'tanh', 'erf'"),
    (dict(patch_size=4), "patch_size=4: expected rows and columns"),
    (dict(scan=1), "scan=1: expected True or False"),
    (dict(norm_eps=-1), "norm_eps=-1: expected a number"),
    (dict(dtype_mm="int8"), "dtype_mm='int8': expected one of"),
    (dict(drop_path=0.1), "unknown model field 'drop_path'"),
    (dict(variant="deit_tiny_patch16_224"), "expected a variant of CaiT, got"),
    (dict(variant="cait_s24"), "the nearest are cait_s24_"),
  ],
)
def test_bad_fields_are_refused(fields, match):
  with pytest.raises(ValueError, match=match):
    small(**fields)


def test_an_image_below_a_patch_is_refused():
  with pytest.raises(ValueError, match="image of 3x8 pixels is smaller than"):
    shapes(small(), 3, 8)


# Millions of parameters: `param_count` of timm's results-imagenet.csv.
MILLIONS = {
  "cait_xxs24_224": 11.96,
  "cait_xxs24_384": 12.03,
  "cait_xxs36_224": 17.3,
  "cait_xxs36_384": 17.37,
  "cait_xs24_384": 26.67,
  "cait_s24_224": 46.92,
  "cait_s24_384": 47.06,
  "cait_s36_384": 68.37,
  "cait_m36_384": 271.22,
  "cait_m48_448": 356.46,
}


@pytest.mark.parametrize("name", MILLIONS)
def test_variants_have_the_parameters_of_timm(name):
  # One scanned block is traced, not all of them.
  model = backbones.make_model(1000, variant=name, scan=True)
  assert isinstance(model, cait.CaiT)
  side = variants.get(name).image_size
  leaves = shapes(model, side, side).values()
  count = sum(leaf.size for leaf in leaves)
  assert round(count / 1e6, 2) == MILLIONS[name]


def test_a_student_is_not_a_cait():
  with pytest.raises(ValueError, match=r"a CaiT can be a teacher .* trained"):
    vit.Model(C, variant="cait_s24_224")


def save(path, **options):
  model = small()
  return weights.save(
    path,
    nested(filled(model)),
    variant="cait_s24_224",
    image_size=(8, 12),
    **options,
    **SMALL,
  )


def test_a_flat_file_comes_back(tmp_path):
  path = save(tmp_path / "w.safetensors", format="flat")
  again = weights.load(
    path, variant="cait_s24_224", num_classes=C, image_size=(8, 12), **SMALL
  )
  leaves = filled(small())
  assert leaves.keys() == flat(again).keys()
  for name, leaf in flat(again).items():
    np.testing.assert_array_equal(leaf, leaves[name], err_msg=name)


@pytest.mark.parametrize("format", ["timm", "huggingface", "big_vision"])
def test_other_formats_are_refused(tmp_path, format):
  with pytest.raises(ValueError, match="'flat' or 'stablehlo' for cait_s24"):
    save(tmp_path / "w.npz", format=format)
  assert not list(tmp_path.iterdir())
