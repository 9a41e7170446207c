"""What methods of one form share: those of logits, and those of token maps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.distill import tokens
from vitkd_jax.distill.view import (
  Label,
  Needs,
  Side,
  Taps,
  View,
  check_maps,
)


class LogitMethod(nn.Module):
  """A method of one term, which compares the logits of both models.

  A class of this form has `terms`, `compare` and, where there are values that
  cannot work, `check`.
  """

  terms: ClassVar[Mapping[str, float]]

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The logits of both.

    Args:
      fields: of the class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: a field is out of its range, or there are too few classes.
    """
    del teacher
    fields.check(student.num_classes or 0)
    return Needs(Taps(logits=True), Taps(logits=True))

  def check(self, num_classes: int) -> None:
    """Refuses fields, or a number of classes, that cannot work.

    Args:
      num_classes: of the dataset.

    Raises:
      ValueError: there is one.
    """

  def compare(
    self, student: jax.Array, teacher: jax.Array, label: Label
  ) -> jax.Array:
    """The term, [B] float32.

    Args:
      student: logits [B, C].
      teacher: logits [B, C].
      label: what the dataset says.
    """
    raise NotImplementedError

  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{term: [B]}.

    Args:
      student: the student's view.
      teacher: the teacher's.
      label: what the dataset says.
      draws: none.
    """
    del draws
    (term,) = self.terms
    return {term: self.compare(student.logits, teacher.logits, label)}


class BlockMethod(nn.Module):
  """A method that compares blocks in pairs, and takes the mean over them.

  A class of this form has `terms`, `needs`, `features` and `compare`.

  Attributes:
    blocks: of the student; negative ones count from the last.
    teacher_blocks: of the teacher, as many; none for those of the student.
  """

  terms: ClassVar[Mapping[str, float]]
  blocks: Sequence[int] = (-1,)
  teacher_blocks: Sequence[int] | None = None

  def block_pairs(self) -> list[tuple[int, int]]:
    """(block of the student, block of the teacher) of each pair.

    Raises:
      ValueError: there are not as many of both.
    """
    theirs = self.teacher_blocks or self.blocks
    return list(zip(self.blocks, theirs, strict=True))

  def features(self, student: View, teacher: View) -> Iterable[tuple[Any, Any]]:
    """What to compare, of the student and of the teacher.

    Args:
      student: the student's view.
      teacher: the teacher's.
    """
    raise NotImplementedError

  def compare(
    self, number: int, student: Any, teacher: Any, side: Side, draws: Any
  ) -> dict[str, jax.Array]:
    """{term: [B] float32} of one pair.

    Args:
      number: of the pair.
      student: from `features`.
      teacher: likewise.
      side: the student.
      draws: from `draws`.
    """
    raise NotImplementedError

  @nn.compact
  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{term: [B]}, the mean over the pairs.

    Args:
      student: the student's view.
      teacher: the teacher's; its maps are resampled to the student's grid.
      label: not used.
      draws: from `draws`.
    """
    del label
    found = [
      self.compare(number, *pair, student.side, draws)
      for number, pair in enumerate(self.features(student, teacher))
    ]
    return jax.tree.map(lambda *each: jnp.mean(jnp.stack(each), axis=0), *found)


class MapMethod(BlockMethod):
  """A method that compares token maps in pairs, and takes the mean over them.

  A class of this form has `terms`, `compare` and, where there are values that
  cannot work, `check`. It compares maps [B, N, D_s] and [B, N, D_t].

  Attributes:
    place: where in the blocks: "+mlp" or "+sa" (residual stream), "mlp" or
      "sa", or "encoded" (after the last LayerNorm).
  """

  place: str = "+mlp"

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The token maps of both.

    Args:
      fields: of the class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: a field is out of its range, a model lacks a block, or there
        are not as many blocks of both.
    """
    if not fields.blocks:
      raise ValueError("expected at least one block in blocks, got none")
    if fields.teacher_blocks and len(fields.teacher_blocks) != len(
      fields.blocks
    ):
      raise ValueError(
        f"expected as many teacher_blocks as blocks, {len(fields.blocks)}, got "
        f"{len(fields.teacher_blocks)}"
      )
    own, theirs = (
      tuple((block, fields.place) for block in blocks)
      for blocks in (fields.blocks, fields.teacher_blocks or fields.blocks)
    )
    check_maps(student, own)
    check_maps(teacher, theirs)
    fields.check(student, teacher)
    return Needs(Taps(maps=own), Taps(maps=theirs))

  def check(self, student: Side, teacher: Side) -> None:
    """Refuses fields, or models, that cannot work.

    Args:
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: there is one.
    """

  def features(
    self, student: View, teacher: View
  ) -> Iterable[tuple[jax.Array, jax.Array]]:
    """Maps [B, N, D_s] and [B, N, D_t] on the student's grid.

    Args:
      student: the student's view.
      teacher: the teacher's.
    """
    grids = teacher.side.grid, student.side.grid
    for block, other in self.block_pairs():
      yield (
        student.map(block, self.place),
        tokens.resample(teacher.map(other, self.place), *grids),
      )

  def widths(self, student: Side, teacher: Side) -> list[tuple[int, int]]:
    """(D_s, D_t) of each pair.

    Args:
      student: the student.
      teacher: the teacher.
    """
    return [
      (student.width_of(own, self.place), teacher.width_of(other, self.place))
      for own, other in self.block_pairs()
    ]


def check_classes(num_classes: int, least: int, reason: str) -> None:
  """Refuses a dataset of too few classes.

  Args:
    num_classes: of the dataset.
    least: smallest number that works.
    reason: why no smaller one does.

  Raises:
    ValueError: there are fewer.
  """
  if num_classes < least:
    raise ValueError(
      f"expected at least {least} classes, got a dataset of {num_classes}: "
      f"{reason}"
    )


def check_mask_ratio(ratio: float) -> None:
  """Refuses a ratio outside [0, 1).

  Args:
    ratio: of what is masked.

  Raises:
    ValueError: it is outside.
  """
  if not 0 <= ratio < 1:
    raise ValueError(f"expected 0 <= mask_ratio < 1, got {ratio}")
