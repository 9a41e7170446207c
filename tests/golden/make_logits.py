"""Stores what the authors' losses of logits give: logits.npz, logits.json.

Run from the folder `tests`, where PyTorch is installed:

  python -m golden.make_logits --references DIR

DIR holds a clone of each repository in `REPOSITORIES` under its own name. The
committed files are run as they are, in float64 (and in float32 for the
record), with stubs for what they import beside PyTorch and with `.cuda()`
leaving tensors where they are.
"""

import argparse
import contextlib
import datetime
import json
import pathlib
import platform
import subprocess
import sys
import types
from unittest import mock
import warnings

import numpy as np
import torch

from golden import cases, logit_cases

FOLDER = pathlib.Path(__file__).parent
LOGIT_STANDARDISATION = "sunshangquan/logit-standardization-KD"
WSLD = "bellymonster/Weighted-Soft-Label-Distillation"
# Repository -> the files that are run.
REPOSITORIES = {
  "zkxufo/TTM": ["distiller_zoo/ttm.py", "distiller_zoo/wttm.py"],
  "yzd-v/cls_KD": [
    f"mmcls/models/dis_losses/{name}.py" for name in ("dkd", "wsld", "uskd")
  ],
  LOGIT_STANDARDISATION: [
    f"mdistiller/distillers/{name}.py" for name in ("KD", "DKD")
  ],
  "megvii-research/mdistiller": ["mdistiller/distillers/DKD.py"],
  "hunto/image_classification_sota": ["lib/models/losses/dist_kd.py"],
  "facebookresearch/deit": ["losses.py"],
  WSLD: ["knowledge_distiller.py"],
}


def git(folder: pathlib.Path, *arguments: str) -> str:
  command = ["git", "-C", str(folder), *arguments]
  return subprocess.check_output(command, text=True)


def stub(name: str, **attributes) -> None:
  """Makes `import name` give a module of these attributes."""
  sys.modules[name] = types.ModuleType(name)
  vars(sys.modules[name]).update(attributes)


def load(references: pathlib.Path) -> dict[tuple[str, str], types.ModuleType]:
  """The authors' files as modules, by (repository, file's stem)."""
  register = types.SimpleNamespace(register_module=lambda: lambda cls: cls)
  stub("mmcls")
  stub("mmcls.registry", MODELS=register)
  stub("reference")
  stub("reference._base", Distiller=torch.nn.Module)
  options = types.SimpleNamespace(label_smooth=False)
  stub("imagenet_train_cfg", cfg=types.SimpleNamespace(optim=options))
  stub("tools", utils=None)
  modules = {}
  for repository, files in REPOSITORIES.items():
    folder = references / repository.split("/")[1]
    for file in files:
      module = types.ModuleType(f"reference.{pathlib.Path(file).stem}")
      module.__package__ = "reference"
      source = git(folder, "show", f"HEAD:{file}")
      exec(compile(source, file, "exec"), vars(module))
      modules[repository, pathlib.Path(file).stem] = module
  return modules


class Authors:
  """Their losses, each a function of (student, teacher, target, options)."""

  def __init__(self, modules: dict[tuple[str, str], types.ModuleType]):
    self._modules = modules

  def kl(self, student, teacher, target, *, temperature, standardise):
    module = self._modules[LOGIT_STANDARDISATION, "KD"]
    return module.kd_loss(student, teacher, temperature, standardise)

  def deit_soft(self, student, teacher, target, *, temperature):
    loss = self._modules["facebookresearch/deit", "losses"].DistillationLoss(
      lambda outputs, labels: 0.0,
      lambda inputs: teacher,
      distillation_type="soft",
      alpha=1.0,
      tau=temperature,
    )
    return loss(None, (None, student), None)

  def ttm(self, student, teacher, target, *, gamma):
    return self._modules["zkxufo/TTM", "ttm"].TTM(gamma)(student, teacher)

  def wttm(self, student, teacher, target, *, gamma):
    return self._modules["zkxufo/TTM", "wttm"].WTTM(gamma)(student, teacher)

  def dkd(self, student, teacher, target, *, standardise, **options):
    arguments = (student, teacher, target, options["alpha"], options["beta"])
    temperature = options["temperature"]
    module = self._modules[LOGIT_STANDARDISATION, "DKD"]
    value = module.dkd_loss(*arguments, temperature, standardise)
    if not standardise:
      module = self._modules["megvii-research/mdistiller", "DKD"]
      agree(value, module.dkd_loss(*arguments, temperature))
      loss = self._modules["yzd-v/cls_KD", "dkd"].DKDLoss(
        "dkd", True, temperature, options["alpha"], options["beta"]
      )
      agree(value, loss(student, teacher, target))
    return value

  def wsld(self, student, teacher, target, *, temperature):
    loss = self._modules["yzd-v/cls_KD", "wsld"].WSLDLoss(
      "wsld", True, temperature, alpha=1.0, num_classes=student.shape[1]
    )
    value = loss(student, teacher, target)
    if student.shape[1] == 1000:  # all that the first authors' code takes
      first = self._modules[WSLD, "knowledge_distiller"].WSLDistiller(
        lambda x: teacher, lambda x: student
      )
      first.T, first.alpha = temperature, 1.0
      first.hard_loss.forward = lambda *_: 0.0
      agree(value, first(None, target)[1])
    return value

  def dist(self, student, teacher, target, *, beta, gamma, temperature):
    repository = "hunto/image_classification_sota"
    loss = self._modules[repository, "dist_kd"].DIST(beta, gamma, temperature)
    return loss(student, teacher)

  def uskd(self, student, weak, target, **weights):
    """The total with weights alpha, beta and mu; `weak` passes their layer."""
    classes = student.shape[1]
    loss = self._modules["yzd-v/cls_KD", "uskd"].USKDLoss(
      "uskd", True, channel=classes, num_classes=classes, **weights
    )
    loss.to(student.dtype).fc.load_state_dict(
      {"weight": torch.eye(classes), "bias": torch.zeros(classes)}
    )
    loss.zipf = loss.zipf.to(student.dtype)
    return loss(weak, student, target)

  def __call__(self, case: logit_cases.LogitCase, student, teacher, target):
    if case.loss.startswith("uskd/"):
      weights = {"alpha": 0.0, "beta": 0.0, "mu": 0.0}
      terms = {"target": "alpha", "non_target": "beta", "weak": "mu"}
      weights[terms[case.loss.removeprefix("uskd/")]] = 1.0
      return self.uskd(student, teacher, target, **weights)
    return getattr(self, case.loss)(student, teacher, target, **case.options)


def agree(first: torch.Tensor, second: torch.Tensor) -> None:
  """Checks that two of the authors' files give one value."""
  rtol = 1e-12 if first.dtype == torch.float64 else 1e-3
  torch.testing.assert_close(first, second, rtol=rtol, atol=rtol)


def run(authors: Authors, case: logit_cases.LogitCase, dtype) -> dict:
  """The authors' loss on one case.

  Returns:
    {"value": the batch's scalar; "rows": [B], that of each example alone;
    "grad": [B, C], the scalar's gradient to the logits that have one}.
  """
  student, teacher, target = logit_cases.inputs(case)
  student, teacher = (
    torch.from_numpy(x).to(dtype).requires_grad_() for x in (student, teacher)
  )
  if target is not None:
    target = torch.from_numpy(target)
    target = target.to(dtype) if target.is_floating_point() else target
  with torch.no_grad():
    rows = [
      authors(
        case,
        student[i : i + 1],
        teacher[i : i + 1],
        None if target is None else target[i : i + 1],
      ).item()
      for i in range(case.batch)
    ]
  # Some of their losses let a gradient pass to the teacher, which is no matter
  # where its forward pass has none.
  weak = case.loss == "uskd/weak"
  value = authors(
    case,
    student.detach() if weak else student,
    teacher if weak else teacher.detach(),
    target,
  )
  value.backward()
  gradient = (teacher if weak else student).grad
  return {
    "value": value.item(),
    "rows": np.array(rows),
    "grad": gradient.numpy(),
  }


@contextlib.contextmanager
def environment():
  """float64 by default (USKD's 1 / rank), `.cuda()` without effect."""
  stay = lambda self: self  # noqa: E731
  torch.set_default_dtype(torch.float64)
  with (
    mock.patch.object(torch.Tensor, "cuda", stay),
    mock.patch.object(torch.nn.Module, "cuda", stay),
    warnings.catch_warnings(),
  ):
    # kl_div's size_average and LogSoftmax without a dimension.
    warnings.simplefilter("ignore")
    yield
  torch.set_default_dtype(torch.float32)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--references", type=pathlib.Path, required=True)
  references = parser.parse_args().references
  authors = Authors(load(references))
  stored, float32 = {}, {}
  with environment():
    for name, case in logit_cases.CASES.items():
      out = run(authors, case, torch.float64)
      single = run(authors, case, torch.float32)
      # One array a case: its scalar, its gradient's norm, its rows.
      norm = np.linalg.norm(out["grad"])
      stored[f"{name}/value"] = np.array([out["value"], norm, *out["rows"]])
      stored[f"{name}/grad"] = cases.sample(
        out["grad"], logit_cases.NUM_SAMPLES
      ).astype("f4")
      assert np.isfinite(stored[f"{name}/value"]).all(), name
      error = abs(single["value"] / out["value"] - 1) if out["value"] else 0.0
      float32[name] = float(f"{error:.1e}")
      print(f"{name:60} {out['value']:11.4g} {norm:9.2g} {float32[name]:.1e}")
  np.savez_compressed(FOLDER / "logits.npz", **stored)
  record = {
    "command": "cd tests && python -m golden.make_logits --references DIR",
    "date": datetime.date.today().isoformat(),
    "references": {
      f"github.com/{repository}": {
        "commit": git(
          references / repository.split("/")[1], "rev-parse", "HEAD"
        ).strip(),
        "files": files,
      }
      for repository, files in REPOSITORIES.items()
    },
    "versions": {
      "python": platform.python_version(),
      "numpy": np.__version__,
      "torch": torch.__version__,
    },
    "stored": "float64 results of the authors' code; gradients as float32",
    "authors_float32_against_float64": float32,
  }
  (FOLDER / "logits.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
  main()
