"""DIST: correlations instead of a divergence (arXiv:2205.10536)."""

import jax

from vitkd_jax.distill import forms, losses
from vitkd_jax.distill.losses import classes
from vitkd_jax.distill.view import Label


class DIST(forms.LogitMethod):
  """Correlations of probabilities within images and classes: `losses.dist`.

  Attributes:
    beta: weight >= 0 of the correlation within an image.
    gamma: weight >= 0 of the correlation within a class, over images.
    temperature: tau > 0, of both.
    group: consecutive examples that are compared with each other, as one GPU's
      batch of the authors'; 0 for the whole batch.
  """

  terms = {"dist": 2.0}  # noqa: RUF012, read only
  across_batch = True
  beta: float = 1.0
  gamma: float = 1.0
  temperature: float = 1.0
  group: int = 0

  def check(self, num_classes: int) -> None:
    """Refuses fields out of their range, or too few classes.

    Args:
      num_classes: of the dataset.

    Raises:
      ValueError: there is one.
    """
    classes.check_positive(temperature=self.temperature)
    classes.check_at_least_zero(beta=self.beta, gamma=self.gamma)
    reason = "the correlation of two numbers is 1 or -1"
    forms.check_classes(num_classes, 3, reason)

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
    return losses.dist(
      student,
      teacher,
      beta=self.beta,
      gamma=self.gamma,
      temperature=self.temperature,
      group=self.group or None,
    )
