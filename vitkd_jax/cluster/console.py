"""Lines for a person: on the console, and in the workdir's train.log.

A console may never have been there, or go away under a run (a closed
terminal, `| head`): the run goes on, and its lines are in the log.
"""

from collections.abc import Callable
import contextlib
import datetime
import logging
import os
import sys
import time

from etils import epath
import rich.console
import rich.progress

from vitkd_jax import remote
from vitkd_jax.data import printable

# Between two uploads of the log to a bucket, which cannot append.
_UPLOAD_SECONDS = 60


def open_streams() -> None:
  """Gives a process that was started without them standard streams.

  Else the next file that is opened would become the standard output.
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    mode = os.O_RDONLY if name == "stdin" else os.O_WRONLY
    try:
      os.fstat(number)
    except OSError:
      null = os.open(os.devnull, mode)
      if null != number:
        os.dup2(null, number)
        os.close(null)
      os.set_inheritable(number, True)
    if getattr(sys, name) is None:
      # Not of the number, which by now may be a library's.
      stream = open(os.devnull, "r" if name == "stdin" else "w")  # noqa: SIM115
      setattr(sys, name, stream)


def hush_repeats() -> None:
  """Keeps tracebacks of what is told in one sentence off the console.

  When one array of a save fails, the others fail too: their tasks' errors are
  asked by nobody, tensorstore tells a loop of them that Orbax has closed, and
  Orbax logs its own, which it raises at the next wait.
  """
  unraisable = sys.unraisablehook
  sys.unraisablehook = lambda told: (
    str(told.exc_value) == "Event loop is closed" or unraisable(told)
  )
  logging.getLogger("asyncio").addFilter(
    lambda record: "exception was never retrieved" not in record.getMessage()
  )
  logging.getLogger("absl").addFilter(
    lambda record: not (record.exc_info and "orbax" in record.pathname)
  )


def close(stream) -> None:
  """Sends a stream that cannot be written any more to nowhere."""
  with contextlib.suppress(OSError, ValueError):
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())  # Python flushes it at its exit
    os.close(null)


def complain(text: str) -> None:
  """Prints a line to the standard error, if there is somebody to read it."""
  try:
    print(printable.printable(text), file=sys.stderr, flush=True)
  except (OSError, ValueError):
    close(sys.stderr)


class Stream:
  """A text stream that falls silent when it cannot be written any more.

  Args:
    stream: such as sys.stdout.
    lost: is called then, once, with the error.
  """

  def __init__(self, stream, lost: Callable[[Exception], None]):
    self._stream, self._lost, self._dead = stream, lost, False

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """As of a text stream."""
    return self._try(lambda: self._stream.write(text)) or len(text)

  def flush(self) -> None:
    """Likewise."""
    self._try(self._stream.flush)

  def _try(self, function):
    if self._dead:
      return None
    try:
      return function()
    except (OSError, ValueError) as error:  # a closed stream's ValueError
      self._dead = True
      close(self._stream)
      self._lost(error)
      return None


class Log(logging.Handler):
  """The file train.log of a workdir; failing to write it harms nothing.

  Args:
    workdir: a folder that is there; on gs:// the log comes once a minute.
  """

  def __init__(self, workdir: str):
    super().__init__(logging.WARNING)
    self._path = epath.Path(workdir) / "train.log"
    self._local = not remote.is_remote(workdir)
    self._pending, self._uploaded = "", time.monotonic()

  def emit(self, record: logging.LogRecord) -> None:
    """A warning of the package."""
    with contextlib.suppress(Exception):
      self.line(f"warning: {record.getMessage()}")

  def line(self, text: str) -> None:
    """Appends a line, with the time in front."""
    now = datetime.datetime.now().isoformat(" ", "seconds")
    self._pending += f"{now} {text}\n"
    if self._local or time.monotonic() > self._uploaded + _UPLOAD_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Writes what has not been written yet."""
    text, self._pending = self._pending, ""
    with contextlib.suppress(Exception):  # a bucket's client has its own types
      if self._local:
        with open(self._path, "a", errors="replace") as file:
          file.write(text)
      elif text:
        old = self._path.read_text() if self._path.exists() else ""
        self._path.write_text(old + text)
        self._uploaded = time.monotonic()


class Console:
  """Prints lines, and moves a bar where there is a terminal; a context.

  Args:
    log: gets every line, too.
    first_step: updates done.
    total_steps: of the whole run.
  """

  def __init__(self, log: Log, *, first_step: int, total_steps: int):
    self._log, self._total, self._bars = log, total_steps, None
    self._stream = Stream(sys.stdout, self._lost)
    if not self._stream.isatty():
      return
    console = rich.console.Console(file=self._stream, highlight=False)
    self._bars = rich.progress.Progress(
      rich.progress.TextColumn("[bold]{task.completed}/{task.total}"),
      rich.progress.BarColumn(),
      rich.progress.TextColumn("{task.fields[text]}"),
      console=console,
      transient=True,
    )
    self._bar = self._bars.add_task(
      "", total=total_steps, completed=first_step, text=""
    )

  def __enter__(self):
    logging.getLogger("vitkd_jax").addHandler(self._log)
    if self._bars:
      self._bars.start()
    return self

  def __exit__(self, *_):
    if self._bars:
      self._bars.stop()
    logging.getLogger("vitkd_jax").removeHandler(self._log)
    self._log.flush()

  def _lost(self, error):
    self._log.line(
      f"the console is gone ({error}); the training goes on, its lines are here"
    )

  def line(self, text: str) -> None:
    """Prints a line that stays."""
    text = printable.printable(text)
    self._log.line(text)
    if self._bars:
      self._bars.console.print(text, markup=False, emoji=False, soft_wrap=True)
    else:
      self._stream.write(text + "\n")
      self._stream.flush()

  def progress(self, step: int, text: str) -> None:
    """Moves the bar on a terminal; prints a line elsewhere."""
    line = f"step {step:{len(str(self._total))}}/{self._total}  {text}"
    if not self._bars:
      self.line(line)
      return
    self._log.line(line)
    self._bars.update(self._bar, completed=step, text=text)
