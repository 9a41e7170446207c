"""DeiT's soft distillation (arXiv:2012.12877, section 4)."""

from typing import Any

import flax.linen as nn
import jax

from vitkd_jax.distill import losses
from vitkd_jax.distill.view import LOGITS, Label, Needs, Side, View


class DeiTSoft(nn.Module):
  """DeiT's soft distillation, divided by the classes: `losses.deit_soft`.

  With DeiT's alpha of 0.5 the labels have the other half:
  config.task.weight=0.5.

  Attributes:
    temperature: tau > 0, of both.
  """

  terms = {"deit_soft": 0.5}  # noqa: RUF012, read only
  temperature: float = 1.0

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
    """{"deit_soft": [B]}.

    Args:
      student: the student's view.
      teacher: the teacher's.
      label: not used.
      draws: none.
    """
    del label, draws
    return {
      "deit_soft": losses.deit_soft(
        student.logits, teacher.logits, temperature=self.temperature
      )
    }
