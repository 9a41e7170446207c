"""Relations of queries, keys and values (MiniLMv2, arXiv:2012.15828; G2SD)."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax

from vitkd_jax.distill import forms, losses, view
from vitkd_jax.distill.losses import arrays
from vitkd_jax.distill.view import Needs, Side, Taps, View


class Relation(forms.BlockMethod):
  """KL between the relations of two attentions, see `losses.qkv_relation`.

  Widths and heads may differ, tokens may not. MiniLMv2 takes one block of a
  deep teacher that is not its last; G2SD relates all nine pairs.

  Attributes:
    pairs: of "qq", "qk" ... "vv".
    relation_heads: heads into which both are split anew, a divisor of both
      widths; 0 for the student's.
    tokens: "all", or "patches" to leave out CLS and other tokens before them.
  """

  terms = {"relation": 1.0}  # noqa: RUF012, read only
  pairs: Sequence[str] = losses.MINILM_PAIRS
  relation_heads: int = 0
  tokens: str = "all"

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """Query, key and value of both.

    Args:
      fields: of this class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: a field is out of its range, or the models cannot be
        related.
    """
    if not fields.pairs:
      raise ValueError("expected at least one pair in pairs, got none")
    for pair in fields.pairs:
      arrays.check_known("a pair", pair, losses.PAIRS)
    arrays.check_known("tokens", fields.tokens, ("all", "patches"))
    theirs = tuple(fields.teacher_blocks or fields.blocks)
    if not fields.blocks or len(theirs) != len(fields.blocks):
      raise ValueError(
        f"expected one block or more in blocks, and as many in teacher_blocks, "
        f"got {len(fields.blocks)} and {len(theirs)}"
      )
    for side, blocks in ((student, fields.blocks), (teacher, theirs)):
      view.check_maps(side, tuple((block, side.places[0]) for block in blocks))
      if not side.qkv_heads:
        raise ValueError(
          "expected models whose query, key and value can be read, got one "
          "without"
        )
    counts = [fields.count(side) for side in (student, teacher)]
    if counts[0] != counts[1] or student.grid != teacher.grid:
      raise ValueError(
        f"expected a teacher of the student's tokens, {counts[0]} on a grid of "
        f"{student.grid[0]}x{student.grid[1]}, got {counts[1]} on "
        f"{teacher.grid[0]}x{teacher.grid[1]}; if only the tokens before the "
        "patches differ, set tokens='patches'"
      )
    heads = fields.relation_heads or student.qkv_heads
    for own, other in fields.block_pairs():
      widths = student.width_of(own), teacher.width_of(other)
      if heads < 1 or any(width % heads for width in widths):
        raise ValueError(
          f"expected relation_heads to divide the widths {widths[0]} (student) "
          f"and {widths[1]} (teacher), got {heads}"
        )
    return Needs(Taps(qkv=tuple(fields.blocks)), Taps(qkv=theirs))

  def count(self, side: Side) -> int:
    """Number of tokens of a model that are related.

    Args:
      side: the model.
    """
    prefix = side.num_prefix_tokens if self.tokens == "all" else 0
    return prefix + side.num_tokens

  def features(
    self, student: View, teacher: View
  ) -> Iterable[tuple[list[jax.Array], list[jax.Array]]]:
    """Query, key and value of both.

    Args:
      student: the student's view.
      teacher: the teacher's.
    """

    def shown(of: View, block: int) -> list[jax.Array]:
      skipped = of.side.num_prefix_tokens if self.tokens == "patches" else 0
      return [x[:, skipped:] for x in of.relations(block)]

    for own, other in self.block_pairs():
      yield shown(student, own), shown(teacher, other)

  def compare(
    self, number: int, student: Any, teacher: Any, side: Side, draws: Any
  ) -> dict[str, jax.Array]:
    """{"relation": [B] float32} of one pair.

    Args:
      number: of the pair.
      student: query, key and value.
      teacher: likewise.
      side: the student.
      draws: none.
    """
    del number, side, draws
    value = losses.qkv_relation(
      student,
      teacher,
      pairs=self.pairs,
      relation_heads=self.relation_heads or None,
    )
    return {"relation": value}

  def flops(self, student: Side, teacher: Side) -> float:
    """FLOPs of an image's forward pass, in matrix products.

    Args:
      student: the student.
      teacher: the teacher.
    """
    each = 2.0 * self.count(student) ** 2 * len(self.pairs)
    return each * sum(
      student.width_of(own) + teacher.width_of(other)
      for own, other in self.block_pairs()
    )
