"""The losses once more in plain PyTorch, for any grid and lambda = 0.

Written from arXiv:2209.02432, arXiv:2303.13005 and arXiv:2012.12877 to stand
between the authors' code, which it must equal on the stored cases, and ours,
whose gradients it gives in full. All values are per image, [B].
Parameters are nested dicts of tensors in this package's layout.
"""

import torch
from torch.nn import functional


def dense(x, layer):
  """[..., D_s] -> [..., D_t]; without a layer the features themselves."""
  return x if layer is None else x @ layer["kernel"] + layer["bias"]


def convolve(x, layer):
  """3x3 convolution of [B, D, h, w], zero padding; kernel [3, 3, D, D]."""
  weight = layer["kernel"].permute(3, 2, 0, 1)
  return functional.conv2d(x, weight, layer["bias"], padding=1)


def mimic(student_low, teacher_low, params):
  """Sum over blocks 0 and 1, tokens and channels of the squared difference."""
  aligned = torch.stack(
    [
      dense(student_low[:, block], params.get(f"align_low_{block}"))
      for block in range(2)
    ],
    dim=1,
  )
  return ((aligned - teacher_low) ** 2).sum(dim=(1, 2, 3))


def before_relu(student_high, params, mask, grid):
  """The generator's first activation map [B, D_t, h, w]."""
  x = dense(student_high, params.get("align_high"))
  x = torch.where(mask[..., None], params["mask_token"], x)
  x = x.reshape(len(x), *grid, -1).permute(0, 3, 1, 2)
  return convolve(x, params["generator_0"])


def generation(student_high, teacher_high, params, mask, grid, ratio):
  """Squared error on the replaced tokens over lambda; on all at lambda 0."""
  hidden = before_relu(student_high, params, mask, grid).relu()
  x = convolve(hidden, params["generator_1"]).flatten(2).transpose(1, 2)
  error = ((x - teacher_high) ** 2).sum(-1)
  if ratio == 0:
    return error.sum(1)
  return (error * mask).sum(1) / ratio


def nkd(student, teacher, target, temperature=1.0, gamma=1.0):
  """Target class by its probability, the others by their own softmax."""
  label = target.argmax(1) if target.ndim == 2 else target
  rows = torch.arange(len(label))
  log_p, q = student.log_softmax(1), teacher.softmax(1)
  others = torch.ones_like(student, dtype=torch.bool)
  others[rows, label] = False
  student, teacher = (
    x[others].reshape(len(label), -1) / temperature for x in (student, teacher)
  )
  rest = (teacher.softmax(1) * student.log_softmax(1)).sum(1)
  return -q[rows, label] * log_p[rows, label] - gamma * temperature**2 * rest


def kl(student, teacher, temperature):
  """tau^2 KL(teacher || student) at temperature tau, arXiv:1503.02531."""
  divergence = functional.kl_div(
    (student / temperature).log_softmax(1),
    (teacher / temperature).log_softmax(1),
    reduction="none",
    log_target=True,
  )
  return temperature**2 * divergence.sum(1)


def soft_cross_entropy(student, target):
  """Cross-entropy with class probabilities."""
  return functional.cross_entropy(student, target, reduction="none")


def hard_distillation(student, teacher):
  """Cross-entropy with the teacher's arg max, arXiv:2012.12877 equation 3."""
  label = teacher.argmax(1)
  return functional.cross_entropy(student, label, reduction="none")
