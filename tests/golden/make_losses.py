"""Stores what the authors' own PyTorch losses give: losses.npz, losses.json.

Run from the folder `tests`, where PyTorch is installed:

  python -m golden.make_losses --reference DIR

DIR is a checkout of github.com/yzd-v/cls_KD, branch `master`. Its two loss
files are loaded as they are (`mmcls.registry`, all they import beside
PyTorch, is stubbed) and run in float64, and in float32 for the record.
"""

import argparse
import datetime
import importlib.util
import json
import pathlib
import platform
import subprocess
import sys
import types
from unittest import mock

import numpy as np
import torch

from golden import cases

FOLDER = pathlib.Path(__file__).parent
# The authors' names of the layers of our head.
LAYERS = {
  "align_low_0": "align2.0",
  "align_low_1": "align2.1",
  "align_high": "align",
  "generator_0": "generation.0",
  "generator_1": "generation.2",
}


def load_reference(folder: pathlib.Path):
  """The authors' classes (ViTKDLoss, NKDLoss) from their repository's files."""
  registry = types.ModuleType("mmcls.registry")
  registry.MODELS = types.SimpleNamespace(
    register_module=lambda: lambda cls: cls
  )
  sys.modules |= {
    "mmcls": types.ModuleType("mmcls"),
    "mmcls.registry": registry,
  }
  modules = []
  for name in ("vitkd", "nkd"):
    path = folder / "mmcls" / "models" / "dis_losses" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"reference_{name}", path)
    modules.append(importlib.util.module_from_spec(spec))
    spec.loader.exec_module(modules[-1])
  return modules[0].ViTKDLoss, modules[1].NKDLoss


def authors_state(params: dict) -> dict:
  """Our parameter tree under the authors' names and in PyTorch's layout."""
  state = {"mask_token": torch.from_numpy(params["mask_token"])}
  for ours, theirs in LAYERS.items():
    if ours in params:
      kernel = params[ours]["kernel"]
      axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
      weight = np.ascontiguousarray(kernel.transpose(axes))
      state[f"{theirs}.weight"] = torch.from_numpy(weight)
      state[f"{theirs}.bias"] = torch.from_numpy(params[ours]["bias"])
  return state


def our_gradients(module) -> dict:
  """The authors' parameter gradients by our path, in our layout."""
  layers = dict(module.named_modules())
  gradients = {"mask_token": module.mask_token.grad.numpy()}
  for ours, theirs in LAYERS.items():
    if layers.get(theirs) is not None:
      weight = layers[theirs].weight.grad.numpy()
      axes = (2, 3, 1, 0) if weight.ndim == 4 else (1, 0)
      gradients[f"{ours}/kernel"] = weight.transpose(axes)
      gradients[f"{ours}/bias"] = layers[theirs].bias.grad.numpy()
  return gradients


def forced_noise(mask: np.ndarray) -> torch.Tensor:
  """Noise whose order makes the authors' argsort replace just `mask`."""
  places = np.linspace(0.0, 0.4, mask.shape[1])
  return torch.from_numpy(0.5 * mask + places[None])


def run_vitkd(loss_class, case: cases.ViTKDCase, dtype) -> dict:
  """The authors' ViTKD on one case: values per image, gradients, kink.

  Returns:
    {"mimic": [B], "generation": [B], both unweighted as our head returns
    them; "kink": the smallest |activation| before the ReLU; "grad": the
    gradients of the two terms' batch means by path}.
  """
  params, maps, mask = cases.vitkd_inputs(case)
  module = loss_class(
    "vitkd",
    True,
    case.student_width,
    case.teacher_width,
    alpha_vitkd=1.0,
    beta_vitkd=1.0,
    lambda_vitkd=case.ratio,
  ).to(dtype)
  module.load_state_dict(
    {key: value.to(dtype) for key, value in authors_state(params).items()}
  )
  low_s, high_s, low_t, high_t = (
    torch.from_numpy(maps[name]).to(dtype).requires_grad_()
    for name in ("student_low", "student_high", "teacher_low", "teacher_high")
  )
  kinks = []
  module.generation[0].register_forward_hook(
    lambda _, __, out: kinks.append(out.detach().abs().min().item())
  )

  def loss(alpha, beta, rows):
    module.alpha_vitkd, module.beta_vitkd = alpha, beta
    noise = forced_noise(mask[rows])
    with mock.patch.object(torch, "rand", return_value=noise):
      return module([low_s[rows], high_s[rows]], [low_t[rows], high_t[rows]])

  with mock.patch.object(torch, "rand", return_value=forced_noise(mask)):
    drawn = module.random_masking(high_s, case.ratio)[1]
  assert np.array_equal(drawn.numpy() == 1, mask), "the mask was not forced"
  values = {}
  with torch.no_grad():
    for name, weights in {"mimic": (1, 0), "generation": (0, 1)}.items():
      each = [loss(*weights, slice(i, i + 1)) for i in range(case.batch)]
      values[name] = np.array([value.item() for value in each])
  loss(1, 1, slice(None)).backward()
  gradients = our_gradients(module)
  gradients["student_low"] = low_s.grad.numpy()
  gradients["student_high"] = high_s.grad.numpy()
  return {**values, "kink": min(kinks), "grad": gradients}


def run_nkd(loss_class, case: cases.NKDCase, dtype) -> dict:
  """The authors' NKD: values [B] and the batch mean's gradient [B, C]."""
  student, teacher, target = map(torch.from_numpy, cases.nkd_inputs(case))
  student = student.to(dtype).requires_grad_()
  teacher = teacher.to(dtype)
  module = loss_class("nkd", True, temp=case.temperature, gamma=case.gamma)
  rows = [slice(i, i + 1) for i in range(case.batch)]
  with torch.no_grad():
    values = [module(student[r], teacher[r], target[r]).item() for r in rows]
  module(student, teacher, target).backward()
  return {"value": np.array(values), "grad": student.grad.numpy()}


def worst(double: np.ndarray, single: np.ndarray) -> float:
  """The largest relative difference of two arrays of values."""
  return float(np.max(np.abs(single / double - 1)))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--reference", type=pathlib.Path, required=True)
  reference = parser.parse_args().reference
  vitkd_class, nkd_class = load_reference(reference)
  stored, float32 = {}, {}
  for name, case in cases.VITKD.items():
    out = run_vitkd(vitkd_class, case, torch.float64)
    single = run_vitkd(vitkd_class, case, torch.float32)
    errors = {}
    for term in ("mimic", "generation"):
      stored[f"vitkd/{name}/{term}"] = out[term]
      errors[term] = worst(out[term], single[term])
    stored[f"vitkd/{name}/kink"] = np.array(out["kink"])
    for path, gradient in out["grad"].items():
      norm = np.linalg.norm(gradient)
      stored[f"vitkd/{name}/norm/{path}"] = norm
      stored[f"vitkd/{name}/grad/{path}"] = cases.sample(gradient).astype("f4")
      errors[f"grad/{path}"] = float(
        np.linalg.norm(single["grad"][path] - gradient) / norm
      )
    float32[name] = {key: float(f"{err:.1e}") for key, err in errors.items()}
    print(name, f"kink {out['kink']:.1e}", f"worst {max(errors.values()):.1e}")
  for name, case in cases.NKD.items():
    out = run_nkd(nkd_class, case, torch.float64)
    single = run_nkd(nkd_class, case, torch.float32)
    stored[f"nkd/{name}/value"] = out["value"]
    stored[f"nkd/{name}/grad"] = out["grad"].astype("f4")
    error = worst(out["value"], single["value"])
    float32[f"nkd_{name}"] = {"value": float(f"{error:.1e}")}
  np.savez_compressed(FOLDER / "losses.npz", **stored)
  commit = subprocess.check_output(
    ["git", "-C", str(reference), "rev-parse", "HEAD"], text=True
  ).strip()
  record = {
    "command": "cd tests && python -m golden.make_losses --reference DIR",
    "date": datetime.date.today().isoformat(),
    "reference": f"github.com/yzd-v/cls_KD, branch master, commit {commit}",
    "versions": {
      "python": platform.python_version(),
      "numpy": np.__version__,
      "torch": torch.__version__,
    },
    "stored": "float64 results of the authors' code; gradients as float32",
    "authors_float32_against_float64": float32,
  }
  (FOLDER / "losses.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
  main()
