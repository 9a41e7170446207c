"""Which parts of two models are compared."""

from typing import Any

import jax

from vitkd_jax.evaluation import running, scoring


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


def outputs(
  model: scoring.Scored, params: Any, image: jax.Array
) -> tuple[jax.Array, Any]:
  """Logits and maps of images, with q, k and v where a model has them.

  Args:
    model: the model.
    params: its parameters.
    image: [B, H, W, 3] uint8.
  """
  shows = model.model.with_qkv() if model.model.qkv_heads else model.model
  stats = model.images.mean, model.images.std
  return running.outputs(shows, *stats, params, image)
