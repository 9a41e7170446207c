"""SpectralKD (arXiv:2412.19055): maps compared by their spectra."""

from collections.abc import Sequence
from typing import Any

import jax

from vitkd_jax.distill import forms, losses
from vitkd_jax.distill.view import Side


class Spectral(forms.MapMethod):
  """Squared distance of the spectra of two maps, see `losses.spectral`.

  The authors train DeiT-Ti by CaiT-S24 with blocks 0, 1, 6 to 11 and 0, 1, 18
  to 23, config.task.weight=0.1, kl at 0.9 and no Mixup.
  """

  terms = {"spectral": 0.2}  # noqa: RUF012, read only
  blocks: Sequence[int] = (0, 1, -2, -1)

  def check(self, student: Side, teacher: Side) -> None:
    """Refuses a student that is wider than its teacher.

    Args:
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: there is one.
    """
    for own, theirs in self.widths(student, teacher):
      if own > theirs:
        raise ValueError(
          f"expected a teacher at least as wide as the student, {own}, got "
          f"{theirs}"
        )

  def compare(
    self,
    number: int,
    student: jax.Array,
    teacher: jax.Array,
    side: Side,
    draws: Any,
  ) -> dict[str, jax.Array]:
    """{term: [B] float32} of one pair.

    Args:
      number: of the pair.
      student: map [B, N, D_s].
      teacher: map [B, N, D_t].
      side: the student.
      draws: none.
    """
    del number, draws
    return {"spectral": losses.spectral(student, teacher, grid=side.grid)}
