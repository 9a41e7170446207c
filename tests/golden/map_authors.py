"""The authors' own losses of maps, in PyTorch, as `make_maps.py` runs them.

Their files are read from the commits of `COMMITS` and run as they are, with
stubs for imports that the code used does not need; of two training loops only
the named statements are run.
"""

import ast
import pathlib
import random
import subprocess
import sys
import types
from unittest import mock

import einops
import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

COMMITS = {
  "thy960112/SpectralKD": "968be0e",
  "thy960112/Distillation-Dynamics": "5086c56",
  "deep-optimization/ScaleKD": "478a7db",
  "BeSpontaneous/Proteus-pytorch": "8b1b274",
  "naver/unic": "02269db",
  "roymiles/VkD": "6f8a507",
  "Hao840/manifold-distillation": "1096b82",
  "pengzhiliang/G2SD": "6146adf",
  "Klayand/PCKA": "cec05de",
  "lightly-ai/lightly-train": "8f5a75c4",
  "yzd-v/cls_KD": "1e5d48f",
  "jingyang2017/KD_SRRL": "d2e802f",
  "NVlabs/RADIO": "c0f3701",
}


class Authors:
  """The authors' files: `load` runs one whole, `chosen` some statements."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self.files: dict[str, str] = {}

  def text(self, repository: str, path: str) -> str:
    git = ["git", "-C", str(self._folder / repository.split("/")[1])]
    commit = subprocess.check_output(
      [*git, "rev-parse", f"{COMMITS[repository]}^{{commit}}"], text=True
    ).strip()
    self.files[f"github.com/{repository}/{path}"] = commit
    return subprocess.check_output(
      [*git, "show", f"{commit}:{path}"], text=True
    )

  def load(self, repository: str, path: str, package: str = "") -> dict:
    """A file's names after it ran, as a module of `package`."""
    tree = ast.parse(self.text(repository, path))
    names: dict = {"__name__": f"{package}.reference", "__package__": package}
    exec(compile(tree, path, "exec"), names)
    return names

  def chosen(self, repository: str, path: str, choose, names: dict) -> dict:
    """The names after the statements of a file ran that `choose` accepts."""
    tree = ast.parse(self.text(repository, path))
    body = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and choose(n)]
    body.sort(key=lambda node: node.lineno)
    exec(compile(ast.Module(body, []), path, "exec"), names)
    return names


def _stub_imports() -> None:
  """Modules that the files import, and the code run from them does not use."""

  def register(*args, **kwargs):
    return lambda cls: cls

  registry = types.SimpleNamespace(register_module=register)
  for name in ("mmcls", "mmrazor", "mmcls.registry", "mmrazor.registry"):
    sys.modules[name] = types.ModuleType(name)
  for name in ("mmcls.registry", "mmrazor.registry"):
    sys.modules[name].MODELS = registry
  for name in ("util", "util.misc", "util.lr_sched"):
    sys.modules[name] = types.ModuleType(name)


def _image(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
  """[B, N, D] -> [B, D, H, W]."""
  return einops.rearrange(tokens, "b (h w) d -> b d h w", h=grid[0])


def _both_precisions(loss):
  """`loss` with its casts to float32 made void, checked against itself."""

  def run(*args, **kwargs):
    single = loss(*args, **kwargs)
    with mock.patch.object(torch.Tensor, "float", lambda self: self):
      double = loss(*args, **kwargs)
    assert double.dtype == torch.float64, "a cast remains"
    error = abs(single.item() / double.item() - 1)
    assert error < 1e-6, f"float32 differs by {error}"
    return double

  return run


def _load_unic(authors: Authors) -> tuple[dict, dict]:
  """UNIC's modules of losses and of teacher dropping."""
  sys.modules["unic"] = types.ModuleType("unic")
  dropping = authors.load("naver/unic", "modeling/teacher_dropping.py")
  module = types.ModuleType("unic.teacher_dropping")
  module.__dict__.update(dropping)
  sys.modules["unic.teacher_dropping"] = module
  return authors.load("naver/unic", "modeling/losses.py", "unic"), dropping


def _load_phi_s(authors: Authors):
  """RADIO's `get_phi_s_matrix`."""
  sys.modules["radio"] = types.ModuleType("radio")
  module = types.ModuleType("radio.hadamard")
  folder = "examples/common"
  module.__dict__.update(
    authors.load("NVlabs/RADIO", f"{folder}/hadamard.py", "radio")
  )
  sys.modules["radio.hadamard"] = module
  names = authors.load("NVlabs/RADIO", f"{folder}/phi_s.py", "radio")
  return names["get_phi_s_matrix"]


def _orthogonal(kernel: torch.Tensor) -> torch.Tensor:
  """VkD's map [D_s, D_t] as this package defines it, by PyTorch's QR."""
  wide = kernel.shape[0] <= kernel.shape[1]
  q, r = torch.linalg.qr(kernel.T if wide else kernel)
  q = q * torch.sign(torch.diagonal(r))
  return q.T if wide else q


def _feature_losses(authors: Authors) -> dict:
  """{kind: the authors' loss of (case, inputs), a scalar}: features."""
  spectral = _both_precisions(
    authors.load("thy960112/SpectralKD", "losses.py")["layer_fft_loss"]
  )
  folder = "Distillation_Dynamics/Distillation_Code/ProjectorKD"
  fitnets = authors.load(
    "thy960112/Distillation-Dynamics", f"{folder}/losses.py"
  )["layer_fft_loss_with_projector"]
  scalekd = authors.chosen(
    "deep-optimization/ScaleKD",
    "mmcls/models/dis_losses/fmd.py",
    lambda n: (
      isinstance(n, ast.ClassDef)
      and n.name in ("DCT", "FreqMaskingDistillLoss")
    ),
    {
      **{"nn": nn, "F": F, "torch": torch, "np": np},
      "MODELS": sys.modules["mmcls.registry"].MODELS,
    },
  )["FreqMaskingDistillLoss"]
  unweighted = types.SimpleNamespace(alpha=(1.0, 1.0))
  unic = _load_unic(authors)[0]["loss_per_teacher"]
  phi_s = _load_phi_s(authors)

  def run_fitnets(case, x):
    width_s, width_t = case.student_width, case.teacher_width
    projector = nn.Linear(width_s, width_t)
    projector.weight.data, projector.bias.data = x["kernel"].T, x["bias"]
    norms = nn.BatchNorm2d(width_t), nn.BatchNorm2d(width_t)
    maps = _image(x["student"], case.grid), _image(x["teacher"], case.grid)
    return fitnets(*maps, projector, *norms)

  def run_proteus(student, teacher):
    wanted = {
      "distillation_loss_token",
      "student_whole_fea",
      "teacher_whole_fea",
      "distillation_loss_fea",
    }
    return authors.chosen(
      "BeSpontaneous/Proteus-pytorch",
      "pretrain/models_proteus_dinov2.py",
      lambda n: (
        isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) in wanted
      ),
      {
        "torch": torch,
        "self": types.SimpleNamespace(soft_criterion=nn.MSELoss()),
        "student_cls_token_unmask": student[:, 0],
        "student_patch_tokens_unmask": student[:, 1:],
        "teacher_cls_tokens": teacher[:, 0],
        "teacher_patch_tokens": teacher[:, 1:],
      },
    )

  def run_unic(cosine, smooth_l1):
    def run(case, x):
      out = [{"teacher": {"tokens": x[who]}} for who in ("student", "teacher")]
      return unic(*out, cosine, smooth_l1)["teacher"].mean()

    return run

  def run_vkd(case, x):
    project = _orthogonal(x["kernel"])
    student = types.SimpleNamespace(projector=lambda s: s @ project)
    names = authors.chosen(
      "roymiles/VkD",
      "engine.py",
      lambda n: (
        isinstance(n, ast.If)
        and ast.unparse(n.test) == "args.alpha > 0"
        and "smooth_l1_loss" in ast.unparse(n)
      ),
      {
        "F": F,
        "args": types.SimpleNamespace(alpha=1.0),
        "student": types.SimpleNamespace(module=student),
        "z_s": x["student"],
        "z_t_conv": _image(x["teacher"], case.grid),
      },
    )
    return names["repr_distill_loss"]

  def run_phi_s(case, x):
    _, whiten = phi_s(x["teacher"].flatten(0, 1))
    return F.mse_loss(x["student"] @ whiten.T, x["teacher"] @ whiten.T)

  return {
    "spectral": lambda case, x: spectral(
      _image(x["student"], case.grid), _image(x["teacher"], case.grid)
    ),
    "fitnets": run_fitnets,
    "scalekd_spatial": lambda case, x: scalekd.get_spat_loss(
      unweighted, x["student"], _image(x["teacher"], case.grid)
    ),
    "scalekd_frequency": lambda case, x: scalekd.get_freq_loss(
      unweighted, x["student"], _image(x["teacher"], case.grid)
    ),
    "proteus_token": lambda _, x: run_proteus(
      x["student"][:, None], x["teacher"][:, None]
    )["distillation_loss_token"],
    "proteus_map": lambda _, x: run_proteus(x["student"], x["teacher"])[
      "distillation_loss_fea"
    ],
    "unic": run_unic(0.5, 0.5),
    "unic_cosine": run_unic(1.0, 0.0),
    "unic_smooth_l1": run_unic(0.0, 1.0),
    "vkd": run_vkd,
    "orthogonal": lambda _, x: F.mse_loss(
      x["student"] @ _orthogonal(x["kernel"]), x["teacher"]
    ),
    "phi_s": run_phi_s,
  }


def _head_losses(authors: Authors) -> dict:
  """{kind: the authors' loss of (case, inputs), a scalar}: SRRL and MGD."""
  folder = "mmcls/models/dis_losses"
  srrl_class, mgd_class = (
    authors.load("yzd-v/cls_KD", f"{folder}/{name.lower()[:-4]}.py")[name]
    for name in ("SRRLLoss", "MGDLoss")
  )
  original = authors.load("jingyang2017/KD_SRRL", "distiller_zoo/AIN.py")

  def run_srrl(alpha, beta):
    def run(case, x):
      width = case.teacher_width
      module = srrl_class("srrl", True, width, width, alpha=alpha, beta=beta)
      maps = (x[who][..., None, None] for who in ("student", "teacher"))
      logits = x["student"] @ x["head_kernel"] + x["head_bias"]
      loss = module(*maps, logits, x["logits"])
      if alpha:
        theirs = original["statm_loss"]()(
          x["student"][..., None, None], x["teacher"][..., None, None]
        )
        torch.testing.assert_close(theirs, loss)
      return loss

    return run

  def run_mgd(case, x):
    module = mgd_class(
      "mgd", True, case.student_width, case.teacher_width, alpha_mgd=1.0
    )
    if module.align is not None:
      module.align.weight.data = x["kernel"].T[..., None, None]
      module.align.bias.data = x["bias"]
    for i, layer in enumerate((module.generation[0], module.generation[2])):
      layer.weight.data = x[f"generator_{i}"].permute(3, 2, 0, 1)
      layer.bias.data = x[f"bias_{i}"]
    noise = torch.where(x["mask"], 0.0, 1.0)[..., None, None]
    with mock.patch.object(torch, "rand", return_value=noise):
      return module(
        _image(x["student"], case.grid), _image(x["teacher"], case.grid)
      )

  return {
    "srrl_feature": run_srrl(1.0, 0.0),
    "srrl_logit": run_srrl(0.0, 1.0),
    "mgd": run_mgd,
  }


def _relation_losses(authors: Authors) -> dict:
  """{kind: the authors' loss of (case, inputs), a scalar}: relations."""
  manifold = authors.load("Hao840/manifold-distillation", "losses.py")[
    "layer_mf_loss"
  ]
  relation = _both_precisions(
    authors.load("pengzhiliang/G2SD", "G2SD/engine_distill.py")[
      "cal_relation_loss"
    ]
  )
  align = authors.load(
    "Klayand/PCKA", "PCKA/mmrazor/mmrazor/models/losses/cka_loss.py"
  )["CenterKernelAlignment"]
  lightly = authors.load(
    "lightly-ai/lightly-train",
    "src/lightly_train/_methods/distillationv3/distillationv3_loss.py",
  )["DistillationV3Loss"](0.07, 0.07)
  drop = _load_unic(authors)[1]["aggregate_losses"]

  def run_manifold(which):
    def run(case, x):
      count = case.option.get("num_tokens", 1)
      order = torch.arange(x["student"].shape[0] * x["student"].shape[1])
      if "scores" in x:
        order = torch.argsort(-x["scores"].flatten())
      with mock.patch.object(torch, "randperm", return_value=order):
        return manifold(x["student"], x["teacher"], count)[which]

    return run

  def run_cka(_, x):
    values = [
      1 - align(*(tokens - tokens.mean(0) for tokens in pair), False)
      for pair in zip(x["student"], x["teacher"], strict=True)
    ]
    return torch.stack(values).mean()

  def run_lightly(_, x):
    ones = torch.ones(len(x["student"]), 1)
    student, teacher = (
      F.normalize(x[who], dim=-1) for who in ("student", "teacher")
    )
    return lightly(ones, teacher, ones, student, ones)[1]

  def run_drop(_, x):
    hardest = x["student"].argmax(0)
    draws = [
      0.75 if keep else 0.25  # below 0.5 a teacher is dropped
      for image, keeps in enumerate(x["keep"].T.tolist())
      for teacher, keep in enumerate(keeps)
      if teacher != hardest[image]
    ]
    losses = {str(i): values for i, values in enumerate(x["student"])}
    with mock.patch.object(random, "random", side_effect=draws):
      return drop(losses, drop_prob=0.5)[0]

  return {
    "manifold_patch": run_manifold(0),
    "manifold_sample": run_manifold(1),
    "manifold_rand": run_manifold(2),
    "relation": lambda case, x: relation(
      [tuple(x["student"])], [tuple(x["teacher"])], Ar=case.option["heads"]
    ),
    "cka": run_cka,
    "token_similarity": run_lightly,
    "teacher_drop": run_drop,
  }


def losses(authors: Authors) -> dict:
  """{kind: the authors' loss of (case, inputs), a scalar} of every kind."""
  _stub_imports()
  return {
    **_feature_losses(authors),
    **_head_losses(authors),
    **_relation_losses(authors),
  }
