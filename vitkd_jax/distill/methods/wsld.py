"""Weighted soft labels (arXiv:2102.00650)."""

import jax

from vitkd_jax.distill import forms, losses
from vitkd_jax.distill.losses import classes
from vitkd_jax.distill.view import Label


class WSLD(forms.LogitMethod):
  """Soft labels, less where the student is better already: `losses.wsld`.

  Attributes:
    temperature: tau > 0, of both.
  """

  terms = {"wsld": 2.5}  # noqa: RUF012, read only
  temperature: float = 2.0

  def check(self, num_classes: int) -> None:
    """Refuses a temperature that is not positive.

    Args:
      num_classes: of the dataset.

    Raises:
      ValueError: there is one.
    """
    del num_classes
    classes.check_positive(temperature=self.temperature)

  def compare(
    self, student: jax.Array, teacher: jax.Array, label: Label
  ) -> jax.Array:
    """The term, [B] float32.

    Args:
      student: logits [B, C].
      teacher: logits [B, C].
      label: its largest class is the target.
    """
    return losses.wsld(
      student, teacher, label.hard, temperature=self.temperature
    )
