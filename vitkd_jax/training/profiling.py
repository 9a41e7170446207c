"""A trace of a few steps of a run, for TensorBoard's profiler or Perfetto."""

from collections.abc import Callable
import os
import pathlib
import tempfile

from etils import epath
import jax

STEPS = 5


class Profile:
  """Traces up to `STEPS` steps, once; a context manager.

  A trace that cannot be made or written is reported and harms nothing. The
  caller waits for the device before starting or stopping one.

  Args:
    workdir: folder for plugins/profile/DATE/, where TensorBoard looks; may be
      remote.
    first: first step to trace; 0 for none.
    say: prints a line.

  Attributes:
    running: a trace has started and not stopped.
  """

  def __init__(self, workdir: str, first: int, say: Callable[[str], None]):
    self._workdir, self._first, self._say = workdir, first, say
    self._folder: tempfile.TemporaryDirectory[str] | None = None
    self.running = False

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *_: object) -> None:
    if self.running:
      self.stop()

  def begins(self, step: int) -> bool:
    """Whether a step is the first to trace.

    Args:
      step: number of the step, from 1.
    """
    return step == self._first

  def ends(self, step: int) -> bool:
    """Whether a step is the last to trace.

    Args:
      step: number of the step, from 1.
    """
    return self.running and step == self._first + STEPS - 1

  def start(self) -> None:
    """Starts the trace."""
    try:
      # Written by C++, which may not support gs://.
      self._folder = tempfile.TemporaryDirectory()
      jax.profiler.start_trace(self._folder.name)
    except (RuntimeError, OSError) as error:  # such as another trace
      self._say(f"no trace: {error}")
      if self._folder:
        self._folder.cleanup()
    else:
      self.running = True

  def stop(self) -> None:
    """Ends the trace and writes it."""
    self.running = False
    assert self._folder is not None
    with self._folder as name:
      try:
        jax.profiler.stop_trace()
        target = _copy(pathlib.Path(name), epath.Path(self._workdir))
      except Exception as error:  # a bucket's client has errors of its own
        self._say(f"no trace: {error}")
      else:
        self._say(f"trace from step {self._first}: {target}")


def _copy(source: pathlib.Path, target: epath.Path) -> epath.Path:
  """Copies a trace's files; returns their new folder."""
  for file in [path for path in source.rglob("*") if path.is_file()]:
    copy = target / os.fspath(file.relative_to(source))
    copy.parent.mkdir(parents=True, exist_ok=True)
    epath.Path(file).copy(copy, overwrite=True)
  return copy.parent
