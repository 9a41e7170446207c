"""NKD (arXiv:2303.13005): logits apart at the target class and elsewhere."""

import jax

from vitkd_jax.distill import forms, losses
from vitkd_jax.distill.view import Label


class NKD(forms.LogitMethod):
  """Normalised knowledge distillation, see `losses.nkd`.

  Attributes:
    temperature: tau > 0, of the second term.
    gamma: weight >= 0 of the second term.
  """

  terms = {"nkd": 1.0}  # noqa: RUF012, read only
  temperature: float = losses.TEMPERATURE
  gamma: float = losses.GAMMA

  def check(self, num_classes: int) -> None:
    """Refuses fields out of their range, or too few classes.

    Args:
      num_classes: of the dataset.

    Raises:
      ValueError: there is one.
    """
    if not (self.temperature > 0 and self.gamma >= 0):
      raise ValueError(
        "expected temperature > 0 and gamma >= 0, got "
        f"{self.temperature} and {self.gamma}"
      )
    reason = (
      "the softmax over a single non-target class is constant; use the method "
      "kl"
    )
    forms.check_classes(num_classes, 3, reason)

  def compare(
    self, student: jax.Array, teacher: jax.Array, label: Label
  ) -> jax.Array:
    """The term, [B] float32.

    Args:
      student: logits [B, C].
      teacher: logits [B, C].
      label: its target's largest class counts.
    """
    return losses.nkd(
      student,
      teacher,
      label.target,
      temperature=self.temperature,
      gamma=self.gamma,
    )
