"""Stores what timm's and big_vision's own models give: models.{npz,json}.

Run from the folder `tests`, in the environment of parity/requirements.txt:

  python -m golden.make_models --reference DIR

DIR is a checkout of github.com/google-research/big_vision. Its vit.py is
loaded as it is, with stubs for the two modules of its repository that only
checkpoint loading needs. timm runs in float64, big_vision in float32 at
matmul precision "highest".
"""

import argparse
import datetime
import importlib.util
import json
import pathlib
import platform
import re
import subprocess
import sys
import types

import flax
import jax
import numpy as np
from parity import timm_models
import torch

from golden import cases, model_cases

FOLDER = pathlib.Path(__file__).parent


def load_big_vision(folder: pathlib.Path):
  """big_vision's module models/vit.py."""
  for name in ("big_vision", "big_vision.models"):
    sys.modules[name] = types.ModuleType(name)
  for parent, name in (
    ("big_vision", "utils"),
    ("big_vision.models", "common"),
  ):
    stub = types.ModuleType(f"{parent}.{name}")
    setattr(sys.modules[parent], name, stub)
    sys.modules[stub.__name__] = stub
  path = folder / "big_vision" / "models" / "vit.py"
  spec = importlib.util.spec_from_file_location("big_vision_vit", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def run_big_vision(vit, fields: dict, seed: int) -> tuple[dict, dict]:
  """(parameter shapes by path, every entry of `out` by path)."""
  model = vit.Model(
    model_cases.NUM_CLASSES, **model_cases.BIG_VISION_SIZE | fields
  )
  image = model_cases.image()
  tree = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  shapes = {path: leaf.shape for path, leaf in cases.flatten(tree).items()}
  shapes = dict(sorted(shapes.items()))
  params = model_cases.unflatten(model_cases.fill(shapes, seed))
  with jax.default_matmul_precision("highest"):
    logits, out = jax.jit(model.apply)({"params": params}, image)
  np.testing.assert_array_equal(logits, out["logits"])
  return shapes, cases.flatten(out)


def run_timm(family: str, seed: int) -> tuple[dict, dict]:
  """(state dict shapes in timm's order, the compared outputs)."""
  model = timm_models.small(family)
  shapes = {key: tuple(v.shape) for key, v in model.state_dict().items()}
  state = model_cases.fill(shapes, seed)
  model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
  return shapes, timm_models.outputs(model.double(), model_cases.image())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--reference", type=pathlib.Path, required=True)
  reference = parser.parse_args().reference
  vit = load_big_vision(reference)
  timm = timm_models.import_timm()
  arrays, shapes = {}, {"timm": {}, "big_vision": {}}

  def store(source, name, result):
    shapes[source][name], out = result
    for key, value in out.items():
      arrays[f"{source}/{name}/{key}"] = model_cases.sample(value).astype(
        np.float32
      )

  for seed, family in enumerate(model_cases.TIMM):
    store("timm", family, run_timm(family, seed))
  for seed, (name, fields) in enumerate(model_cases.BIG_VISION.items()):
    store("big_vision", name, run_big_vision(vit, fields, seed))
  np.savez_compressed(FOLDER / "models.npz", **arrays)
  commit = subprocess.check_output(
    ["git", "-C", str(reference), "rev-parse", "HEAD"], text=True
  ).strip()
  record = {
    "command": "cd tests && python -m golden.make_models --reference DIR",
    "date": datetime.date.today().isoformat(),
    "reference": f"github.com/google-research/big_vision, commit {commit}",
    "versions": {
      "python": platform.python_version(),
      "numpy": np.__version__,
      "jax": jax.__version__,
      "flax": flax.__version__,
      "torch": torch.__version__,
      "timm": timm.__version__,
    },
    "shapes": shapes,
  }
  # Each shape on its own line, not each of its numbers.
  text = re.sub(
    r"\[[\d,\s]+\]",
    lambda match: re.sub(r"\s+", "", match[0]),
    json.dumps(record, indent=1),
  )
  (FOLDER / "models.json").write_text(text + "\n")


if __name__ == "__main__":
  main()
