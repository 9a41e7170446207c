"""Wall time spent training, without evaluations and saves."""

from collections.abc import Iterator
import contextlib
import time


class Clock:
  """Measures training speed from one log to the next.

  Args:
    step: number of updates done.
  """

  def __init__(self, step: int):
    self._start(step)

  def _start(self, step: int) -> None:
    self._step, self._begin = step, time.monotonic()
    self._waited = self._away = 0.0

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """A context in which the loop waits for data."""
    entered = time.monotonic()
    yield
    self._waited += time.monotonic() - entered

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """A context whose time does not count as training."""
    entered = time.monotonic()
    yield
    self._away += time.monotonic() - entered

  def read(
    self, step: int, total_steps: int, batch_size: int
  ) -> dict[str, float]:
    """Speed since the previous reading; starts the next interval.

    Args:
      step: number of updates done.
      total_steps: number of updates in the run.
      batch_size: images per update.

    Returns:
      "images_per_second"; "data_wait", the share of time spent waiting for
      data, in [0, 1]; and "eta_seconds", until the last step.
    """
    seconds = max(time.monotonic() - self._begin - self._away, 1e-9)
    per_step = seconds / (step - self._step)
    values = {
      "images_per_second": batch_size / per_step,
      "data_wait": self._waited / seconds,
      "eta_seconds": per_step * (total_steps - step),
    }
    self._start(step)
    return values


def due(step: int, every: int, total: int) -> bool:
  """Whether something is due: every `every` steps, and at the end.

  Within a tenth of an interval of the end it is left to the end.

  Args:
    step: that was computed.
    every: interval in steps; 0 for the end alone.
    total: steps of the run.
  """
  if step == total:
    return True
  return bool(every) and step % every == 0 and 10 * (total - step) > every
