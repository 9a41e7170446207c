"""Regression of a teacher's features by a trained projector."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.distill import losses, projectors
from vitkd_jax.distill.view import (
  Label,
  Needs,
  Side,
  Taps,
  View,
  check_pooled,
  needs_of_pairs,
  pairs,
)

_TAPS = ("map", "cls", "pooled")


class Regress(nn.Module):
  """A metric between projected features of the student and the teacher's.

  One term for the family, whose published points are settings of it, see
  `losses.regression` and docs/methods.md: FitNets, ScaleKD's dual view,
  Proteus, UNIC and VkD.

  Attributes:
    tap: what is compared: "map" (patch tokens), "cls" (the CLS token) or
      "pooled" (what the head reads; of no block).
    blocks: of the student; negative ones count from the last.
    teacher_blocks: of the teacher, as many; none for those of the student.
    place: where in them: "+mlp" or "+sa" (residual stream), "mlp" or "sa", or
      "encoded" (after the last LayerNorm).
    projector: from the student's width to the teacher's, see
      `projectors.Projector`.
    hidden: width of the hidden layer of the projector "mlp".
    metric: see `losses.METRICS`.
    student_norm: of the projected features, see `losses.NORMS`.
    teacher_norm: of the teacher's features.
    reduction: "mean" or "sum" over tokens and channels.
  """

  terms = {"regress": 0.2}  # noqa: RUF012, read only
  tap: str = "map"
  blocks: Sequence[int] = (-1,)
  teacher_blocks: Sequence[int] | None = None
  place: str = "+mlp"
  projector: str = "linear"
  hidden: int = 768
  metric: str = "mse"
  student_norm: str = "none"
  teacher_norm: str = "none"
  reduction: str = "mean"

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The tapped features of both.

    Args:
      fields: of this class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: an unknown value, or a model lacks what is tapped.
    """
    norms = tuple(losses.NORMS)
    for name, known in (
      ("tap", _TAPS),
      ("projector", projectors.KINDS),
      ("metric", tuple(losses.METRICS)),
      ("student_norm", norms),
      ("teacher_norm", norms),
      ("reduction", losses.REDUCTIONS),
    ):
      if getattr(fields, name) not in known:
        raise ValueError(
          f"expected {name} to be one of {', '.join(known)}, got "
          f"{getattr(fields, name)!r}"
        )
    if fields.projector == "none" and student.width != teacher.width:
      raise ValueError(
        f"expected a teacher as wide as the student, {student.width}, with "
        f"projector 'none', got {teacher.width}"
      )
    if fields.tap == "pooled":
      check_pooled(student, "student")
      check_pooled(teacher, "teacher")
      return Needs(Taps(pooled=True), Taps(pooled=True))
    needs = needs_of_pairs(
      student, teacher, fields.blocks, fields.teacher_blocks, fields.place
    )
    if fields.tap == "map":
      return needs
    for who, side in (("student", student), ("teacher", teacher)):
      if not side.has_class_token:
        raise ValueError(f"expected a {who} with a CLS token, got none")
    assert needs.teacher is not None
    return Needs(Taps(cls=needs.student.maps), Taps(cls=needs.teacher.maps))

  @nn.compact
  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"regress": [B]}, the mean over the blocks.

    Args:
      student: the student's view.
      teacher: the teacher's; its maps are resampled to the student's grid.
      label: not used.
      draws: none.
    """
    del label, draws
    values = []
    for i, (s, t) in enumerate(self._pairs(student, teacher)):
      s = projectors.Projector(
        teacher.side.width,
        self.projector,
        hidden=self.hidden,
        dtype_mm=student.side.dtype_mm,
        name=f"projector_{i}",
      )(s)
      values.append(
        losses.regression(
          s,
          t,
          metric=self.metric,
          student_norm=self.student_norm,
          teacher_norm=self.teacher_norm,
          reduction=self.reduction,
        )
      )
    return {"regress": jnp.mean(jnp.stack(values), axis=0)}

  @property
  def across_batch(self) -> bool:
    """Whether an example's value depends on others."""
    return "batch_norm" in (self.student_norm, self.teacher_norm)

  def flops(self, student: Side, teacher: Side) -> float:
    """FLOPs of an image's forward pass, in matrix products.

    Args:
      student: the student.
      teacher: the teacher.
    """
    tokens = student.num_tokens if self.tap == "map" else 1
    maps = 1 if self.tap == "pooled" else len(self.blocks)
    each = projectors.flops(
      self.projector, student.width, teacher.width, self.hidden
    )
    return maps * tokens * each

  def _pairs(self, student: View, teacher: View) -> Any:
    if self.tap == "pooled":
      return [(student.pooled, teacher.pooled)]
    if self.tap == "map":
      return pairs(
        student, teacher, self.blocks, self.teacher_blocks, self.place
      )
    others = self.teacher_blocks or self.blocks
    return [
      (student.cls(block, self.place), teacher.cls(other, self.place))
      for block, other in zip(self.blocks, others, strict=True)
    ]
