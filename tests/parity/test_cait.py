"""CaiT against timm's own, with every parameter drawn at random."""

from golden import model_cases
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import torch

from parity import timm_models
from vitkd_jax import weights
from vitkd_jax.models import cait, variants

timm = timm_models.import_timm()

VARIANT = "cait_s24_224"
C = 10
# timm's arguments, and ours.
SMALL = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4)
OURS = dict(patch_size=(8, 8), width=48, depth=3, num_heads=4)


def perturbed(model, std=0.1):
  """The model in evaluation mode in float64, and its float32 state."""
  shapes = {key: tuple(v.shape) for key, v in model.state_dict().items()}
  state = model_cases.fill(shapes, seed=0, std=std)
  model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
  return model.double().eval(), state


def theirs_of(model, image):
  """Logits, and the maps of all blocks [B, N, D], with a graph."""
  pixels = image.permute(0, 3, 1, 2)
  maps = model.forward_intermediates(
    pixels, intermediates_only=True, output_fmt="NLC"
  )
  return model(pixels), maps


@pytest.fixture(scope="module")
def pair():
  theirs, state = perturbed(timm.models.cait.Cait(num_classes=C, **SMALL))
  return theirs, state, model_cases.image((2, 32, 32, 3))


def load(path, state, **options):
  safetensors_numpy.save_file(state, path)
  return weights.load(
    path,
    variant=VARIANT,
    num_classes=C,
    **{"image_size": 32, **options},
    **OURS,
  )


@pytest.mark.parametrize("scan", [False, True])
def test_outputs_equal_timm(tmp_path, pair, scan):
  theirs, state, image = pair
  params = load(tmp_path / "w.safetensors", state, scan=scan)
  model = cait.Model(C, variant=VARIANT, scan=scan, **OURS)
  logits, out = jax.jit(model.apply)({"params": params}, image)
  with torch.no_grad():
    expected, maps = theirs_of(theirs, torch.from_numpy(image).double())
    last = theirs.forward_features(
      torch.from_numpy(image).double().permute(0, 3, 1, 2)
    )
  assert len(maps) == model.depth
  found = {
    "logits": (logits, expected),
    "encoded": (out["encoded"], last[:, 1:]),
    "head_input": (out["head_input"], last[:, 0]),
  }
  for i, theirs_map in enumerate(maps):
    found[f"block {i}"] = out["encoder"][f"block{i:02d}"]["+mlp"], theirs_map
  for name, (ours, reference) in found.items():
    assert reference.std() > 0.1, f"{name} says nothing"
    np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-5, err_msg=name)


def test_gradients_equal_timm(tmp_path, pair):
  """Of the image and of every parameter, of a sum over logits and maps."""
  theirs, state, image = pair
  params = load(tmp_path / "w.safetensors", state)
  model = cait.Model(C, variant=VARIANT, **OURS)

  def total(params, image):
    logits, out = model.apply({"params": params}, image)
    low = out["encoder"]["block01"]["+mlp"]
    return (logits**2).sum() + (low**3).sum()

  ours, to_image = jax.jit(jax.grad(total, argnums=(0, 1)))(params, image)
  pixels = torch.from_numpy(image).double().requires_grad_()
  logits, maps = theirs_of(theirs, pixels)
  ((logits**2).sum() + (maps[1] ** 3).sum()).backward()
  # In the layout of parameters, as the reader of weights makes it.
  gradients = {k: p.grad.float().numpy() for k, p in theirs.named_parameters()}
  expected = load(tmp_path / "g.safetensors", gradients)
  near(to_image, pixels.grad, "image")
  jax.tree_util.tree_map_with_path(
    lambda path, one, other: near(one, other, jax.tree_util.keystr(path)),
    ours,
    expected,
  )


def near(ours, expected, name):
  expected = np.float64(expected)
  # Biases that a softmax cancels have the gradient 0 but for rounding.
  scale = max(np.linalg.norm(expected), 1e-2)
  error = np.linalg.norm(np.float64(ours) - expected) / scale
  assert error < 1e-4, (name, error)


def test_the_authors_file_and_another_image_size(tmp_path):
  """Their `.pth` has {"model": {"module....": ...}}; the grid is resized."""
  _, state = perturbed(timm.models.cait.Cait(num_classes=C, **SMALL))
  path = tmp_path / "S24.pth"
  torch.save(
    {"model": {f"module.{k}": torch.from_numpy(v) for k, v in state.items()}},
    path,
  )
  large = timm.models.cait.Cait(num_classes=C, **SMALL | {"img_size": 48})
  resized = timm.layers.resample_abs_pos_embed(
    torch.from_numpy(state["pos_embed"]), [6, 6], num_prefix_tokens=0
  )
  large.load_state_dict(
    {k: torch.from_numpy(v) for k, v in state.items()} | {"pos_embed": resized}
  )
  image = model_cases.image((1, 48, 48, 3))
  params = weights.load(
    path, variant=VARIANT, num_classes=C, image_size=48, **OURS
  )
  model = cait.Model(C, variant=VARIANT, **OURS)
  logits, _ = jax.jit(model.apply)({"params": params}, image)
  with torch.no_grad():
    expected, _ = theirs_of(
      large.double().eval(), torch.from_numpy(image).double()
    )
  # The resize is in float32 in both.
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_the_real_size_equals_timm(tmp_path):
  # Smaller matrices keep 24 blocks from growing further.
  theirs, state = perturbed(timm.create_model(VARIANT, num_classes=C), std=0.04)
  image = model_cases.image((1, 224, 224, 3))
  path = tmp_path / "w.safetensors"
  safetensors_numpy.save_file(state, path)
  params = weights.load(path, variant=VARIANT, num_classes=C)
  model = cait.Model(C, variant=VARIANT)
  # Scanned, which compiles one block instead of 24.
  quick, params = model.quick_to_compile(params)
  logits, out = jax.jit(quick.apply)({"params": params}, image)
  with torch.no_grad():
    expected, maps = theirs_of(theirs, torch.from_numpy(image).double())
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
  assert len(maps) == 24
  for i, reference in enumerate(maps):
    ours = out["encoder"][f"block{i:02d}"]["+mlp"]
    # Relative too, as the residual stream reaches 83.
    np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
  "name", [n for n, v in variants.NAMED.items() if v.family == "CaiT"]
)
def test_variant_is_timms(name):
  with torch.device("meta"):
    theirs = timm.create_model(name, num_classes=C)
  ours = cait.Model(C, variant=name)
  block = theirs.blocks[0]
  assert len(theirs.blocks) == ours.depth
  assert len(theirs.blocks_token_only) == ours.class_depth
  assert theirs.embed_dim == ours.width
  assert block.attn.num_heads == ours.num_heads
  assert block.mlp.fc1.out_features == 4 * ours.width
  assert block.norm1.eps == theirs.norm.eps == ours.norm_eps
  assert theirs.patch_embed.patch_size == ours.patch_size
  variant = variants.get(name)
  config = theirs.pretrained_cfg
  assert config["input_size"] == (3, variant.image_size, variant.image_size)
  assert (config["mean"], config["std"]) == (variant.mean, variant.std)
  assert config["crop_pct"] == variant.crop_pct
