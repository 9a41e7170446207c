"""Which maps to compare: those that a student lacks and could represent."""

from collections.abc import Mapping, Sequence
from typing import Any

# A student that lacks less of a map has little to learn from it.
_LEAST = 0.05
_MOST_PAIRS = 2


def of(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The pairs of blocks of which the student lacks most, and how to use them.

  Args:
    pairs: each with "student", "teacher" (blocks), "explained", "possible" and
      "missing".

  Returns:
    "pairs" (at most two, by teacher's block; one of each student's block),
    "because" (a sentence each) and "options" of a training's command line; all
    empty where the student lacks nothing.
  """
  chosen: list[Mapping[str, Any]] = []
  for pair in sorted(pairs, key=lambda x: -x["missing"]):
    taken = {x["student"] for x in chosen}
    if (
      pair["missing"] >= _LEAST
      and len(chosen) < _MOST_PAIRS
      and pair["student"] not in taken
    ):
      chosen.append(pair)
  chosen.sort(key=lambda x: x["teacher"])
  if not chosen:
    return {"pairs": [], "because": [], "options": []}
  own = tuple(x["student"] for x in chosen)
  theirs = tuple(x["teacher"] for x in chosen)
  return {
    "pairs": [dict(x) for x in chosen],
    "because": [
      f"block {x['teacher']} of the teacher: a linear layer makes "
      f"{x['explained']:.0%} of its variance from block {x['student']} of the "
      f"student, whose width could hold {x['possible']:.0%}"
      for x in chosen
    ],
    "options": [
      f'--config.methods.regress.blocks="{own}"',
      f'--config.methods.regress.teacher_blocks="{theirs}"',
    ],
  }
