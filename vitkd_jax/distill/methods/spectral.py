"""SpectralKD (arXiv:2412.19055): maps compared by their spectra."""

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


class Spectral(nn.Module):
  """Squared distance of the spectra of two maps, see `losses.spectral`.

  The authors train DeiT-Ti by CaiT-S24 with blocks 0, 1, 6 to 11 and 0, 1, 18
  to 23, config.task.weight=0.1, kl at 0.9 and no Mixup.

  Attributes:
    blocks: of the student; negative ones count from the last.
    teacher_blocks: of the teacher, as many; none for those of the student.
    place: where in them: "+mlp" or "+sa" (residual stream), "mlp" or "sa", or
      "encoded" (after the last LayerNorm).
  """

  terms = {"spectral": 0.2}  # noqa: RUF012, read only
  blocks: Sequence[int] = (0, 1, -2, -1)
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
      ValueError: a model lacks a block, or the student is wider.
    """
    if student.width > teacher.width:
      raise ValueError(
        f"expected a teacher at least as wide as the student, {student.width}, "
        f"got {teacher.width}"
      )
    return needs_of_pairs(
      student, teacher, fields.blocks, fields.teacher_blocks, fields.place
    )

  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"spectral": [B]}, the mean over the maps.

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
    values = [losses.spectral(s, t, grid=student.side.grid) for s, t in found]
    return {"spectral": jnp.mean(jnp.stack(values), axis=0)}
