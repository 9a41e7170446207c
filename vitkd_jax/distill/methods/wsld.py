"""Weighted soft labels (arXiv:2102.00650)."""

from typing import Any

import flax.linen as nn
import jax

from vitkd_jax.distill import losses
from vitkd_jax.distill.view import LOGITS, Label, Needs, Side, View


class WSLD(nn.Module):
  """Soft labels, less where the student is better already: `losses.wsld`.

  Attributes:
    temperature: tau > 0, of both.
  """

  terms = {"wsld": 2.5}  # noqa: RUF012, read only
  temperature: float = 2.0

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The logits of both.

    Args:
      fields: of this class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: the temperature is not positive.
    """
    del student, teacher
    if not fields.temperature > 0:
      raise ValueError(f"expected temperature > 0, got {fields.temperature}")
    return LOGITS

  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"wsld": [B]}.

    Args:
      student: the student's view.
      teacher: the teacher's.
      label: its largest class is the target.
      draws: none.
    """
    del draws
    return {
      "wsld": losses.wsld(
        student.logits,
        teacher.logits,
        label.hard,
        temperature=self.temperature,
      )
    }
