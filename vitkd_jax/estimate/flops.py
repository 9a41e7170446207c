"""FLOPs of a training step, by formula."""

import math

from vitkd_jax.training import objective as objectives


def per_image(objective: objectives.Objective) -> dict[str, float]:
  """FLOPs of a training step per image, by formula.

  Matrix products alone, two FLOPs per multiply-add. A backward pass counts
  twice its forward pass, except for the first layer, whose input needs no
  gradient. The compiler counts more (softmax, gelu, norms, optimiser) and less:
  it leaves out the convolutions' padding, and counts a loop over blocks or
  gradient-accumulation steps once.

  Args:
    objective: the models and the head.

  Returns:
    {"teacher", "student", "head", "total"}; student and head with both passes.
  """
  student, teacher, head = objective.student, objective.teacher, objective.head
  stem, rest = student.forward_flops(objective.student_grid)
  flops = {"teacher": 0.0, "student": 2 * stem + 3 * rest, "head": 0.0}
  if teacher is not None:
    assert objective.teacher_grid is not None
    flops["teacher"] = math.fsum(teacher.forward_flops(objective.teacher_grid))
  if head is not None:
    number, width = objective.num_tokens, head.teacher_width
    align = 2.0 * number * student.width * width
    if student.width == width and not head.always_align:
      align = 0.0
    generate = align + 2 * 2 * number * 9 * width**2
    flops["head"] = 3 * (
      objective.num_low * align * ("mimic" in head.terms)
      + generate * ("generation" in head.terms)
    )
  return flops | {"total": sum(flops.values())}
