"""NKD (arXiv:2303.13005): logits apart at the target class and elsewhere."""

from typing import Any

import flax.linen as nn
import jax

from vitkd_jax.distill import losses
from vitkd_jax.distill.view import LOGITS, Label, Needs, Side, View


class NKD(nn.Module):
  """Normalised knowledge distillation, see `losses.nkd`.

  Attributes:
    temperature: tau > 0, of the second term.
    gamma: weight >= 0 of the second term.
  """

  terms = {"nkd": 1.0}  # noqa: RUF012, read only
  temperature: float = losses.TEMPERATURE
  gamma: float = losses.GAMMA

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The logits of both.

    Args:
      fields: of this class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: a field is out of its range, or there are too few classes.
    """
    del teacher
    if not (fields.temperature > 0 and fields.gamma >= 0):
      raise ValueError(
        "expected temperature > 0 and gamma >= 0, got "
        f"{fields.temperature} and {fields.gamma}"
      )
    if (student.num_classes or 0) < 3:
      raise ValueError(
        f"expected at least 3 classes, got a dataset of {student.num_classes}: "
        "the softmax over a single non-target class is constant; use the "
        "method kl"
      )
    return LOGITS

  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"nkd": [B]}.

    Args:
      student: the student's view.
      teacher: the teacher's.
      label: its target's largest class counts.
      draws: none.
    """
    del draws
    return {
      "nkd": losses.nkd(
        student.logits,
        teacher.logits,
        label.target,
        temperature=self.temperature,
        gamma=self.gamma,
      )
    }
