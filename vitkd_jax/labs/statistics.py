"""Differences paired by seed: t intervals, Holm's correction, sample sizes."""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np
from scipy import stats

# Chance of a wrong "difference" in a whole lab, and of an interval that misses.
ALPHA = 0.05
# Chance with which the number of seeds that is stated shows a difference.
POWER = 0.8
# Where no number of seeds up to this one shows a difference, none is stated.
MOST_SEEDS = 1000


@dataclasses.dataclass(frozen=True)
class Difference:
  """The mean difference of two arms over the seeds that both have.

  Attributes:
    seeds: their number n.
    mean: of the differences; NaN without any.
    deviation: sample standard deviation of the differences; None for n < 2.
    margin: half the width of the 95 % t interval; None for n < 2.
    p: of the two-sided paired t test; None for n < 2.
  """

  seeds: int
  mean: float
  deviation: float | None = None
  margin: float | None = None
  p: float | None = None


def by_seed(
  ours: Mapping[int, float], theirs: Mapping[int, float]
) -> dict[int, float]:
  """{seed: difference} over the seeds that both arms have.

  Args:
    ours: {seed: value} of an arm.
    theirs: of the arm to compare it with.
  """
  seeds = sorted(ours.keys() & theirs.keys())
  return {seed: ours[seed] - theirs[seed] for seed in seeds}


def paired(
  ours: Mapping[int, float], theirs: Mapping[int, float]
) -> Difference:
  """The difference of two arms, paired by seed.

  A seed gives both the same first weights, batches and augmentation, so that
  part of the spread over seeds cancels.

  Args:
    ours: {seed: value} of an arm.
    theirs: of the arm to compare it with.
  """
  values = np.array(list(by_seed(ours, theirs).values()), np.float64)
  count = len(values)
  mean = float(np.mean(values)) if count else math.nan
  if count < 2:
    return Difference(count, mean)
  deviation = float(np.std(values, ddof=1))
  error = deviation / math.sqrt(count)
  margin = float(stats.t.ppf(1 - ALPHA / 2, count - 1)) * error
  if error:
    p = float(2 * stats.t.sf(abs(mean) / error, count - 1))
  else:  # equal in every seed: no spread to compare the mean with
    p = 1.0 if mean == 0 else 0.0
  return Difference(count, mean, deviation, margin, p)


def holm(p_values: Sequence[float]) -> list[float]:
  """Adjusted p-values by Holm's step-down procedure.

  S. Holm, A simple sequentially rejective multiple test procedure, 1979: the
  chance of any wrong rejection is at most that of one test, whatever the
  tests' dependence.

  Args:
    p_values: of m tests.

  Returns:
    The adjusted ones in the same order: the k-th smallest times m - k + 1, at
    least its predecessor and at most 1.
  """
  count = len(p_values)
  adjusted, most = [0.0] * count, 0.0
  for rank, index in enumerate(np.argsort(p_values, kind="stable")):
    most = max(most, min(1.0, (count - rank) * p_values[index]))
    adjusted[index] = most
  return adjusted


def power(seeds: int, deviation: float, difference: float) -> float:
  """Chance that a paired t test of level `ALPHA` shows a difference.

  Args:
    seeds: number of pairs, at least 2.
    deviation: standard deviation of the differences.
    difference: their true mean.
  """
  if deviation == 0:
    return float(difference != 0)
  freedom = seeds - 1
  shift = abs(difference) / deviation * math.sqrt(seeds)
  edge = stats.t.ppf(1 - ALPHA / 2, freedom)
  return float(
    stats.nct.sf(edge, freedom, shift) + stats.nct.cdf(-edge, freedom, shift)
  )


def seeds_needed(deviation: float, difference: float) -> int | None:
  """Fewest seeds that show a difference with a chance of `POWER`.

  Args:
    deviation: standard deviation of the differences.
    difference: their true mean, not 0.

  Returns:
    At least 2; None if more than 1,000.
  """
  # Near the answer of the normal approximation, which is too small.
  least = (
    (stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER))
    * deviation
    / abs(difference)
  ) ** 2
  if least > MOST_SEEDS:
    return None
  seeds = max(2, math.floor(least))
  while seeds <= MOST_SEEDS:
    if power(seeds, deviation, difference) >= POWER:
      return seeds
    seeds += 1
  return None


def verdict(difference: Difference, adjusted: float | None) -> str:
  """A clause on a difference, in points.

  Args:
    difference: of an arm from another, in points.
    adjusted: its p-value, corrected for the lab's other tests; None for fewer
      than two seeds.
  """
  if not difference.seeds:
    return "no seed has finished in both arms"
  if adjusted is None or difference.margin is None:
    return "one seed shows no difference"
  if adjusted < ALPHA:
    size = f"{abs(difference.mean):.2f} ± {difference.margin:.2f}"
    return f"{'gains' if difference.mean > 0 else 'loses'} {size}"
  return f"no difference that {difference.seeds} seeds can show"
