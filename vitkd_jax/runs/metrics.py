"""Writes the metrics of a run to files and console."""

from collections.abc import Mapping
import contextlib
import datetime
import json
from typing import Any

from etils import epath

from vitkd_jax import errors, remote
from vitkd_jax.cluster import console
from vitkd_jax.runs import metric_log, trackers


class Writer:
  """Writes metrics.jsonl, console, log and trackers; a context.

  A resumed run drops lines beyond its first step, so that its metrics.jsonl
  equals that of an uninterrupted run.

  Args:
    workdir: an existing folder, or a URL.
    first_step: updates done before this start.
    total_steps: updates of the whole run, for the progress line.
    tracker: beside TensorBoard's events, one of `trackers.NAMES`.
    config: of the run, for trackers.
    quiet: write nothing, as on all processes but the first.
    name: of the run, where the console shows several.
  """

  def __init__(
    self,
    workdir: str,
    *,
    first_step: int,
    total_steps: int,
    tracker: str = "none",
    config: Mapping[str, Any] | None = None,
    quiet: bool = False,
    name: str = "",
  ):
    self._name = name
    self._tracker, self._config = tracker, config or {}
    self._workdir, self._quiet = workdir, quiet
    self._first_step, self._total_steps = first_step, total_steps
    self._path = epath.Path(workdir) / "metrics.jsonl"
    # Steps and names of the lines of the first step: it may come once more.
    self._written: set[tuple[int, frozenset[str]]] = set()

  def __enter__(self) -> "Writer":
    if self._quiet:
      return self
    with contextlib.ExitStack() as stack:
      self._written = metric_log.keep_until(self._path, self._first_step)
      self._log = console.Log(self._workdir)
      self._console = stack.enter_context(
        console.Console(
          self._log,
          first_step=self._first_step,
          total_steps=self._total_steps,
          name=self._name,
        )
      )
      self._trackers = trackers.of(
        self._tracker,
        self._workdir,
        self._first_step,
        self._config,
        self._console.line,
      )
      stack.callback(self._trackers.close)
      self._open = stack.pop_all()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    _: object,
  ) -> None:
    if self._quiet:
      return
    if isinstance(error, errors.FailedError | errors.PreemptedError):
      self._log.line(str(error))  # which the command prints
    elif error is not None:
      self._log.line(f"ended by {type(error).__name__}: {error}")
    # The full disk has been reported; it must not hide what ended the run.
    with contextlib.suppress(OSError):
      self._open.close()

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Appends a line to metrics.jsonl and trackers, unless already written.

    Args:
      step: updates done.
      values: scalars by name.
    """
    known = (step, frozenset(values) | {"step"})
    if self._quiet or known in self._written:
      return
    line = json.dumps({"step": step, **values})
    if not remote.is_remote(self._path):
      with open(self._path, "a") as file:
        file.write(line + "\n")
    else:  # object stores cannot append
      old = self._path.read_text() if self._path.exists() else ""
      self._path.write_text(old + line + "\n")
    self._trackers.scalars(step, values)

  def line(self, text: str) -> None:
    """Prints a line, which stays above the progress bar.

    Args:
      text: the line.
    """
    if not self._quiet:
      self._console.line(text)

  def progress(self, step: int, values: Mapping[str, float]) -> None:
    """Moves the progress bar on a terminal; prints a line elsewhere.

    Args:
      step: updates done.
      values: as for `progress_text`.
    """
    if not self._quiet:
      self._console.progress(step, progress_text(values))


def progress_text(values: Mapping[str, float]) -> str:
  """One line on the progress: loss by term, speed and time left.

  Args:
    values: metrics of a training step by name, such as "loss".
  """
  terms = "  ".join(
    f"{name.removeprefix('weighted/')} {value:.3f}"
    for name, value in values.items()
    if name.startswith("weighted/")
  )
  eta = datetime.timedelta(seconds=round(values["eta_seconds"]))
  return (
    f"loss {values['loss']:.3f} ({terms})  acc {values['accuracy']:.1%}  "
    f"lr {values['learning_rate']:.1e}  {values['images_per_second']:.0f} img/s"
    f"  wait {values['data_wait']:.0%}  eta {eta}"
  )
