"""Distillation by softened logits (arXiv:1503.02531)."""

import jax

from vitkd_jax.distill import forms, losses
from vitkd_jax.distill.losses import classes
from vitkd_jax.distill.view import Label


class KL(forms.LogitMethod):
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

  def check(self, num_classes: int) -> None:
    """Refuses a temperature that is not positive, or too few classes.

    Args:
      num_classes: of the dataset.

    Raises:
      ValueError: there is one.
    """
    classes.check_positive(temperature=self.temperature)
    if self.standardise and num_classes < 3:
      raise ValueError(
        "expected at least 3 classes with standardise, got a dataset of "
        f"{num_classes}: two standardised logits are constant"
      )

  def compare(
    self, student: jax.Array, teacher: jax.Array, label: Label
  ) -> jax.Array:
    """The term, [B] float32.

    Args:
      student: logits [B, C].
      teacher: logits [B, C].
      label: not used.
    """
    del label
    return losses.kl(
      student,
      teacher,
      temperature=self.temperature,
      standardise=self.standardise,
    )
