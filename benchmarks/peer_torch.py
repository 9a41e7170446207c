"""The peer: the same step in plain PyTorch with timm's models.

Attention is `scaled_dot_product_attention`, AdamW is fused, gradients are
clipped by the global norm. The losses are written from arXiv:2209.02432 and
arXiv:2303.13005. On a GPU matrix products run under bfloat16 autocast, and the
teacher's parameters are bfloat16.
"""

import math
import tempfile

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vitkd_jax import weights


def import_timm():
  """The module timm, also beside a CPU build of PyTorch.

  torchvision, which timm imports and no model uses, is built for CUDA and
  stops at two operators unless they are declared.
  """
  if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
      library.define(
        f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor"
      )
    _KEEP.append(library)
  import timm

  return timm


_KEEP = []


def from_ours(params, variant: str, **fields) -> nn.Module:
  """timm's model with our parameters."""
  timm = import_timm()
  with tempfile.TemporaryDirectory() as folder:
    weights.save(folder, params, variant=variant, format="timm", **fields)
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


def maps(model: nn.Module, image: torch.Tensor):
  """Logits [B, C] and the patch tokens after blocks 0 and 1 and the norm."""
  prefix = model.num_prefix_tokens
  x = model.norm_pre(
    model.patch_drop(model._pos_embed(model.patch_embed(image)))
  )
  low = []
  for number, block in enumerate(model.blocks):
    x = block(x)
    if number < 2:
      low.append(x[:, prefix:])
  x = model.norm(x)
  return model.forward_head(x), low, x[:, prefix:]


class Head(nn.Module):
  """ViTKD's aligners, mask token and generator."""

  def __init__(self, student_width: int, teacher_width: int, params):
    super().__init__()
    names = ("align_low_0", "align_low_1", "align_high")
    self.align = nn.ModuleList(
      nn.Linear(student_width, teacher_width) for _ in names
    )
    self.mask_token = nn.Parameter(torch.zeros(teacher_width))
    self.generator = nn.ModuleList(
      nn.Conv2d(teacher_width, teacher_width, 3, padding=1) for _ in range(2)
    )
    with torch.no_grad():
      for layer, name in zip(self.align, names, strict=True):
        layer.weight.copy_(_tensor(params[name]["kernel"]).T)
        layer.bias.copy_(_tensor(params[name]["bias"]))
      for i, layer in enumerate(self.generator):
        kernel = _tensor(params[f"generator_{i}"]["kernel"])
        layer.weight.copy_(kernel.permute(3, 2, 0, 1))
        layer.bias.copy_(_tensor(params[f"generator_{i}"]["bias"]))

  def forward(self, low, high, teacher_low, teacher_high, mask):
    """Both terms as sums per image, [B]."""
    mimic = sum(
      (align(s) - t).float().square().sum((1, 2))
      for align, s, t in zip(self.align, low, teacher_low, strict=False)
    )
    x = self.align[2](high)
    x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
    side = math.isqrt(x.shape[1])
    x = x.transpose(1, 2).unflatten(2, (side, side))
    x = self.generator[1](self.generator[0](x).relu())
    error = (x.flatten(2).transpose(1, 2) - teacher_high).float().square()
    generation = (error.sum(2) * mask).sum(1) / 0.5
    return mimic, generation


def _tensor(array):
  return torch.from_numpy(np.array(array, np.float32))


def nkd(student, teacher, label):
  """Equation 6 of arXiv:2303.13005 with tau = gamma = 1, [B]."""
  log_p, q = student.log_softmax(1), teacher.softmax(1)
  at = label[:, None]
  target = -(q.gather(1, at) * log_p.gather(1, at))[:, 0]
  others = torch.arange(student.shape[1], device=at.device) != at
  log_p, log_q = (
    x.masked_fill(~others, -torch.inf).log_softmax(1).masked_fill(~others, 0)
    for x in (student, teacher)
  )
  rest = -(log_q.exp() * others * log_p).sum(1)
  return target + rest


class Peer:
  """One step: forward of both, backward, clip, AdamW."""

  def __init__(
    self,
    config,
    parts,
    params,
    teacher_params,
    *,
    device: str,
    autocast: bool,
    compiled: bool,
  ):
    """A peer with our weights.

    Args:
      config: from `cases.config`.
      parts: the `experiment.Experiment` of that config.
      params: {"student", "methods"} of our state.
      teacher_params: the teacher's, LayerScale not folded.
      device: "cpu" or "cuda".
      autocast: use bfloat16 matrix products.
      compiled: use torch.compile.
    """
    objective = parts.objective
    self.loss_weights = objective.weights
    self.device, self.autocast = device, autocast
    student = from_ours(params["student"], config.student.variant)
    teacher = from_ours(teacher_params, config.teachers.teacher.variant)
    self.student, self.teacher = student.to(device).train(), teacher.to(device)
    self.teacher.eval().requires_grad_(False)
    if autocast:
      self.teacher.bfloat16()
    teacher_side = objective.teachers["teacher"].side
    widths = objective.student.width, teacher_side.width
    self.head = Head(*widths, params["methods"]["vitkd"]).to(device)
    self.scale = 1.0
    if objective.methods["vitkd"].module.reduction == "mean":
      self.scale = 1 / (objective.student_side.num_tokens * widths[1])
    self.stats = [
      [torch.tensor(x, device=device).view(3, 1, 1) for x in pair]
      for pair in (
        objective.student_stats,
        objective.teachers["teacher"].stats,
      )
    ]
    parameters = [*self.student.parameters(), *self.head.parameters()]
    self.parameters = parameters
    self.optimizer = torch.optim.AdamW(
      [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
      ],
      lr=1e-6,
      weight_decay=0.05,
      fused=True,
    )
    self.loss = torch.compile(self._loss) if compiled else self._loss

  def _loss(self, image, label, mask):
    image = image.float() / 255
    own, theirs = ((image - mean) / std for mean, std in self.stats)
    weight = self.loss_weights
    with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
      with torch.no_grad():
        if self.autocast:
          theirs = theirs.bfloat16()
        teacher_logits, *teacher_maps = maps(self.teacher, theirs)
      logits, *student_maps = maps(self.student, own)
      mimic, generation = self.head(*student_maps, *teacher_maps, mask)
    logits, teacher_logits = logits.float(), teacher_logits.float()
    task = functional.cross_entropy(logits, label, label_smoothing=0.1)
    features = (
      weight["vitkd/mimic"] * mimic + weight["vitkd/generation"] * generation
    )
    return (
      weight["task"] * task
      + self.scale * features.mean()
      + weight["nkd"] * nkd(logits, teacher_logits, label).mean()
    )

  def tensors(self, batch):
    """A batch from `Step.batch` on the device, images [B, 3, H, W]."""
    image = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).contiguous()
    label = torch.from_numpy(batch["label"]).long()
    return image.to(self.device), label.to(self.device)

  def draw_mask(self, batch_size: int):
    """Bool [B, N], True at the half of the tokens to replace."""
    tokens = self.teacher.patch_embed.num_patches
    draws = torch.rand(batch_size, tokens, device=self.device)
    return draws.argsort(1).argsort(1) >= tokens // 2

  def step(self, image, label):
    """One update; returns the loss, not waited for."""
    loss = self.loss(image, label, self.draw_mask(len(image)))
    self.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.parameters, 5.0)
    self.optimizer.step()
    return loss.detach()

  def wait(self):
    """Waits for the device."""
    if self.device != "cpu":
      torch.cuda.synchronize()

  def allocated_bytes(self) -> int | None:
    """Memory of all tensors on the device; None on a CPU."""
    return None if self.device == "cpu" else torch.cuda.memory_allocated()

  def release(self) -> None:
    """Returns the memory that no tensor holds, for others on the device."""
    torch.cuda.empty_cache()

  def reset_peak(self) -> None:
    """Lets `peak_bytes` begin anew."""
    torch.cuda.reset_peak_memory_stats()

  def peak_bytes(self) -> int:
    """Peak memory of all tensors since `reset_peak`."""
    return torch.cuda.max_memory_allocated()

  def own_bytes(self) -> int:
    """Memory of both models' parameters and buffers."""
    modules = self.student, self.teacher, self.head
    return sum(
      x.numel() * x.element_size()
      for module in modules
      for x in (*module.parameters(), *module.buffers())
    )
