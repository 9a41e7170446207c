"""Our models against timm's own, with weights read from timm's state dict.

Every parameter is drawn at random: at init LayerScale is 1e-6 and tokens and
biases are 0, which would hide a mistake in any of them.
"""

import math

from golden import cases, model_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import torch

from parity import timm_models
from vitkd_jax import weights
from vitkd_jax.models import variants, vit

timm = timm_models.import_timm()

ATOL = 1e-4
NUM_CLASSES = 1000
OURS_ONLY = (
  "deit_pico_patch4_28",
  "deit3_pico_patch4_28",
  "vit_nano_patch4_28",
)
IN_TIMM = [
  name
  for name, variant in variants.NAMED.items()
  if name not in OURS_ONLY and variant.family == "ViT"
]
# Name and, as (rows, columns) in pixels, the image; None for the model's own.
COMPARED = [
  ("deit_tiny_patch16_224", None),
  ("deit_tiny_distilled_patch16_224", None),
  ("deit3_small_patch16_224", None),
  ("vit_small_patch32_224", None),
  ("vit_tiny_patch16_384", None),
  ("vit_small_patch14_dinov2", (112, 112)),
  ("vit_small_patch14_reg4_dinov2", (112, 112)),
  ("deit3_small_patch16_224", (160, 160)),
  ("deit3_small_patch16_224", (288, 288)),
  ("deit_tiny_patch16_224", (160, 256)),
  ("deit3_small_patch16_224", (160, 256)),
  ("deit_tiny_distilled_patch16_224", (288, 288)),
]


def perturb(model: torch.nn.Module) -> dict:
  """Fills every parameter of a timm model; returns its NumPy state dict."""
  shapes = {key: tuple(v.shape) for key, v in model.state_dict().items()}
  state = model_cases.fill(shapes, seed=0, std=0.04)
  model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
  return state


def our_outputs(model: vit.ViT, params, image) -> dict:
  """What `timm_models.outputs` returns, of our model."""
  logits, out = jax.jit(model.apply)({"params": params}, image)
  return {
    "block00": out["encoder"]["block00"]["+mlp"],
    "block01": out["encoder"]["block01"]["+mlp"],
    "encoded": out["encoded"],
    "logits": logits,
  }


def assert_close(ours: dict, theirs: dict) -> None:
  assert ours.keys() == theirs.keys()
  for name, expected in theirs.items():
    assert np.std(expected) > 0.1, f"{name} says nothing"
    np.testing.assert_allclose(
      ours[name], expected, rtol=0, atol=ATOL, err_msg=name
    )


@pytest.mark.parametrize("name, size", COMPARED)
def test_outputs_equal_timm(tmp_path, name, size):
  size = size or (variants.get(name).image_size,) * 2
  fields = {} if size[0] == size[1] else {"dynamic_img_size": True}
  theirs = timm.create_model(name, num_classes=NUM_CLASSES, **fields).eval()
  state = perturb(theirs)
  path = tmp_path / "model.safetensors"
  safetensors_numpy.save_file(state, path)
  if size[0] == size[1] != variants.get(name).image_size:
    # As timm's users do it: its loader resizes the position embedding.
    other = timm.create_model(
      name, num_classes=NUM_CLASSES, img_size=size[0]
    ).eval()
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(
      theirs.state_dict(), other
    )
    other.load_state_dict(filtered)
    theirs = other
  params = weights.load(
    path,
    variant=name,
    num_classes=NUM_CLASSES,
    image_size=size[0] if size[0] == size[1] else None,
  )
  image = model_cases.image((2, *size, 3))
  model = vit.Model(NUM_CLASSES, variant=name)
  assert_close(
    our_outputs(model, params, image),
    timm_models.outputs(theirs.double(), image),
  )


@pytest.mark.parametrize(
  "name",
  [
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
  ],
)
def test_exported_weights_give_timm_our_outputs(tmp_path, name):
  model = vit.Model(NUM_CLASSES, variant=name)
  side = variants.get(name).image_size
  image = model_cases.image((1, side, side, 3))
  tree = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  shapes = {path: leaf.shape for path, leaf in cases.flatten(tree).items()}
  params = model_cases.unflatten(model_cases.fill(shapes, seed=0, std=0.04))
  weights.save(tmp_path / "out", params, variant=name, format="timm")
  path = next((tmp_path / "out").glob("*.safetensors"))
  theirs = timm.create_model(
    name, num_classes=NUM_CLASSES, checkpoint_path=str(path)
  ).eval()
  assert_close(
    our_outputs(model, params, image),
    timm_models.outputs(theirs.double(), image),
  )


def count(variant: str) -> int:
  model = vit.Model(NUM_CLASSES, variant=variant)
  side = variants.get(variant).image_size
  image = jnp.zeros((1, side, side, 3))
  tree = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", IN_TIMM)
def test_variant_is_timms(name):
  """Sizes, image size and normalisation are those that timm has."""
  with torch.device("meta"):
    theirs = timm.create_model(name, num_classes=NUM_CLASSES)
  parameters = sum(p.numel() for p in theirs.parameters())
  variant = variants.get(name)
  # DeiT and ViT also have positions of prefix tokens, folded into them here.
  folded = theirs.pos_embed.shape[1] - theirs.patch_embed.num_patches
  assert folded == (0 if theirs.no_embed_class else 1 + ("dist" in name))
  assert count(name) == parameters - folded * variant.fields["width"]
  config = theirs.pretrained_cfg
  assert config["input_size"] == (3, variant.image_size, variant.image_size)
  variant = variants.get(f"{name}.{config['tag']}")  # one name, many weights
  assert tuple(config["mean"]) == variant.mean
  assert tuple(config["std"]) == variant.std
