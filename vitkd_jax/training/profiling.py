"""A trace of a few steps of a run, for TensorBoard's profiler or Perfetto."""

from collections.abc import Callable
import os
import pathlib
import tempfile
from typing import Any

from etils import epath
import jax

STEPS = 5


class Profile:
  """Traces `STEPS` steps, once; a context.

  A trace that cannot be made or written is told of, and harms nothing.

  Args:
    workdir: gets plugins/profile/DATE/, which is where TensorBoard looks.
    first: number of the first step; 0 traces none.
    say: prints a line.
  """

  def __init__(self, workdir: str, first: int, say: Callable[[str], None]):
    self._workdir, self._first, self._say = workdir, first, say
    self._step = self._folder = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._end()

  def before(self, step: int, state: Any) -> None:
    """Step `step` comes next; begins the trace if it is the first."""
    if self._step is None and 0 < self._first < step:
      self._say(f"no trace: step {self._first} is done; name one after {step}")
    self._step = step
    if step != self._first:
      return
    jax.block_until_ready(state)  # what came before is not looked at
    # C++ writes it, which may not know gs://.
    self._folder = tempfile.TemporaryDirectory()
    try:
      jax.profiler.start_trace(self._folder.name)
    except RuntimeError as error:  # somebody else is tracing
      self._folder.cleanup()
      self._folder = None
      self._say(f"no trace: {error}")

  def after(self, report: Any) -> None:
    """The step is on its way; ends the trace if it is the last."""
    if self._folder and self._step == self._first + STEPS - 1:
      jax.block_until_ready(report)
      self._end()

  def _end(self):
    if not self._folder:
      return
    with self._folder as name:
      self._folder = None
      try:
        jax.profiler.stop_trace()
        target = _copy(pathlib.Path(name), epath.Path(self._workdir))
      except (RuntimeError, OSError) as error:
        self._say(f"no trace: {error}")
      else:
        self._say(f"traced steps {self._first} to {self._step}: {target}")


def _copy(source, target):
  """Copies a trace's files; returns the folder in which they then lie."""
  for file in [path for path in source.rglob("*") if path.is_file()]:
    copy = target / os.fspath(file.relative_to(source))
    copy.parent.mkdir(parents=True, exist_ok=True)
    epath.Path(file).copy(copy, overwrite=True)
  return copy.parent
