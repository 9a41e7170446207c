"""Regression of a teacher's features by a trained projector."""

from typing import Any

import jax

from vitkd_jax.distill import forms, losses, projectors
from vitkd_jax.distill.losses import arrays
from vitkd_jax.distill.view import Needs, Side, Taps, View, check_pooled

_TAPS = ("map", "cls", "pooled")


class Regress(forms.MapMethod):
  """A metric between projected features of the student and the teacher's.

  One term for the family, whose published points are settings of it, see
  `losses.regression` and docs/methods.md: FitNets, ScaleKD's dual view,
  Proteus, UNIC and VkD.

  Attributes:
    tap: what is compared: "map" (patch tokens), "cls" (the CLS token) or
      "pooled" (what the head reads; of no block).
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
    if fields.tap == "pooled":
      fields.check(student, teacher)
      check_pooled(student, "student")
      check_pooled(teacher, "teacher")
      return Needs(Taps(pooled=True), Taps(pooled=True))
    needs = forms.MapMethod.needs(fields, student, teacher)
    if fields.tap == "map":
      return needs
    for who, side in (("student", student), ("teacher", teacher)):
      if not side.has_class_token:
        raise ValueError(f"expected a {who} with a CLS token, got none")
    assert needs.teacher is not None
    return Needs(Taps(cls=needs.student.maps), Taps(cls=needs.teacher.maps))

  def check(self, student: Side, teacher: Side) -> None:
    """Refuses unknown values, and widths that have no projector.

    Args:
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: there is one.
    """
    arrays.check_known("tap", self.tap, _TAPS)
    arrays.check_known("projector", self.projector, projectors.KINDS)
    arrays.check_known("metric", self.metric, losses.METRICS)
    arrays.check_known("student_norm", self.student_norm, losses.NORMS)
    arrays.check_known("teacher_norm", self.teacher_norm, losses.NORMS)
    arrays.check_known("reduction", self.reduction, losses.REDUCTIONS)
    if self.projector == "cross_attention" and self.tap != "map":
      raise ValueError(
        "expected tap 'map' with projector 'cross_attention', which attends to "
        f"tokens, got {self.tap!r}"
      )
    for own, theirs in self.widths(student, teacher):
      if self.projector == "none" and own != theirs:
        raise ValueError(
          f"expected a teacher as wide as the student, {own}, with projector "
          f"'none', got {theirs}"
        )

  def widths(self, student: Side, teacher: Side) -> list[tuple[int, int]]:
    """(D_s, D_t) of each pair, by the tap.

    Args:
      student: the student.
      teacher: the teacher.
    """
    if self.tap == "pooled":
      return [(student.pooled_width, teacher.pooled_width)]
    return super().widths(student, teacher)

  def features(self, student: View, teacher: View) -> Any:
    """What to compare, by the tap.

    Args:
      student: the student's view.
      teacher: the teacher's.
    """
    if self.tap == "pooled":
      return [(student.pooled, teacher.pooled)]
    if self.tap == "map":
      return super().features(student, teacher)
    return [
      (student.cls(block, self.place), teacher.cls(other, self.place))
      for block, other in self.block_pairs()
    ]

  def compare(
    self,
    number: int,
    student: jax.Array,
    teacher: jax.Array,
    side: Side,
    draws: Any,
  ) -> dict[str, jax.Array]:
    """{"regress": [B] float32} of one pair.

    Args:
      number: of the pair.
      student: features [B, N, D_s] or [B, D_s].
      teacher: features [B, N, D_t] or [B, D_t].
      side: the student.
      draws: none.
    """
    del draws
    projected = projectors.Projector(
      teacher.shape[-1],
      self.projector,
      hidden=self.hidden,
      dtype_mm=side.dtype_mm,
      name=f"projector_{number}",
    )(student)
    value = losses.regression(
      projected,
      teacher,
      metric=self.metric,
      student_norm=self.student_norm,
      teacher_norm=self.teacher_norm,
      reduction=self.reduction,
    )
    return {"regress": value}

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
    return tokens * sum(
      projectors.flops(self.projector, *widths, self.hidden, tokens)
      for widths in self.widths(student, teacher)
    )
