"""Lines for a person: on the console, and in the workdir's train.log.

A process may start without a console, or lose it (a closed terminal,
`| head`). The run continues, and its lines are in the log.
"""

from collections.abc import Callable
import contextlib
import datetime
import logging
import os
import sys
import time
from typing import Any, TextIO, cast

from etils import epath
import rich.console
import rich.progress

from vitkd_jax import remote
from vitkd_jax.data import printable

# Between two uploads of the log to a bucket: objects cannot be appended to.
_UPLOAD_SECONDS = 60


def open_streams() -> None:
  """Opens /dev/null in place of missing standard streams.

  Otherwise the next file that is opened would become the standard output.
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
      # Not from the descriptor, which a library may have taken by now.
      stream = open(os.devnull, "r" if name == "stdin" else "w")  # noqa: SIM115
      setattr(sys, name, stream)


def hush_repeats() -> None:
  """Silences tracebacks of failed saves that are reported in one sentence.

  When one array of a save fails, the others fail too: nobody retrieves their
  tasks' exceptions, tensorstore reports them to an event loop that Orbax has
  closed, and Orbax logs the exception that it raises at the next wait.
  """
  unraisable = sys.unraisablehook
  sys.unraisablehook = lambda raised: (
    str(raised.exc_value) == "Event loop is closed" or unraisable(raised)
  )
  logging.getLogger("asyncio").addFilter(
    lambda record: "exception was never retrieved" not in record.getMessage()
  )
  logging.getLogger("absl").addFilter(
    lambda record: not (record.exc_info and "orbax" in record.pathname)
  )


def close(stream: TextIO) -> None:
  """Redirects a stream that can no longer be written to /dev/null.

  Args:
    stream: such as sys.stderr.
  """
  with contextlib.suppress(OSError, ValueError):
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())  # Python flushes the stream at exit
    os.close(null)


def complain(text: str) -> None:
  """Prints a line to the standard error, where it can still be written.

  Args:
    text: the line; unprintable characters are escaped.
  """
  try:
    print(printable.printable(text), file=sys.stderr, flush=True)
  except (OSError, ValueError):
    close(sys.stderr)


class Stream:
  """A text stream that drops its text once writing has failed.

  Args:
    stream: such as sys.stdout.
    lost: called with the error when writing fails for the first time.
  """

  def __init__(self, stream: TextIO, lost: Callable[[Exception], None]):
    self._stream, self._lost, self._dead = stream, lost, False

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes text.

    Args:
      text: any.

    Returns:
      Number of characters written, dropped ones included.
    """
    return self._try(lambda: self._stream.write(text)) or len(text)

  def flush(self) -> None:
    """Flushes the stream."""
    self._try(self._stream.flush)

  def _try(self, function: Callable[[], Any]) -> Any:
    if self._dead:
      return None
    try:
      return function()
    except (OSError, ValueError) as error:  # ValueError: the stream is closed
      self._dead = True
      close(self._stream)
      self._lost(error)
      return None


class Log(logging.Handler):
  """The file train.log of a workdir; errors of writing it are ignored.

  Args:
    workdir: an existing folder; to gs:// the log is uploaded once a minute.
  """

  def __init__(self, workdir: str):
    super().__init__(logging.WARNING)
    self._path = epath.Path(workdir) / "train.log"
    self._local = not remote.is_remote(workdir)
    self._pending, self._uploaded = "", time.monotonic()

  def emit(self, record: logging.LogRecord) -> None:
    """Appends a warning of the package.

    Args:
      record: of Python's logging.
    """
    with contextlib.suppress(Exception):
      self.line(f"warning: {record.getMessage()}")

  def line(self, text: str) -> None:
    """Appends a line.

    Args:
      text: the line; the time is put before it.
    """
    now = datetime.datetime.now().isoformat(" ", "seconds")
    self._pending += f"{now} {text}\n"
    if self._local or time.monotonic() > self._uploaded + _UPLOAD_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Writes pending lines."""
    text, self._pending = self._pending, ""
    if not text:  # as when Python exits, by then perhaps without a workdir
      return
    with contextlib.suppress(Exception):  # clients of buckets raise any type
      if self._local:
        with open(self._path, "a", errors="replace") as file:
          file.write(text)
      else:
        old = self._path.read_text() if self._path.exists() else ""
        self._path.write_text(old + text)
        self._uploaded = time.monotonic()


class Console:
  """Prints lines, with a progress bar on a terminal; use it as a context.

  Args:
    log: also receives every line.
    first_step: updates done before this start.
    total_steps: updates of the whole run.
    name: put before what is printed, where several print; without a bar.
  """

  def __init__(
    self, log: Log, *, first_step: int, total_steps: int, name: str = ""
  ):
    self._log, self._total = log, total_steps
    self._before = f"{printable.printable(name)}: " if name else ""
    self._bars: rich.progress.Progress | None = None
    self._stream = Stream(sys.stdout, self._lost)
    if name or not self._stream.isatty():
      return
    # Stream passes on whatever else rich asks of a text stream.
    file = cast("TextIO", self._stream)
    console = rich.console.Console(file=file, highlight=False)
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
      f"lost the console ({error}); the training continues, and its lines are "
      "in this file"
    )

  def line(self, text: str) -> None:
    """Prints a line, which stays above the progress bar.

    Args:
      text: the line; unprintable characters are escaped.
    """
    text = printable.printable(text)
    self._log.line(text)
    if self._bars:
      self._bars.console.print(text, markup=False, emoji=False, soft_wrap=True)
    else:
      self._stream.write(f"{self._before}{text}\n")
      self._stream.flush()

  def progress(self, step: int, text: str) -> None:
    """Moves the progress bar on a terminal; prints a line elsewhere.

    Args:
      step: updates done.
      text: metrics to show beside it.
    """
    line = f"step {step:{len(str(self._total))}}/{self._total}  {text}"
    if not self._bars:
      self.line(line)
      return
    self._log.line(line)
    self._bars.update(self._bar, completed=step, text=text)
