"""Tests of vitkd_jax.models.variants."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from vitkd_jax.models import variants, vit

HALF = (0.5, 0.5, 0.5)

# Millions of parameters with 1000 classes: `param_count` of timm's
# results/results-imagenet.csv; to DeiT's and ViT's count timm adds an entry of
# the position embedding for each prefix token, which is folded here.
MILLIONS = {
  "deit_tiny_patch16_224": 5.72,
  "deit_tiny_distilled_patch16_224": 5.91,
  "deit_small_patch16_224": 22.05,
  "deit_small_distilled_patch16_224": 22.44,
  "deit_base_patch16_224": 86.57,
  "deit_base_distilled_patch16_224": 87.34,
  "deit_base_patch16_384": 86.86,
  "deit_base_distilled_patch16_384": 87.63,
  "deit3_small_patch16_224": 22.06,
  "deit3_small_patch16_384": 22.21,
  "deit3_medium_patch16_224": 38.85,
  "deit3_base_patch16_224": 86.59,
  "deit3_base_patch16_384": 86.88,
  "deit3_large_patch16_224": 304.37,
  "deit3_large_patch16_384": 304.76,
  "deit3_huge_patch14_224": 632.13,
  "vit_tiny_patch16_224": 5.72,
  "vit_tiny_patch16_384": 5.79,
  "vit_small_patch16_224": 22.05,
  "vit_small_patch16_384": 22.2,
  "vit_small_patch32_224": 22.88,
  "vit_small_patch32_384": 22.92,
  "vit_base_patch16_224": 86.57,
  "vit_base_patch16_384": 86.86,
  "vit_base_patch32_224": 88.22,
  "vit_base_patch32_384": 88.3,
  "vit_base_patch8_224": 86.58,
  "vit_large_patch16_224": 304.33,
  "vit_large_patch16_384": 304.72,
  "vit_large_patch32_384": 306.63,
}
# Exact, as PyTorch prints them for DeiT's own models (arXiv:2012.12877).
EXACT = {
  "deit_tiny_patch16_224": 5_717_416,
  "deit_small_patch16_224": 22_050_664,
  "deit_base_patch16_224": 86_567_656,
  "deit_tiny_distilled_patch16_224": 5_910_800,
}


def count(model, side):
  """Parameters, by shapes alone."""
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  tree = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def by_hand(model, side):
  """The same from the architecture on paper."""
  width, hidden, classes = model.width, model.mlp_dim, model.num_classes
  norm, patch = 2 * width, math.prod(model.patch_size)
  attention = 4 * (width * width + width)
  mlp = 2 * width * hidden + hidden + width
  scale = 2 * width if model.layerscale_init is not None else 0
  block = 2 * norm + attention + mlp + scale
  grid = (side // model.patch_size[0]) * (side // model.patch_size[1])
  grid = grid if model.posemb == "learn" else 0
  heads = 2 if model.distilled else 1
  return (
    (3 * patch + 1) * width
    + (grid + model.num_prefix_tokens) * width
    + model.depth * block
    + norm
    + heads * (width + 1) * classes
  )


OF_VITS = sorted(n for n, v in variants.NAMED.items() if v.family == "ViT")


@pytest.fixture(scope="module", params=OF_VITS)
def named(request):
  variant = variants.get(request.param)
  return variant, vit.Model(1000, variant=request.param)


def test_every_named_variant_has_its_parameters(named):
  variant, model = named
  number = by_hand(model, variant.image_size)
  # Deeper ones differ in nothing but the count of blocks.
  shallow = model.clone(depth=2)
  assert count(shallow, variant.image_size) == by_hand(
    shallow, variant.image_size
  )
  name = variant.name
  folded = (model.num_prefix_tokens if "deit3" not in name else 0) * model.width
  if name in EXACT:
    assert number + folded == EXACT[name]
  if name in MILLIONS:
    assert round((number + folded) / 1e6, 2) == pytest.approx(MILLIONS[name])


def test_the_table_is_sound(named):
  variant, model = named
  name = variant.name
  assert variants.NAMED[name] == variant
  patch = int(re.search(r"patch(\d+)", name)[1])
  size = re.search(r"_(\d+)$", name)
  assert model.patch_size == (patch, patch)
  assert variant.image_size == (int(size[1]) if size else 518)
  assert variant.image_size % patch == 0
  assert all(0 < x < 1 for x in variant.mean + variant.std)
  assert 0.8 < variant.crop_pct <= 1
  assert variant.interpolation == "bicubic"
  for top1 in variant.published.values():
    assert top1 is None or 70 < top1 < 90
  if name.endswith("_28"):
    assert not variant.published
    return  # the quickstart's pair has no peer
  assert model.distilled == ("distilled" in name)
  assert model.registers == (4 if "reg4" in name else 0)
  scaled = name.startswith("deit3") or "dinov2" in name
  assert (model.layerscale_init is not None) == scaled
  assert model.gelu == "erf"
  assert model.pool_type == "tok"
  assert model.init_scheme == "deit"


@pytest.mark.parametrize("size", variants.SIZES)
def test_sizes(size):
  width, depth, mlp_dim, num_heads = variants.SIZES[size]
  assert width % num_heads == 0
  variant = variants.get(f"{size}/14")
  assert variant.fields == dict(
    width=width,
    depth=depth,
    mlp_dim=mlp_dim,
    num_heads=num_heads,
    patch_size=(14, 14),
  )
  # big_vision's images are in [-1, 1].
  assert (variant.mean, variant.std) == (HALF, HALF)
  without = variants.get(size).fields
  assert without == {k: v for k, v in variant.fields.items() if k in without}
  assert "patch_size" not in without


# width, depth, mlp_dim, heads as in the `decode_variant` of big_vision's vit.py
# at commit 0127fb6.
@pytest.mark.parametrize(
  "size, expected",
  [
    ("mu", (32, 1, 128, 2)),
    ("Ti", (192, 12, 768, 3)),
    ("S", (384, 12, 1536, 6)),
    ("M", (512, 12, 2048, 8)),
    ("B", (768, 12, 3072, 12)),
    ("L", (1024, 24, 4096, 16)),
    ("So400m", (1152, 27, 4304, 16)),
    ("H", (1280, 32, 5120, 16)),
    ("g", (1408, 40, 6144, 16)),
    ("g-opt", (1536, 40, 6144, 16)),
    ("G", (1664, 48, 8192, 16)),
    ("G-opt", (1536, 48, 8192, 16)),
    ("e", (1792, 56, 15360, 16)),
  ],
)
def test_sizes_are_big_visions(size, expected):
  assert variants.SIZES[size] == expected


@pytest.mark.parametrize(
  "name, mean",
  [
    ("deit_tiny_patch16_224", "imagenet"),
    ("deit3_large_patch16_224.fb_in22k_ft_in1k", "imagenet"),
    ("vit_base_patch16_224", "half"),
    ("vit_base_patch16_224.augreg_in21k_ft_in1k", "half"),
    ("vit_base_patch16_224.dino", "imagenet"),
    ("vit_base_patch16_224.mae", "imagenet"),
    ("vit_small_patch8_224", "imagenet"),  # no other weights than DINO's
    ("vit_small_patch8_224.dino", "imagenet"),
    ("vit_base_patch8_224", "half"),
    ("vit_small_patch14_dinov2", "imagenet"),
    ("deit_pico_patch4_28", "half"),
    ("Ti/16", "half"),
  ],
)
def test_normalisation(name, mean):
  stats = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": (HALF, HALF),
  }
  variant = variants.get(name)
  assert (variant.mean, variant.std) == stats[mean]


def test_a_tag_keeps_the_model_and_names_the_weights():
  plain = variants.get("deit3_small_patch16_224")
  tagged = variants.get("deit3_small_patch16_224.fb_in22k_ft_in1k")
  assert tagged.name == "deit3_small_patch16_224.fb_in22k_ft_in1k"
  assert tagged.fields == plain.fields
  assert (plain.crop_pct, tagged.crop_pct) == (0.9, 1.0)


@pytest.mark.parametrize(
  "name, near",
  [
    ("deit_tiny_patch16_244", "deit_tiny_patch16_224"),
    ("deit3_smal_patch16_224", "deit3_small_patch16_224"),
    ("deit_tiny_patch16_244.fb_in1k", "deit_tiny_patch16_224"),
    ("So400", "So400m"),
  ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
  with pytest.raises(ValueError, match=f"{name}.*nearest are.*{near}"):
    variants.get(name)


@pytest.mark.parametrize(
  "name", ["", "S/", "S/0", "S/x", "S/16/2", "X/16", "s"]
)
def test_what_is_no_name(name):
  with pytest.raises(ValueError, match="expected a size such as 'S/16'"):
    variants.get(name)
