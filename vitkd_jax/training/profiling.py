"""A trace of a few steps of a run, for TensorBoard's profiler or Perfetto."""

from collections.abc import Callable
import os
import pathlib
import tempfile

from etils import epath
import jax

STEPS = 5


class Profile:
  """Traces up to `STEPS` steps, once; a context.

  A trace that cannot be made or written is told of, and harms nothing. The
  caller waits for the device before it starts or stops one.

  Args:
    workdir: gets plugins/profile/DATE/, which is where TensorBoard looks.
    first: number of the first step; 0 traces none.
    say: prints a line.

  Attributes:
    running: between `start` and `stop`.
  """

  def __init__(self, workdir: str, first: int, say: Callable[[str], None]):
    self._workdir, self._first, self._say = workdir, first, say
    self._folder, self.running = None, False

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self.running:
      self.stop()

  def begins(self, step: int) -> bool:
    """Whether step `step` is the first to be traced."""
    return step == self._first

  def ends(self, step: int) -> bool:
    """Whether step `step` is the last one."""
    return self.running and step == self._first + STEPS - 1

  def start(self) -> None:
    """Begins the trace."""
    try:
      # C++ writes it, which may not know gs://.
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
    with self._folder as name:
      try:
        jax.profiler.stop_trace()
        target = _copy(pathlib.Path(name), epath.Path(self._workdir))
      except Exception as error:  # a bucket's client has errors of its own
        self._say(f"no trace: {error}")
      else:
        self._say(f"traced from step {self._first} on: {target}")


def _copy(source, target):
  """Copies a trace's files; returns the folder in which they then lie."""
  for file in [path for path in source.rglob("*") if path.is_file()]:
    copy = target / os.fspath(file.relative_to(source))
    copy.parent.mkdir(parents=True, exist_ok=True)
    epath.Path(file).copy(copy, overwrite=True)
  return copy.parent
