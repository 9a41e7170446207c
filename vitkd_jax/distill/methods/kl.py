"""Distillation by softened logits (arXiv:1503.02531)."""

from typing import Any

import flax.linen as nn
import jax

from vitkd_jax.distill import losses
from vitkd_jax.distill.view import LOGITS, Label, Needs, Side, View


class KL(nn.Module):
  """tau^2 KL(teacher || student), see `losses.kl`.

  FunMatch (arXiv:2106.05237) is this alone: config.task.weight=0.

  Attributes:
    temperature: tau > 0, of both.
    standardise: give each image's logits mean 0 and deviation 1 first, of both
      (arXiv:2403.01427).
  """

  terms = {"kl": 1.0}  # noqa: RUF012, read only
  temperature: float = losses.TEMPERATURE
  standardise: bool = False

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
    if not fields.temperature > 0:
      raise ValueError(f"expected temperature > 0, got {fields.temperature}")
    if fields.standardise and (student.num_classes or 0) < 3:
      raise ValueError(
        "expected at least 3 classes with standardise, got a dataset of "
        f"{student.num_classes}: two standardised logits are constant"
      )
    return LOGITS

  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"kl": [B]}.

    Args:
      student: the student's view.
      teacher: the teacher's.
      label: not used.
      draws: none.
    """
    del label, draws
    return {
      "kl": losses.kl(
        student.logits,
        teacher.logits,
        temperature=self.temperature,
        standardise=self.standardise,
      )
    }
