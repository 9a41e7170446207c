"""USKD: soft labels without a teacher (arXiv:2303.13005)."""

from typing import Any

import flax.linen as nn
import jax

from vitkd_jax.distill import forms, losses, projectors
from vitkd_jax.distill.view import Label, Needs, Side, Taps, View, check_maps


class USKD(nn.Module):
  """Universal self-knowledge distillation, see `losses.uskd`.

  It learns from no teacher: a linear layer on the CLS token of a middle block
  guesses, too, and the ranks of both guesses make the soft labels.

  Attributes:
    block: whose CLS token; the authors' is depth // 2 - 1.
    group: consecutive examples whose mean counts; 0 for the whole batch.
    only: the terms to compute.
  """

  terms = {"target": 1.0, "non_target": 0.1, "weak": 0.005}  # noqa: RUF012
  learns_alone = True
  across_batch = True
  block: int | None = None
  group: int = 0
  only: tuple[str, ...] = ("target", "non_target", "weak")

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side | None) -> Needs:
    """The student's logits and one of its CLS tokens.

    Args:
      fields: of this class.
      student: the student.
      teacher: not used.

    Raises:
      ValueError: the student has no CLS token or no such block, or there are
        too few classes.
    """
    del teacher
    if not student.has_class_token:
      raise ValueError("expected a student with a CLS token, got none")
    block = _block(fields.block, student.depth)
    cls = ((block, "+mlp"),)
    check_maps(student, cls)
    reason = "a softmax over a single class is constant"
    forms.check_classes(student.num_classes or 0, 4, reason)
    return Needs(Taps(logits=True, cls=cls))

  @nn.compact
  def __call__(
    self, student: View, teacher: View | None, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"target": [B], "non_target": [B], "weak": [B]}.

    Args:
      student: the student's view.
      teacher: none.
      label: mixed, not smoothed.
      draws: none.
    """
    del teacher, draws
    block = _block(self.block, student.side.depth)
    weak = projectors.Projector(
      student.logits.shape[-1], dtype_mm=student.side.dtype_mm, name="weak"
    )(student.cls(block))
    return losses.uskd(
      student.logits, weak, label.mixed, group=self.group or None
    )


def _block(block: int | None, depth: int) -> int:
  return max(depth // 2 - 1, 0) if block is None else block
