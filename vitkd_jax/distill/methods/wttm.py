"""Weighted transformed teacher matching (arXiv:2402.11148)."""

import jax

from vitkd_jax.distill import losses
from vitkd_jax.distill.methods import ttm
from vitkd_jax.distill.view import Label


class WTTM(ttm.TTM):
  """TTM, each image weighted by how flat its target is: `losses.wttm`."""

  terms = {"wttm": 1.6}  # noqa: RUF012, read only

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
