"""DeiT's hard-label distillation (arXiv:2012.12877, section 4)."""

import jax

from vitkd_jax.distill import forms, losses
from vitkd_jax.distill.view import Label


class Hard(forms.LogitMethod):
  """Cross-entropy with the teacher's decision: `losses.hard_distillation`."""

  terms = {"hard": 1.0}  # noqa: RUF012, read only

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
    return losses.hard_distillation(student, teacher)
