"""Reads a workdir: its config.json and its metrics."""

from collections.abc import Iterator
import dataclasses
import functools
import math
from typing import Any

from etils import epath
import ml_collections
import numpy as np

from vitkd_jax import check
from vitkd_jax.distill import terms
from vitkd_jax.runs import history, legacy, metric_log


def record(workdir: str) -> dict[str, Any] | None:
  """The content of config.json, or None if there is none.

  Keys that an older version did not write are added, with the values that its
  runs used.

  Args:
    workdir: a folder or a URL; `workdir.claim` wrote the file.

  Raises:
    ValueError: the file cannot be read.
  """
  found = _config_json(workdir)
  if found is None:
    return None
  try:
    return legacy.pinned({**found, "config": history.meant(found["config"])})
  except ValueError as error:
    path = epath.Path(workdir) / "config.json"
    raise ValueError(f"{path}: {error}") from None


def record_of(path: str) -> dict[str, Any] | None:
  """As `record`, but None for any path that is not a workdir.

  Args:
    path: any file or folder, or a URL.
  """
  if not epath.Path(path).is_dir():
    return None
  try:
    found = record(path)
  except ValueError:
    return None  # another library's config.json
  return found if found and "student" in found["config"] else None


def carried_on(
  workdir: str, config: ml_collections.ConfigDict
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """The config with which the run of a workdir resumes.

  Args:
    workdir: a folder or a URL.
    config: as given for this start.

  Returns:
    As `history.carried_on`; `config` and no notes for a new run.

  Raises:
    ValueError: config.json cannot be read.
  """
  found = _config_json(workdir)
  if found is None:
    return config, []
  return history.carried_on(config, found["config"])


def _config_json(workdir: str) -> dict[str, Any] | None:
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    _check_ours(workdir)
    return None
  try:
    found = check.parse_json(path.read_bytes(), f"{path}")
    found = {**found, "config": dict(found["config"])}
    legacy.check_sections(found["config"])
    if "teachers" in found:
      pins = found["teachers"] or {}
      found["teachers"] = {name: dict(pin) for name, pin in pins.items()}
    if found.get("init") is not None:
      found["init"] = dict(found["init"])
    return found
  except (ValueError, KeyError, TypeError, AttributeError):
    _check_ours(workdir)
    raise ValueError(
      f"{path} is damaged and does not say which run this is; restore it, or "
      "use an empty workdir"
    ) from None


def _check_ours(workdir: str) -> None:
  """Refuses a folder that is not ours if big_vision has trained there."""
  folder = epath.Path(workdir)
  if any((folder / name).exists() for name in _OF_BIG_VISION):
    raise ValueError(
      f"{workdir} holds a run of big_vision's, which it alone can resume; use "
      f"another workdir, with config.student.init={workdir}/checkpoint.bv to "
      "start from its weights"
    )


# What its train.py writes first, and with its first checkpoint.
_OF_BIG_VISION = ("big_vision_metrics.txt", "checkpoint.bv-LAST")


def evaluation(workdir: str, step: int | None = None) -> dict[str, Any]:
  """The metrics of one evaluation.

  Args:
    workdir: of a run.
    step: updates before the evaluation; None for the last evaluation.

  Returns:
    "step", then metrics by name ("eval_..."); {} without an evaluation.

  Raises:
    ValueError: metrics.jsonl cannot be read.
  """
  found: dict[str, Any] = {}
  for line in _lines(workdir):
    # Sparing all others the parsing.
    values = metric_log.intact(line) if b'"eval_' in line else None
    if values is None:
      continue
    scores = {k: v for k, v in values.items() if k.startswith("eval_")}
    if scores and step in (None, values["step"]):
      found = {"step": values["step"], **scores}
  return found


def _lines(workdir: str) -> Iterator[bytes]:
  """The lines of metrics.jsonl, one after the other."""
  path = epath.Path(workdir) / "metrics.jsonl"
  try:
    if path.exists():
      with path.open("rb") as file:
        yield from file
  except OSError as error:
    raise ValueError(f"cannot read {path}: {error}") from None


class NotARunError(ValueError):
  """A folder without a run, or with a run that has no metrics yet."""


Series = metric_log.Series


@dataclasses.dataclass(frozen=True)
class Run:
  """A training that has logged something.

  Attributes:
    path: the workdir.
    name: shown in the report.
    config: sections of the config, as plain dicts.
    teachers: {name: {"sha256": hash of a teacher's weights, "step": of its
      checkpoint, None for a file}}; {} if the run did not record them.
    command: the command line; None if it was not recorded.
    series: metrics by name, none of them empty.
  """

  path: str
  name: str
  config: dict[str, Any]
  teachers: dict[str, dict[str, Any]]
  command: str | None
  series: dict[str, Series]

  @property
  def seed(self) -> int | None:
    """config.run.seed."""
    return self.config["run"].get("seed")

  @property
  def loss_weights(self) -> dict[str, float]:
    """The non-zero weights of loss terms, the task's first."""
    return terms.weights(
      self.config.get("task") or {}, self.config.get("methods") or {}
    )

  @property
  def step(self) -> int:
    """Updates done at the last line of metrics."""
    return max(int(series.steps[-1]) for series in self.series.values())

  @functools.cached_property
  def total_steps(self) -> int | None:
    """Updates of the whole run; None if no line of metrics tells."""
    eta, speed = self._speed("eta_seconds"), self._speed("images_per_second")
    if eta is None or speed is None:
      return None
    left = eta.final * speed.final / self.config["run"]["batch_size"]
    return int(eta.steps[-1]) + round(left) if math.isfinite(left) else None

  @property
  def finished(self) -> bool:
    """Whether no step is known to be missing."""
    return self.total_steps is None or self.step >= self.total_steps

  @property
  def seconds(self) -> float | None:
    """Time spent training, without compilation, evaluations and saves."""
    speed = self._speed("images_per_second")
    if speed is None:
      return None
    images = np.diff(speed.steps, prepend=0) * self.config["run"]["batch_size"]
    return float(np.sum(images / speed.values))

  @property
  def images_per_second(self) -> float | None:
    """Mean training speed."""
    speed, seconds = self._speed("images_per_second"), self.seconds
    if speed is None or not seconds:
      return None
    batch_size = self.config["run"]["batch_size"]
    return float(speed.steps[-1] * batch_size / seconds)

  @property
  def accuracy(self) -> Series | None:
    """Top-1 by step: of the moving average, if the run keeps one."""
    return self.series.get("eval_ema_top1") or self.series.get("eval_top1")

  def _speed(self, name: str) -> Series | None:
    return self.series.get(name) if "batch_size" in self.config["run"] else None


def read(path: str, name: str) -> Run:
  """The run of a workdir.

  Args:
    path: the workdir, a folder or a URL.
    name: to show in the report.

  Raises:
    NotARunError: the folder has no run, or one without metrics, or its
      config.json is damaged.
  """
  folder = epath.Path(path)
  if not folder.is_dir():
    raise NotARunError(
      f"expected the workdir of a run, got {path}, which is not a folder"
    )
  try:
    found = record(path)
  except ValueError as error:  # damaged, or another library's
    raise NotARunError(str(error)) from None
  if found is None:
    raise NotARunError(
      f"{path} is not the workdir of a run: it has no config.json"
    )
  if not isinstance(found["config"].get("run"), dict):
    raise NotARunError(f"expected a section 'run' in {path}/config.json")
  series = metric_log.series(_lines(path))
  if not series:
    raise NotARunError(
      f"{path} has no metrics yet; try again after its first log"
    )
  return Run(
    path=path,
    name=name,
    config=found["config"],
    teachers=found.get("teachers") or {},
    command=found.get("command"),
    series=series,
  )
