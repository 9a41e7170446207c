"""Reads a workdir: its config, and its metrics as far as they are whole.

Nothing else reads config.json or metrics.jsonl.
"""

from collections.abc import Iterator
import dataclasses
import functools
import json
import math
from typing import Any

from etils import epath
import ml_collections
import numpy as np

from vitkd_jax import check
from vitkd_jax.distill import terms as loss_terms
from vitkd_jax.runs import history


def record(workdir: str) -> dict[str, Any] | None:
  """config.json, or None where there is none; `workdir.claim` writes it.

  Keys of the config that it lacks, since it is older, say what its run did.

  Raises:
    ValueError: it is there and cannot be read.
  """
  found = _config_json(workdir)
  if found is None:
    return None
  return {**found, "config": history.meant(found["config"])}


def config_of(path: str) -> dict[str, Any] | None:
  """The config of a workdir; None for any other path."""
  if not epath.Path(path).is_dir():
    return None
  try:
    found = record(path)
  except ValueError:
    return None  # another library's config.json
  return found["config"] if found and "student" in found["config"] else None


def carried_on(
  workdir: str, config: ml_collections.ConfigDict
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """The config with which a workdir's run goes on; see `history.carried_on`.

  Raises:
    ValueError: config.json is there and cannot be read.
  """
  found = _config_json(workdir)
  if found is None:
    return config, []
  return history.carried_on(config, found["config"])


def _config_json(workdir):
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    return None
  try:
    found = check.parse_json(path.read_bytes(), f"{path}")
    return {**found, "config": dict(found["config"])}
  except (ValueError, KeyError, TypeError):
    raise ValueError(
      f"{path} is damaged and does not say which run this is; restore it, or "
      "take an empty workdir"
    ) from None


def metrics(content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
  """The whole lines of a metrics.jsonl, as they are and their values.

  A killed run may leave its last line half written, a full disk any other.
  """
  for line in content.splitlines():
    try:
      values = json.loads(line)
      values["step"] = int(values["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
      continue
    yield line, values


def evaluation(workdir: str, step: int | None = None) -> dict[str, Any]:
  """What an evaluation logged, its step first; {} where there was none.

  Args:
    workdir: of a run.
    step: whose evaluation is read; None for the last.

  Raises:
    ValueError: metrics.jsonl is there and cannot be read.
  """
  found = {}
  for _, values in metrics(_content(workdir)):
    scores = {k: v for k, v in values.items() if k.startswith("eval_")}
    if scores and step in (None, values["step"]):
      found = {"step": values["step"], **scores}
  return found


def _content(workdir) -> bytes:
  path = epath.Path(workdir) / "metrics.jsonl"
  try:
    return path.read_bytes() if path.exists() else b""
  except OSError as error:
    raise ValueError(f"cannot read {path}: {error}") from None


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
  def loss_weights(self) -> dict[str, float]:
    """The weights of the loss terms that count, in the order of reporting."""
    given = self.config.get("weights") or {}
    return {term: given[term] for term in loss_terms.TERMS if given.get(term)}

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
    found = record(path)
  except ValueError as error:  # damaged, or another library's
    raise NotARunError(str(error)) from None
  if found is None:
    raise NotARunError(f"{path} is not the workdir of a run: no config.json")
  if not isinstance(found["config"].get("run"), dict):
    raise NotARunError(f"{path}/config.json has no section run")
  series = _series(_content(path))
  if not series:
    raise NotARunError(f"{path} has no metrics yet; look again after its first")
  return Run(
    path=path,
    name=name,
    config=found["config"],
    teacher_sha256=found.get("teacher_sha256"),
    teacher_step=found.get("teacher_step"),
    command=found.get("command"),
    series=series,
  )


def _series(text: bytes) -> dict[str, Series]:
  points: dict[str, dict[int, float]] = {}
  for _, values in metrics(text):
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
