"""Points of a long curve that suffice to draw it; never used for numbers."""

import itertools

import numpy as np


def kept(steps: np.ndarray, values: np.ndarray, intervals: int) -> np.ndarray:
  """The first and last point, and the lowest and highest of each interval.

  So no peak vanishes, and a drawing of as many columns of pixels looks the
  same. An interval without a finite value keeps one point, for the gap.

  Args:
    steps: int64 [T], ascending.
    values: float64 [T].
    intervals: equally long parts of the range of steps.

  Returns:
    Indices int64 [t], ascending; all of them if T <= 2 intervals.
  """
  if len(steps) <= 2 * intervals:
    return np.arange(len(steps))
  edges = np.linspace(steps[0], steps[-1], intervals + 1)[1:-1]
  bounds = np.unique([0, *np.searchsorted(steps, edges), len(steps)])
  finite = np.isfinite(values)
  low = np.where(finite, values, np.inf)
  high = np.where(finite, values, -np.inf)
  found = [0, len(steps) - 1]
  for start, stop in itertools.pairwise(bounds):
    found.append(start + np.argmin(low[start:stop]))
    if finite[start:stop].any():
      found.append(start + np.argmax(high[start:stop]))
  return np.unique(found)
