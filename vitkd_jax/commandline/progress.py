"""Progress of a command: a bar on a terminal, lines in a log."""

from collections.abc import Callable, Iterator
import contextlib
import datetime
import sys
import time

from rich import console
from rich import progress as bars

# Seconds between lines in a log, besides those for every tenth.
_PAUSE = 30.0


@contextlib.contextmanager
def show(
  what: str, total: int | None = None
) -> Iterator[Callable[[int], None]]:
  """Shows progress on stderr.

  Args:
    what: is counted, such as "images".
    total: of them; None if unknown.

  Yields:
    A function that adds to the number done.
  """
  stderr = console.Console(stderr=True)
  if not stderr.is_terminal:
    yield _Lines(what, total)
    return
  with bars.Progress(
    *bars.Progress.get_default_columns(),
    bars.MofNCompleteColumn(),
    console=stderr,
  ) as bar:
    task = bar.add_task(what, total=total)
    waiting, shown = 0, time.monotonic()

    def advance(number: int) -> None:
      nonlocal waiting, shown
      waiting += number
      if (now := time.monotonic()) - shown > 0.1:
        bar.advance(task, waiting)
        waiting, shown = 0, now

    yield advance
    bar.advance(task, waiting)


class _Lines:
  """Prints a line for every tenth, and more of them if that takes long."""

  def __init__(self, what: str, total: int | None):
    self._what, self._total = what, total
    self._done, self._began = 0, time.monotonic()
    self._printed = self._began

  def __call__(self, number: int) -> None:
    before, self._done = self._done, self._done + number
    late = time.monotonic() - self._printed > _PAUSE
    tenth = self._total and (
      10 * self._done // self._total > 10 * before // self._total
    )
    if late or tenth:
      self._printed = time.monotonic()
      of = f" of {self._total:,}" if self._total else ""
      said = f"{self._done:,}{of} {self._what}{self._left()}"
      print(said, file=sys.stderr, flush=True)

  def _left(self) -> str:
    if not self._total:
      return ""
    spent = self._printed - self._began
    seconds = round(spent * (self._total / self._done - 1))
    return (
      f", {datetime.timedelta(seconds=seconds)} left" if seconds > 0 else ""
    )
