"""Decoupled knowledge distillation (arXiv:2203.08679)."""

from typing import Any

import flax.linen as nn
import jax

from vitkd_jax.distill import losses
from vitkd_jax.distill.view import LOGITS, Label, Needs, Side, View


class DKD(nn.Module):
  """Target class and other classes apart, see `losses.dkd`.

  The defaults are the authors' on ImageNet, which ramp the weight up:
  config.methods.dkd.ramp_epochs (1 there, 20 on CIFAR).

  Attributes:
    alpha: weight >= 0 of the target class's part.
    beta: weight >= 0 of the other classes' part.
    temperature: tau > 0, of both.
    standardise: give each image's logits mean 0 and deviation 1 first.
  """

  terms = {"dkd": 1.0}  # noqa: RUF012, read only
  alpha: float = 1.0
  beta: float = 0.5
  temperature: float = 1.0
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
    if not fields.alpha >= 0:
      raise ValueError(f"expected alpha >= 0, got {fields.alpha}")
    if not fields.beta >= 0:
      raise ValueError(f"expected beta >= 0, got {fields.beta}")
    if (student.num_classes or 0) < 3:
      raise ValueError(
        f"expected at least 3 classes, got a dataset of {student.num_classes}: "
        "the softmax over a single non-target class is constant"
      )
    return LOGITS

  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"dkd": [B]}.

    Args:
      student: the student's view.
      teacher: the teacher's.
      label: its largest class is the target.
      draws: none.
    """
    del draws
    return {
      "dkd": losses.dkd(
        student.logits,
        teacher.logits,
        label.hard,
        alpha=self.alpha,
        beta=self.beta,
        temperature=self.temperature,
        standardise=self.standardise,
      )
    }
