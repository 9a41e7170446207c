"""Which of many methods a figure colours and labels."""

from collections.abc import Sequence
import math

from vitkd_jax.reporting import summary

# Up to so many are all shown, in their order; beyond it the best, in theirs.
_ALL = 24
# Curves with a colour and a label, and rows of the figure of final accuracies.
_BEST, _ROWS = 8, 40


def best(groups: Sequence[summary.Group]) -> list[int]:
  """Indices of the groups to colour and label.

  Args:
    groups: the runs by method.
  """
  return leading(groups, _BEST)


def rows(groups: Sequence[summary.Group]) -> list[int]:
  """Indices of the groups with a row of their own.

  Args:
    groups: the runs by method.
  """
  return leading(groups, _ROWS)


def leading(groups: Sequence[summary.Group], count: int) -> list[int]:
  """Indices of the groups of highest final top-1, and of the baseline.

  Args:
    groups: the runs by method.
    count: number of groups besides the baseline.

  Returns:
    Those of few groups in their order, those of many the best first.
  """
  if len(groups) <= _ALL:
    return list(range(len(groups)))
  scores = [summary.mean_std(g.values(summary.final_top1))[0] for g in groups]
  order = sorted(
    range(len(groups)),
    key=lambda i: math.inf if math.isnan(scores[i]) else -scores[i],
  )
  base = summary.baseline(groups)
  return order[:count] + [i for i in order[count:] if groups[i] is base]


def best_of(groups: Sequence[summary.Group]) -> str:
  """What a caption says of a figure that colours `best`; "" if of all.

  Args:
    groups: the runs by method.
  """
  if len(groups) <= _ALL:
    return ""
  return f": the best {_BEST} of {len(groups)} methods, the others in grey"


def rows_of(groups: Sequence[summary.Group]) -> str:
  """What a caption says of a figure of `rows`; "" if of all.

  Args:
    groups: the runs by method.
  """
  if len(groups) <= _ROWS:
    return ""
  return f": the best {_ROWS} of {len(groups)} methods"
