"""DeiT's hard-label distillation (arXiv:2012.12877, section 4)."""

from typing import Any

import flax.linen as nn
import jax

from vitkd_jax.distill import losses
from vitkd_jax.distill.view import LOGITS, Label, Needs, Side, View


class Hard(nn.Module):
  """Cross-entropy with the teacher's decision: `losses.hard_distillation`."""

  terms = {"hard": 1.0}  # noqa: RUF012, read only

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The logits of both.

    Args:
      fields: of this class.
      student: the student.
      teacher: the teacher.
    """
    del fields, student, teacher
    return LOGITS

  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"hard": [B]}.

    Args:
      student: the student's view.
      teacher: the teacher's.
      label: not used.
      draws: none.
    """
    del label, draws
    return {"hard": losses.hard_distillation(student.logits, teacher.logits)}
