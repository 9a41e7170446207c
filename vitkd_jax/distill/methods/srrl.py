"""SRRL (ICLR 2021): what the teacher's head makes of the student's feature."""

from typing import Any

import flax.linen as nn
import jax

from vitkd_jax.distill import losses, projectors
from vitkd_jax.distill.view import (
  Label,
  Needs,
  Side,
  Taps,
  View,
  check_pooled,
)


class SRRL(nn.Module):
  """The pooled feature, and the frozen head's logits of it: `losses.srrl`.

  The authors' connector is a convolution with BatchNorm and ReLU; features of
  ViTs have both signs, so here it is a linear layer and a LayerNorm. No ViT has
  been published with it.

  Attributes:
    layer_norm: normalise after the linear layer.
    only: the terms to compute.
  """

  terms = {"feature": 1.0, "logit": 1.0}  # noqa: RUF012, read only
  layer_norm: bool = True
  only: tuple[str, ...] = ("feature", "logit")

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The pooled features of both, the teacher's logits and head.

    Args:
      fields: of this class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: the teacher has no single linear head.
    """
    del fields
    check_pooled(student, "student")
    check_pooled(teacher, "teacher")
    return Needs(Taps(pooled=True), Taps(pooled=True, logits=True, head=True))

  @nn.compact
  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"feature": [B], "logit": [B]}.

    Args:
      student: the student's view.
      teacher: the teacher's.
      label: not used.
      draws: none.
    """
    del label, draws
    x = projectors.Projector(
      teacher.side.pooled_width,
      dtype_mm=student.side.dtype_mm,
      name="connector",
    )(student.pooled)
    if self.layer_norm:
      x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
    feature, logit = losses.srrl(
      x, teacher.pooled, teacher.logits, teacher.head
    )
    return {"feature": feature, "logit": logit}
