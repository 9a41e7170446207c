"""Weighted transformed teacher matching (arXiv:2402.11148)."""

import jax

from vitkd_jax.distill import forms, losses
from vitkd_jax.distill.losses import classes
from vitkd_jax.distill.view import Label


class WTTM(forms.LogitMethod):
  """TTM, each image weighted by how flat its target is: `losses.wttm`.

  The weight is that of the authors' pair ResNet34-18; for ViTs they published
  none. It does not carry over to other numbers of classes or gammas.

  Attributes:
    gamma: power > 0 that the teacher's probabilities are raised to.
  """

  terms = {"wttm": 1.6}  # noqa: RUF012, read only
  gamma: float = 0.8

  def check(self, num_classes: int) -> None:
    """Refuses a gamma that is not positive.

    Args:
      num_classes: of the dataset.

    Raises:
      ValueError: there is one.
    """
    del num_classes
    classes.check_positive(gamma=self.gamma)

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
    return losses.wttm(student, teacher, gamma=self.gamma)
