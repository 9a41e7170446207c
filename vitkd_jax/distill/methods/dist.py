"""DIST: correlations instead of a divergence (arXiv:2205.10536)."""

from typing import Any

import flax.linen as nn
import jax

from vitkd_jax.distill import losses
from vitkd_jax.distill.view import LOGITS, Label, Needs, Side, View


class DIST(nn.Module):
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
    if not fields.beta >= 0:
      raise ValueError(f"expected beta >= 0, got {fields.beta}")
    if not fields.gamma >= 0:
      raise ValueError(f"expected gamma >= 0, got {fields.gamma}")
    if (student.num_classes or 0) < 3:
      raise ValueError(
        f"expected at least 3 classes, got a dataset of {student.num_classes}: "
        "the correlation of two numbers is 1 or -1"
      )
    return LOGITS

  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"dist": [B]}.

    Args:
      student: the student's view.
      teacher: the teacher's.
      label: not used.
      draws: none.
    """
    del label, draws
    return {
      "dist": losses.dist(
        student.logits,
        teacher.logits,
        beta=self.beta,
        gamma=self.gamma,
        temperature=self.temperature,
        group=self.group or None,
      )
    }
