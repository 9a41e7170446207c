"""Decoupled knowledge distillation (arXiv:2203.08679)."""

import jax

from vitkd_jax.distill import forms, losses
from vitkd_jax.distill.losses import classes
from vitkd_jax.distill.view import Label


class DKD(forms.LogitMethod):
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

  def check(self, num_classes: int) -> None:
    """Refuses fields out of their range, or too few classes.

    Args:
      num_classes: of the dataset.

    Raises:
      ValueError: there is one.
    """
    classes.check_positive(temperature=self.temperature)
    classes.check_at_least_zero(alpha=self.alpha, beta=self.beta)
    reason = "the softmax over a single non-target class is constant"
    forms.check_classes(num_classes, 3, reason)

  def compare(
    self, student: jax.Array, teacher: jax.Array, label: Label
  ) -> jax.Array:
    """The term, [B] float32.

    Args:
      student: logits [B, C].
      teacher: logits [B, C].
      label: its largest class is the target.
    """
    return losses.dkd(
      student,
      teacher,
      label.hard,
      alpha=self.alpha,
      beta=self.beta,
      temperature=self.temperature,
      standardise=self.standardise,
    )
