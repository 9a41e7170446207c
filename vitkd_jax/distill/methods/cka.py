"""Alignment of the tokens of an image (arXiv:1905.00414)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.distill import losses
from vitkd_jax.distill.view import (
  Label,
  Needs,
  Side,
  View,
  needs_of_pairs,
  pairs,
)


class CKA(nn.Module):
  """1 - CKA of the tokens of each image, see `losses.cka`.

  Attributes:
    blocks: of the student; negative ones count from the last.
    teacher_blocks: of the teacher, as many; none for those of the student.
    place: where in them: "+mlp" or "+sa" (residual stream), "mlp" or "sa", or
      "encoded" (after the last LayerNorm).
  """

  terms = {"cka": 1.0}  # noqa: RUF012, read only
  blocks: Sequence[int] = (-1,)
  teacher_blocks: Sequence[int] | None = None
  place: str = "+mlp"

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The token maps of both.

    Args:
      fields: of this class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: a model lacks a block.
    """
    return needs_of_pairs(
      student, teacher, fields.blocks, fields.teacher_blocks, fields.place
    )

  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"cka": [B]}, the mean over the maps.

    Args:
      student: the student's view.
      teacher: the teacher's; its maps are resampled to the student's grid.
      label: not used.
      draws: none.
    """
    del label, draws
    found = pairs(
      student, teacher, self.blocks, self.teacher_blocks, self.place
    )
    values = [losses.cka(s, t) for s, t in found]
    return {"cka": jnp.mean(jnp.stack(values), axis=0)}
