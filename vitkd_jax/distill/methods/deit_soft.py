"""DeiT's soft distillation (arXiv:2012.12877, section 4)."""

import jax

from vitkd_jax.distill import forms, losses
from vitkd_jax.distill.losses import classes
from vitkd_jax.distill.view import Label


class DeiTSoft(forms.LogitMethod):
  """DeiT's soft distillation, divided by the classes: `losses.deit_soft`.

  With DeiT's alpha of 0.5 the labels have the other half:
  config.task.weight=0.5.

  Attributes:
    temperature: tau > 0, of both.
  """

  terms = {"deit_soft": 0.5}  # noqa: RUF012, read only
  temperature: float = 1.0

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
      label: not used.
    """
    del label
    return losses.deit_soft(student, teacher, temperature=self.temperature)
