"""Stores what the authors' own code gives for maps: maps.npz, maps.json.

Run from the folder `tests`, where PyTorch is installed:

  python -m golden.make_maps --references DIR

DIR holds a clone, bare or not, of each repository of `map_authors.COMMITS`, in
a folder of the repository's name. Their code runs in float64. That of
SpectralKD and G2SD casts to float32, which is made void here; it is checked
that the result is the same within 1e-6 with the casts.
"""

import argparse
import datetime
import json
import math
import pathlib
import platform

import numpy as np
import torch

from golden import cases, map_authors, map_cases

FOLDER = pathlib.Path(__file__).parent


def tensor(array) -> torch.Tensor:
  return torch.from_numpy(np.ascontiguousarray(array))


def rows(case: map_cases.MapCase, inputs: dict, index: int) -> dict:
  """The inputs of one image."""
  axes = dict.fromkeys(("student", "teacher", "mask", "logits"), 0)
  if case.kind == "relation":
    axes |= {"student": 1, "teacher": 1}
  return {
    name: x.narrow(axes[name], index, 1) if name in axes else x
    for name, x in inputs.items()
  }


def run(loss, case: map_cases.MapCase) -> tuple[np.ndarray, dict]:
  """Values ([B], or [] where images mix), and the batch's gradients by name."""
  inputs = {name: tensor(x) for name, x in map_cases.map_inputs(case).items()}
  names = map_cases.GRADIENTS.get(case.kind, ("student",))
  for name in names:
    inputs[name].requires_grad_()
  value = loss(case, inputs)
  gradients = torch.autograd.grad(value, [inputs[name] for name in names])
  if case.kind not in map_cases.MIXING:
    with torch.no_grad():
      each = [
        loss(case, rows(case, inputs, i)).item() for i in range(case.batch)
      ]
    assert math.isclose(np.mean(each), value.item(), rel_tol=1e-12), case
    value = np.array(each)
  else:
    value = np.array(value.item())
  return value, {
    name: x.numpy() for name, x in zip(names, gradients, strict=True)
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--references", type=pathlib.Path, required=True)
  authors = map_authors.Authors(parser.parse_args().references)
  torch.set_default_dtype(torch.float64)  # of the layers that they make
  losses = map_authors.losses(authors)
  stored = {}
  for name, case in map_cases.MAPS.items():
    value, gradients = run(losses[case.kind], case)
    stored[f"{name}/value"] = value
    for path, gradient in gradients.items():
      stored[f"{name}/norm/{path}"] = np.linalg.norm(gradient)
      stored[f"{name}/grad/{path}"] = cases.sample(gradient).astype("f4")
    print(name, np.mean(value))
  np.savez_compressed(FOLDER / "maps.npz", **stored)
  record = {
    "command": "cd tests && python -m golden.make_maps --references DIR",
    "date": datetime.date.today().isoformat(),
    "files_at_commit": dict(sorted(authors.files.items())),
    "versions": {
      "python": platform.python_version(),
      "numpy": np.__version__,
      "torch": torch.__version__,
    },
    "stored": "float64 results of the authors' code; gradients as float32",
  }
  (FOLDER / "maps.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
  main()
