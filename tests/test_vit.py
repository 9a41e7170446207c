"""Tests of vitkd_jax.models.vit: parameters, outputs, and what it refuses."""

import jax
import jax.extend
import numpy as np
import pytest
from small_vit import (
  DEPTH,
  DISTILLED,
  SMALL,
  C,
  filled,
  flat,
  image,
  nested,
  outputs,
  shapes,
  small,
)

from vitkd_jax.models import vit


def block_names(start, layerscale=False):
  attention = [
    f"MultiHeadDotProductAttention_0/{part}/{leaf}"
    for part in ("query", "key", "value", "out")
    for leaf in ("kernel", "bias")
  ]
  mlp = [
    f"MlpBlock_0/Dense_{i}/{leaf}"
    for i in (0, 1)
    for leaf in ("kernel", "bias")
  ]
  norms = [
    f"LayerNorm_{i}/{leaf}" for i in (0, 1) for leaf in ("scale", "bias")
  ]
  scales = ["layerscale_sa", "layerscale_mlp"] if layerscale else []
  return {f"{start}/{name}" for name in attention + mlp + norms + scales}


EVERYWHERE = {
  "embedding/kernel",
  "embedding/bias",
  "Transformer/encoder_norm/scale",
  "Transformer/encoder_norm/bias",
  "head/kernel",
  "head/bias",
}
UNROLLED = set().union(
  *(block_names(f"Transformer/encoderblock_{i}") for i in range(DEPTH))
)
MAP = {"MAPHead_0/probe"} | {
  name for name in block_names("MAPHead_0") if "LayerNorm_1" not in name
}


@pytest.mark.parametrize(
  "fields, own",
  [
    ({}, UNROLLED | {"pos_embedding"}),
    (dict(posemb="sincos2d"), UNROLLED),
    (dict(pool_type="tok"), UNROLLED | {"pos_embedding", "cls"}),
    (dict(pool_type="map"), UNROLLED | MAP | {"pos_embedding"}),
    (
      dict(rep_size=True),
      UNROLLED | {"pos_embedding", "pre_logits/kernel", "pre_logits/bias"},
    ),
    (
      dict(scan=True),
      block_names("Transformer/encoderblock") | {"pos_embedding"},
    ),
    (
      dict(DISTILLED, scan=True),
      block_names("Transformer/encoderblock", layerscale=True)
      | {"pos_embedding", "cls", "dist", "reg"}
      | {"head_dist/kernel", "head_dist/bias"},
    ),
  ],
)
def test_parameters_are_named_as_big_visions(fields, own):
  assert shapes(small(**fields)).keys() == EVERYWHERE | own


def test_shapes_are_those_of_big_vision():
  found = {path: leaf.shape for path, leaf in shapes(small()).items()}
  block = "Transformer/encoderblock_0"
  attention = f"{block}/MultiHeadDotProductAttention_0"
  assert found["embedding/kernel"] == (4, 4, 3, 16)
  assert found["pos_embedding"] == (1, 6, 16)
  assert found[f"{attention}/query/kernel"] == (16, 2, 8)
  assert found[f"{attention}/query/bias"] == (2, 8)
  assert found[f"{attention}/out/kernel"] == (2, 8, 16)
  assert found[f"{attention}/out/bias"] == (16,)
  assert found[f"{block}/MlpBlock_0/Dense_0/kernel"] == (16, 24)
  scanned = shapes(small(scan=True))
  stacked = scanned["Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"]
  assert stacked.shape == (DEPTH, 16, 24)


@pytest.mark.parametrize(
  "fields, prefix, shape",
  [
    (dict(pool_type="gap"), 0, ()),
    (dict(pool_type="map"), 0, ()),
    (dict(pool_type="0"), 0, ()),
    (dict(pool_type="none"), 0, (6,)),
    (dict(pool_type="tok"), 1, ()),
    (dict(pool_type="gap", registers=2), 2, ()),
    (DISTILLED, 5, ()),
  ],
)
def test_keys_and_shapes_of_out(fields, prefix, shape):
  model = small(**fields)
  assert model.num_prefix_tokens == prefix
  assert model.grid(8, 12) == (2, 3)
  logits, out = jax.eval_shape(
    lambda p, x: model.apply({"params": p}, x), nested(shapes(model)), image()
  )
  assert logits.shape == (2, *shape, C)
  expected = {"stem": (2, 2, 3, 16), "with_posemb": (2, 6, 16)}
  for i in range(DEPTH):
    for place in ("sa", "+sa", "mlp", "+mlp"):
      expected[f"encoder/block{i:02d}/{place}"] = (2, 6 + prefix, 16)
  expected["encoder/pre_ln"] = expected["encoded"] = (2, 6 + prefix, 16)
  expected["head_input"] = expected["pre_logits"] = (2, *shape, 16)
  expected["pre_logits_2d"] = (2, 2, 3, 16)
  expected["logits"] = (2, *shape, C)
  expected["logits_2d"] = (2, 2, 3, C)
  if shape:
    del expected["head_input"]
  if model.distilled:
    expected["logits_cls"] = expected["logits_dist"] = (2, C)
  assert {path: leaf.shape for path, leaf in flat(out).items()} == expected


def test_without_a_head_the_features_come_out():
  model = vit.Model(**SMALL)
  leaves = {k: v for k, v in filled(small()).items() if "head" not in k}
  features, out = outputs(model, leaves)
  assert "logits" not in out
  np.testing.assert_array_equal(features, out["head_input"])
  # Of the mean over patches, as big_vision pools.
  np.testing.assert_allclose(features, out["encoded"].mean(1), atol=1e-6)


def test_patch_maps_hold_no_prefix_tokens():
  _, out = outputs(small(**DISTILLED))
  np.testing.assert_array_equal(
    out["pre_logits_2d"].reshape(2, 6, 16), out["encoded"][:, 5:]
  )
  np.testing.assert_array_equal(out["head_input"], out["encoded"][:, 0])
  np.testing.assert_array_equal(
    out["encoder/pre_ln"], out["encoder/block01/+mlp"]
  )


def test_images_do_not_see_one_another():
  logits, _ = outputs(small(**DISTILLED))
  swapped, _ = outputs(small(**DISTILLED), images=image()[::-1].copy())
  np.testing.assert_allclose(swapped, logits[::-1], rtol=1e-5, atol=1e-6)


def test_pixels_beyond_whole_patches_are_dropped():
  wider = np.pad(image(), ((0, 0), (0, 3), (0, 2), (0, 0)), constant_values=9)
  expected, _ = outputs(small(**DISTILLED))
  got, _ = outputs(small(**DISTILLED), images=wider)
  np.testing.assert_array_equal(got, expected)


def test_fields_override_the_variants():
  model = vit.Model(10, variant="deit3_small_patch16_224", depth=2, gelu="tanh")
  assert (model.width, model.depth, model.gelu) == (384, 2, "tanh")
  assert model.layerscale_init == 1e-6
  plain = vit.Model(10, variant="S/16")
  assert plain == vit.ViT(
    10, width=384, mlp_dim=1536, num_heads=6, patch_size=(16, 16)
  )
  assert vit.Model(10) == vit.ViT(10)


def test_a_patch_size_from_json_is_a_tuple():
  model = small(patch_size=[4, 4])
  assert model == small()
  assert hash(model) == hash(small())


@pytest.mark.parametrize(
  "fields, match",
  [
    (dict(drop_paht=0.1), "unknown model field 'drop_paht'.*'drop_path'"),
    (dict(num_head=2), "unknown model field 'num_head'.*'num_heads'"),
    (dict(zzz=2), "unknown model field 'zzz'; the valid ones are patch_size, "),
    (dict(variant="deit_tny_patch16_224"), "deit_tiny_patch16_224"),
    (dict(gelu="exact"), "gelu='exact': expected one of 'tanh', 'erf'"),
    (dict(pool_type="cls"), "pool_type='cls'.*'gap', 'map', 'tok'"),
    (dict(posemb="rope"), "posemb='rope'.*'learn', 'sincos2d'"),
    (dict(init_scheme="timm"), "init_scheme='timm'.*'deit'"),
    (dict(remat_policy="dots"), "remat_policy='dots'.*dots_saveable"),
    (dict(remat_policy="save_only_these_names"), "nothing_saveable"),
    (dict(num_heads=3), "width 16 is not divisible by num_heads 3"),
    (dict(distilled=True), "distilled=True needs pool_type='tok', got 'gap'"),
    (dict(drop_path=1.0), r"drop_path=1.0: expected a rate in \[0, 1\)"),
    (dict(dropout=-0.1), r"dropout=-0.1: expected a rate in \[0, 1\)"),
    (dict(dropout="0.1"), "dropout='0.1': expected a rate"),
    (dict(depth="abc"), r"depth='abc': expected an integer in \[1, "),
    (dict(depth=10**6), r"depth=1000000: expected .*\[1, 512\]"),
    (dict(width=1 << 40, num_heads=1), r"width=.*\[1, 32768\]"),
    (dict(patch_size=(1 << 20, 1)), r"patch_size=.*\[1, 4096\]"),
    (dict(num_classes=10**9), r"num_classes=.*\[0, 10000000\]"),
    (dict(dtype_mm=[["a"]]), "dtype_mm="),
    (dict(depth=0), r"depth=0: expected an integer in \[1, "),
    (dict(depth=True), "depth=True: expected an integer"),
    (dict(width=16.0), "width=16.0: expected an integer"),
    (dict(num_heads=0), r"num_heads=0: expected an integer in \[1, "),
    (dict(num_heads=-2), "num_heads=-2"),
    (dict(registers=-1), r"registers=-1: expected an integer in \[0, "),
    (dict(mlp_dim=0), "mlp_dim=0"),
    (dict(patch_size=16), "patch_size=16: expected rows and columns"),
    (dict(patch_size=(16,)), r"patch_size=\(16,\): expected rows and columns"),
    (
      dict(patch_size=(0, 0)),
      r"patch_size=\(0, 0\): expected rows and columns",
    ),
    (dict(scan="yes"), "scan='yes': expected True or False"),
    (dict(rep_size=-3), "rep_size=-3: expected True, False or a width"),
    (
      dict(layerscale_init="a"),
      "layerscale_init='a': expected a finite float32",
    ),
    (dict(dtype_mm="float33"), "dtype_mm='float33': expected one of float32"),
    (dict(dtype_mm="int32"), "dtype_mm='int32': expected one of float32"),
    (dict(dtype_mm=None), "dtype_mm=None: expected one of float32"),
    (dict(num_classes=-3), "num_classes=-3: expected an integer"),
    (dict(num_classes="abc"), "num_classes='abc': expected an integer"),
  ],
)
def test_model_refuses(fields, match):
  with pytest.raises(ValueError, match=match):
    small(**fields)


def test_an_image_below_a_patch_is_refused():
  with pytest.raises(ValueError, match="image of 3x8 pixels is smaller than"):
    shapes(small(), 3, 8)
