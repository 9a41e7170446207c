"""Models against what big_vision's and timm's own gave (golden/)."""

import json
import pathlib

from golden import cases, model_cases
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from vitkd_jax import weights
from vitkd_jax.models import vit

GOLDEN = pathlib.Path(__file__).parent / "golden"
SHAPES = json.loads((GOLDEN / "models.json").read_text())["shapes"]


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN / "models.npz") as arrays:
    return dict(arrays)


def stored(golden, prefix):
  """The stored samples by name, for one model."""
  names = [key for key in golden if key.startswith(prefix)]
  return {key.removeprefix(prefix): golden[key] for key in names}


@pytest.mark.parametrize("name", model_cases.BIG_VISION)
def test_big_vision_parameters_give_its_outputs(golden, name):
  fields = model_cases.BIG_VISION_SIZE | model_cases.BIG_VISION[name]
  model = vit.Model(model_cases.NUM_CLASSES, **fields)
  shapes = SHAPES["big_vision"][name]
  image = model_cases.image()
  tree = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  ours = {path: list(leaf.shape) for path, leaf in cases.flatten(tree).items()}
  assert ours == shapes
  seed = list(model_cases.BIG_VISION).index(name)
  params = model_cases.unflatten(model_cases.fill(shapes, seed))
  with jax.default_matmul_precision("highest"):
    logits, out = jax.jit(model.apply)({"params": params}, image)
  np.testing.assert_array_equal(logits, out["logits"])
  out = cases.flatten(out)
  expected = stored(golden, f"big_vision/{name}/")
  assert not expected.keys() - out.keys()
  for key, value in expected.items():
    np.testing.assert_allclose(
      model_cases.sample(out[key]), value, rtol=1e-5, atol=1e-5, err_msg=key
    )


TIMM_VARIANTS = {
  "deit": "deit_tiny_patch16_224",
  "distilled": "deit_tiny_distilled_patch16_224",
  "deit3": "deit3_small_patch16_224",
  "registers": "vit_small_patch14_reg4_dinov2",
  "gap": "vit_tiny_patch16_224",
}


@pytest.mark.parametrize("family", model_cases.TIMM)
def test_timm_state_dict_gives_its_outputs(golden, tmp_path, family):
  seed = list(model_cases.TIMM).index(family)
  state = model_cases.fill(SHAPES["timm"][family], seed)
  path = tmp_path / "model.safetensors"
  safetensors_numpy.save_file(state, path)
  fields = dict(
    variant=TIMM_VARIANTS[family],
    width=64,
    depth=3,
    mlp_dim=256,
    num_heads=2,
    patch_size=(8, 8),
  )
  if family == "gap":
    fields["pool_type"] = "gap"
  params = weights.load(
    path, num_classes=model_cases.NUM_CLASSES, image_size=32, **fields
  )
  model = vit.Model(model_cases.NUM_CLASSES, **fields)
  with jax.default_matmul_precision("highest"):
    logits, out = jax.jit(model.apply)({"params": params}, model_cases.image())
  ours = {
    "block00": out["encoder"]["block00"]["+mlp"],
    "block01": out["encoder"]["block01"]["+mlp"],
    "encoded": out["encoded"],
    "logits": logits,
  }
  expected = stored(golden, f"timm/{family}/")
  assert ours.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(
      model_cases.sample(ours[name]), value, rtol=0, atol=1e-5, err_msg=name
    )
