"""Reads a workdir: its config, and its metrics as far as they are whole."""

import dataclasses
import functools
import math
from typing import Any

from etils import epath
import numpy as np

from vitkd_jax.training import objective, runs


class NotARunError(ValueError):
  """A folder that holds no run, or none with metrics yet."""


@dataclasses.dataclass(frozen=True)
class Series:
  """One metric by step.

  Attributes:
    steps: int64 [T], rising.
    values: float64 [T]; NaN and infinities as they were logged.
  """

  steps: np.ndarray
  values: np.ndarray

  @property
  def final(self) -> float:
    """The last value."""
    return float(self.values[-1])

  @property
  def best(self) -> float:
    """The highest finite value; NaN if there is none."""
    finite = self.values[np.isfinite(self.values)]
    return float(finite.max()) if finite.size else math.nan


@dataclasses.dataclass(frozen=True)
class Run:
  """A training that has logged something.

  Attributes:
    path: the workdir.
    name: how the report calls it.
    config: sections of the config, as plain dicts.
    teacher_sha256: of the teacher's weights, None without a teacher.
    command: the command line, None where it was not recorded.
    series: metrics by name; none is empty.
    teacher_step: of the checkpoint that the teacher was read from, if any.
  """

  path: str
  name: str
  config: dict[str, Any]
  teacher_sha256: str | None
  command: str | None
  series: dict[str, Series]
  teacher_step: int | None = None

  @property
  def seed(self) -> int | None:
    """config.run.seed."""
    return self.config["run"].get("seed")

  @property
  def weights(self) -> dict[str, float]:
    """The weights of the loss terms that count, in the order of reporting."""
    given = self.config.get("weights") or {}
    return {term: given[term] for term in objective.TERMS if given.get(term)}

  @property
  def step(self) -> int:
    """Updates done when the last line was written."""
    return max(int(series.steps[-1]) for series in self.series.values())

  @functools.cached_property
  def total_steps(self) -> int | None:
    """Updates of the whole run; None where no line tells."""
    eta, speed = self._speed("eta_seconds"), self._speed("images_per_second")
    if eta is None or speed is None:
      return None
    left = eta.final * speed.final / self.config["run"]["batch_size"]
    return int(eta.steps[-1]) + round(left) if math.isfinite(left) else None

  @property
  def finished(self) -> bool:
    """No step is known to be missing."""
    return self.total_steps is None or self.step >= self.total_steps

  @property
  def seconds(self) -> float | None:
    """Time spent on training, without compilation, evaluations and saves."""
    speed = self._speed("images_per_second")
    if speed is None:
      return None
    images = np.diff(speed.steps, prepend=0) * self.config["run"]["batch_size"]
    return float(np.sum(images / speed.values))

  @property
  def images_per_second(self) -> float | None:
    """Mean speed of the training."""
    speed, seconds = self._speed("images_per_second"), self.seconds
    if not seconds:
      return None
    batch_size = self.config["run"]["batch_size"]
    return float(speed.steps[-1] * batch_size / seconds)

  @property
  def accuracy(self) -> Series | None:
    """Top-1 by step: the moving average's where there is one."""
    return self.series.get("eval_ema_top1") or self.series.get("eval_top1")

  def _speed(self, name):
    return self.series.get(name) if "batch_size" in self.config["run"] else None


def read(path: str, name: str) -> Run:
  """The run of a workdir.

  Args:
    path: the workdir, also a URL that etils knows.
    name: how the report calls it.

  Raises:
    NotARunError: the folder holds no run, or one without metrics, or its
      config.json is damaged.
  """
  folder = epath.Path(path)
  if not folder.is_dir():
    raise NotARunError(f"{path} is no folder")
  try:
    record = runs.read_record(path)
  except ValueError as error:  # damaged, or another library's
    raise NotARunError(str(error)) from None
  if record is None:
    raise NotARunError(f"{path} is not the workdir of a run: no config.json")
  if not isinstance(record["config"].get("run"), dict):
    raise NotARunError(f"{path}/config.json has no section run")
  metrics = folder / "metrics.jsonl"
  series = _series(metrics.read_bytes() if metrics.exists() else b"")
  if not series:
    raise NotARunError(f"{path} has no metrics yet; look again after its first")
  return Run(
    path=path,
    name=name,
    config=record["config"],
    teacher_sha256=record.get("teacher_sha256"),
    teacher_step=record.get("teacher_step"),
    command=record.get("command"),
    series=series,
  )


def _series(text: bytes) -> dict[str, Series]:
  points: dict[str, dict[int, float]] = {}
  for _, values in runs.metrics(text):
    step = values.pop("step")
    for name, value in values.items():
      if isinstance(value, int | float):
        points.setdefault(name, {})[step] = float(value)
  return {
    name: Series(
      np.array(sorted(by_step), np.int64),
      np.array([by_step[step] for step in sorted(by_step)]),
    )
    for name, by_step in points.items()
  }
