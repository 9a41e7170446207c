"""For processes that compile side by side and then take turns on one GPU."""

from collections.abc import Iterator
import contextlib
import fcntl
import pathlib
import time


class Turns:
  """One process's part in it.

  Args:
    folder: shared by the processes; None for a process on its own. Whoever
      starts them makes a file `busy-NAME` there for each beforehand, and
      removes it when one has ended.
    name: of this process.
  """

  def __init__(self, folder: str | None, name: str):
    self._folder, self._name = pathlib.Path(folder or "."), name
    self._shared = folder is not None

  @contextlib.contextmanager
  def alone(self) -> Iterator[None]:
    """A context that one process at a time is in."""
    if not self._shared:
      yield
      return
    with (self._folder / "lock").open("w") as file:
      fcntl.flock(file, fcntl.LOCK_EX)
      yield

  def meet(self) -> None:
    """Waits until no process is busy compiling any more."""
    if not self._shared:
      return
    (self._folder / f"busy-{self._name}").unlink(missing_ok=True)
    while list(self._folder.glob("busy-*")):
      time.sleep(0.1)
