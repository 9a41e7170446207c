"""Which parts of two models are compared."""

from vitkd_jax.evaluation import scoring


def grid(model: scoring.Scored) -> tuple[int, int]:
  """Rows and columns of a model's patch tokens.

  Args:
    model: the model.
  """
  return model.model.grid(*model.images.size)


def pairs(depth: int, teacher_depth: int) -> list[tuple[int, int]]:
  """For each block of a teacher the student's at the same relative depth.

  Args:
    depth: blocks of the student.
    teacher_depth: blocks of the teacher.

  Returns:
    (block of the student, block of the teacher), by the latter.
  """
  return [
    (max(round((block + 1) / teacher_depth * depth), 1) - 1, block)
    for block in range(teacher_depth)
  ]


def aligned(depth: int, teacher_depth: int) -> list[tuple[int, int]]:
  """For each block of a student the teacher's at the same relative depth.

  Args:
    depth: blocks of the student.
    teacher_depth: blocks of the teacher.

  Returns:
    (block of the student, block of the teacher), by the former.
  """
  swapped = pairs(teacher_depth, depth)
  return [(block, other) for other, block in swapped]
