"""Memory that is available to this process, and a share of it for threads."""

from collections.abc import Iterator
import contextlib
import pathlib
import threading

_MEMINFO = pathlib.Path("/proc/meminfo")
_GROUP = pathlib.Path("/sys/fs/cgroup")


def available() -> int | None:
  """Available bytes, within the container's limit; None if unknown."""
  try:
    rows = _MEMINFO.read_text().splitlines()
    (free,) = (int(r.split()[1]) for r in rows if r.startswith("MemAvailable"))
  except (OSError, ValueError):
    return None
  free *= 1024
  try:
    most = int((_GROUP / "memory.max").read_text())  # raises for "max"
    used = dict(
      row.split() for row in (_GROUP / "memory.stat").read_text().splitlines()
    )
  except (OSError, ValueError):
    return free
  # The page cache is reclaimable, so only anonymous memory counts.
  return max(0, min(free, most - int(used["anon"])))


class Room:
  """Memory that threads share: who needs more than is left waits.

  Attributes:
    waiting: number of threads that wait.

  Args:
    size: in bytes.
  """

  def __init__(self, size: int):
    self._size, self._taken, self.waiting = size, 0, 0
    self._changed = threading.Condition()

  @contextlib.contextmanager
  def taking(self, number: int) -> Iterator[None]:
    """Context that takes memory; all of it, if it needs more.

    Args:
      number: of bytes.
    """
    number = min(number, self._size)
    with self._changed:
      self.waiting += 1
      self._changed.wait_for(lambda: self._taken + number <= self._size)
      self.waiting -= 1
      self._taken += number
    try:
      yield
    finally:
      with self._changed:
        self._taken -= number
        self._changed.notify_all()
