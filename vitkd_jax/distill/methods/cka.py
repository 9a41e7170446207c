"""Alignment of the tokens of an image (arXiv:1905.00414)."""

from typing import Any

import jax

from vitkd_jax.distill import forms, losses
from vitkd_jax.distill.view import Side


class CKA(forms.MapMethod):
  """1 - CKA of the tokens of each image, see `losses.cka`."""

  terms = {"cka": 1.0}  # noqa: RUF012, read only

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
    del number, side, draws
    return {"cka": losses.cka(student, teacher)}
