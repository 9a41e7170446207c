"""Weighted transformed teacher matching (arXiv:2402.11148)."""

from typing import Any

import flax.linen as nn
import jax

from vitkd_jax.distill import losses
from vitkd_jax.distill.view import LOGITS, Label, Needs, Side, View


class WTTM(nn.Module):
  """TTM, each image weighted by how flat its target is: `losses.wttm`.

  The weight is that of the authors' pair ResNet34-18; for ViTs they published
  none. It does not carry over to other numbers of classes or gammas.

  Attributes:
    gamma: power > 0 that the teacher's probabilities are raised to.
  """

  terms = {"wttm": 1.6}  # noqa: RUF012, read only
  gamma: float = 0.8

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The logits of both.

    Args:
      fields: of this class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: gamma is not positive.
    """
    del student, teacher
    if not fields.gamma > 0:
      raise ValueError(f"expected gamma > 0, got {fields.gamma}")
    return LOGITS

  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"wttm": [B]}.

    Args:
      student: the student's view.
      teacher: the teacher's.
      label: not used.
      draws: none.
    """
    del label, draws
    value = losses.wttm(student.logits, teacher.logits, gamma=self.gamma)
    return {"wttm": value}
