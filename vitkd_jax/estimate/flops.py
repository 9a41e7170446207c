"""FLOPs of a training step, by formula."""

import math

from vitkd_jax.distill import objective as objectives


def per_image(objective: objectives.Objective) -> dict[str, float]:
  """FLOPs of a training step per image, by formula.

  Matrix products alone, two FLOPs per multiply-add. A backward pass counts
  twice its forward pass, except for the first layer, whose input needs no
  gradient. The compiler counts more (softmax, gelu, norms, optimiser) and less:
  it leaves out the convolutions' padding, and counts a loop over blocks or
  gradient-accumulation steps once.

  Args:
    objective: the models and the methods.

  Returns:
    {"teachers", "student", "methods", "total"}; student and methods with both
    passes.
  """
  side = objective.student_side
  stem, rest = objective.student.forward_flops(side.grid)
  flops = {
    "teachers": math.fsum(
      part
      for teacher in objective.teachers.values()
      for part in teacher.model.forward_flops(teacher.side.grid)
    ),
    "student": 2 * stem + 3 * rest,
    "methods": 3 * math.fsum(_forward(objective, x) for x in objective.methods),
  }
  return flops | {"total": sum(flops.values())}


def _forward(objective: objectives.Objective, name: str) -> float:
  """FLOPs of a method's forward pass; 0 where its class does not say."""
  method = objective.methods[name]
  count = getattr(method.module, "flops", None)
  if count is None:
    return 0.0
  teacher = objective.teachers[method.teacher].side if method.teacher else None
  return count(objective.student_side, teacher)
