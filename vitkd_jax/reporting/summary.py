"""Summarises runs: seeds grouped by method, methods compared."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
import dataclasses
import functools
import math
import os
from typing import Any

import numpy as np

from vitkd_jax.distill import terms
from vitkd_jax.runs import history, reading

# Sections that define the method; all others should be equal across methods.
_METHOD = ("methods", "task", "teachers")


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ only in the seed.

  Attributes:
    name: method name, unique among the groups.
    runs: at least one.
  """

  name: str
  runs: tuple[reading.Run, ...]

  @functools.cached_property
  def loss_weights(self) -> dict[str, float]:
    """The loss terms and their weights."""
    return self.runs[0].loss_weights

  @functools.cached_property
  def settled(self) -> tuple[reading.Run, ...]:
    """The finished runs; all runs while none is finished."""
    return tuple(run for run in self.runs if run.finished) or self.runs

  def values(self, of: Callable[[reading.Run], float | None]) -> np.ndarray:
    """A value of each settled run that has it.

    Args:
      of: from a run to its value; None where it has none.

    Returns:
      float64 [n].
    """
    values = [of(run) for run in self.settled]
    return np.array([v for v in values if v is not None], np.float64)

  def curve(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """A metric at the steps at which every run has it.

    Args:
      name: metric name, or "top1" for `Run.accuracy`.

    Returns:
      Steps int64 [T] and values float64 [n, T], those of the longest run alone
      where there is no common step; None where no run has the metric.
    """
    if name not in self._curves:
      self._curves[name] = self._curve(name)
    return self._curves[name]

  @functools.cached_property
  def _curves(self) -> dict[str, tuple[np.ndarray, np.ndarray] | None]:
    return {}

  def _curve(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    each = (
      run.accuracy if name == "top1" else run.series.get(name)
      for run in self.settled
    )
    found = [series for series in each if series is not None]
    if not found:
      return None
    steps = found[0].steps
    for series in found[1:]:
      if not np.array_equal(series.steps, steps):
        steps = np.intersect1d(series.steps, steps, assume_unique=True)
    if not steps.size:
      found = [max(found, key=lambda series: series.steps[-1])]
      steps = found[0].steps
    if len(found) == 1:  # no copy, which may be long
      return steps, found[0].values[None]
    rows = [s.values[np.searchsorted(s.steps, steps)] for s in found]
    return steps, np.stack(rows)


def group(runs: Iterable[reading.Run]) -> list[Group]:
  """Groups runs by method, those with fewer loss terms first.

  Args:
    runs: of any methods.
  """
  by_key: dict[Any, list[reading.Run]] = {}
  for run in runs:
    by_key.setdefault(_key(run), []).append(run)
  groups = [Group(method(found[0]), tuple(found)) for found in by_key.values()]
  groups.sort(key=lambda g: len(g.loss_weights))
  return _distinct(groups)


def method(run: reading.Run) -> str:
  """What a run's student learns from, such as "nkd + vitkd" or "baseline".

  Args:
    run: the run.
  """
  names = []
  for name, values in sorted((run.config.get("methods") or {}).items()):
    weights = values.get("weights") or {}
    active = [term for term, weight in weights.items() if weight]
    whole = len(active) == len(weights)
    names += [name] if active and whole else [f"{name}/{x}" for x in active]
  text = " + ".join(names)
  if terms.TASK in run.loss_weights:
    return text or "baseline"
  return text + " without labels"


def repeated(group: Group) -> dict[int, list[str]]:
  """{seed: names of the runs} for seeds that several runs of a group share.

  Args:
    group: whose deviation should be one over seeds.
  """
  names: dict[int, list[str]] = {}
  for run in group.settled:
    if run.seed is not None:
      names.setdefault(run.seed, []).append(run.name)
  return {seed: same for seed, same in names.items() if same[1:]}


def final_top1(run: reading.Run) -> float | None:
  """A run's last top-1 in [0, 1]; None before its first evaluation.

  Args:
    run: the run.
  """
  return run.accuracy.final if run.accuracy else None


def is_baseline(group: Group) -> bool:
  """Whether the student learns from the labels alone.

  Args:
    group: runs of one method.
  """
  return set(group.loss_weights) == {terms.TASK}


def baseline(groups: Sequence[Group]) -> Group | None:
  """The baseline to compare the others with; None unless it is the only one.

  Args:
    groups: of a report.
  """
  found = [group for group in groups if is_baseline(group)]
  return found[0] if len(found) == 1 and len(groups) > 1 else None


def differing(
  groups: Sequence[Group], sections: Container[str] | None = None
) -> dict[str, list[str | None]]:
  """{key: its value in each group} for keys that differ, besides the seed.

  Args:
    groups: at least one.
    sections: sections to compare; None for all that do not define a method.
  """
  flat = [_flatten(group.runs[0]) for group in groups]
  values = {key: [f.get(key) for f in flat] for f in flat for key in f}
  return {
    key: of
    for key, of in sorted(values.items())
    if any(value != of[0] for value in of)
    and (
      key.partition(".")[0] in sections
      if sections
      else key.partition(".")[0] not in _METHOD
    )
  }


def mean_std(values: np.ndarray) -> tuple[float, float | None]:
  """Mean and sample standard deviation.

  Args:
    values: float64 [n].

  Returns:
    The mean, NaN for no values, and the deviation, None for fewer than two.
  """
  if not len(values):
    return math.nan, None
  deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
  return float(np.mean(values)), deviation


def gain(group: Group, other: Group) -> tuple[float, float | None]:
  """The gain in final top-1 over another group, and its standard error.

  Args:
    group: runs of a method.
    other: runs to compare with.

  Returns:
    Difference of the means in [-1, 1], and its standard error; None unless both
    groups have several seeds.
  """
  ours, theirs = group.values(final_top1), other.values(final_top1)
  (mean, std), (mean_other, std_other) = mean_std(ours), mean_std(theirs)
  if std is None or std_other is None:
    return mean - mean_other, None
  error = math.hypot(std / len(ours) ** 0.5, std_other / len(theirs) ** 0.5)
  return mean - mean_other, error


def _flatten(run: reading.Run) -> dict[str, str | None]:
  """{key: its value in words} of what can tell a run from others."""
  hashes = {
    f"teachers.{name}.sha256": pin.get("sha256")
    for name, pin in run.teachers.items()
  }
  flat: dict[str, str | None] = {**hashes}
  for key, value in history.flatten(run.config).items():
    sha256 = key.removesuffix("weights") + "sha256"
    # A teacher whose hash is not known is told apart by its path.
    path = key.startswith("teachers.") and hashes.get(sha256) is None
    repeated = key == "run.seed" or history.free(f"config.{key}")
    if value is None or (repeated and not path):
      continue
    if key.startswith("methods.") and not value:  # unused, or its default
      continue
    flat[key] = repr(value)
  return flat


def _key(run: reading.Run) -> tuple[tuple[str, str | None], ...]:
  return tuple(sorted(_flatten(run).items(), key=lambda item: item[0]))


def _distinct(groups: list[Group]) -> list[Group]:
  """The groups; equal names are extended by the keys that differ."""
  by_name: dict[str, list[Group]] = {}
  for group in groups:
    by_name.setdefault(group.name, []).append(group)
  changes = {
    name: iter(_changes(same)) for name, same in by_name.items() if same[1:]
  }
  named = [
    dataclasses.replace(
      group, name=f"{group.name}, {next(changes[group.name])}"
    )
    if group.name in changes
    else group
    for group in groups
  ]
  return _numbered(named)


def _changes(same: Sequence[Group]) -> Iterator[str]:
  """Of each group, the first three of the keys in which they differ."""
  every = {section for group in same for section in group.runs[0].config}
  told = [
    (key.partition(".")[0], key.rpartition(".")[2], told_apart(values))
    for key, values in differing(same, every).items()
  ]
  for index, group in enumerate(same):
    changes = [
      f"{key}={values[index]}"
      for section, key, values in told
      if section in group.runs[0].config
    ]
    yield ", ".join(changes[:3])


def told_apart(values: Sequence[str | None], width: int = 24) -> list[str]:
  """Values, cut to `width` from where a long one differs from the others.

  Args:
    values: None stands for "none".
    width: letters of a value.
  """
  texts = [value or "none" for value in values]
  # The others that share most with a text are beside it in sorted order.
  order = ["", *sorted(set(texts)), ""]
  place = {text: index for index, text in enumerate(order)}
  shown = []
  for value in texts:
    if len(value) <= width:
      shown.append(value)
      continue
    same = max(
      len(os.path.commonprefix([value, other]))  # noqa: RUF071, of characters
      for other in (order[place[value] - 1], order[place[value] + 1])
    )
    start = same - 4 if same > width // 2 else 0
    part = value[start : start + width]
    shown.append(("…" if start else "") + part)
  return shown


def _numbered(named: list[Group]) -> list[Group]:
  """The groups, with a number added to repeated names."""
  seen: dict[str, int] = {}
  for index, group in enumerate(named):
    seen[group.name] = seen.get(group.name, 0) + 1
    if seen[group.name] > 1:
      name = f"{group.name} ({seen[group.name]})"
      named[index] = dataclasses.replace(group, name=name)
  return named
