"""Ends a process that hangs, and writes its stacks to disk.

JAX's heartbeat detects processes that died. One that hangs in a loader, a file
system or a lock still has a heartbeat, and all others wait for it.
"""

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
import time

from etils import epath

from vitkd_jax import remote

# Times as long as a step: compilation, the first batch, saves.
_LONG = 4
# After which faulthandler's thread, which is not Python's, ends a process whose
# interpreter hangs.
_GRACE_SECONDS = 5


class Watchdog:
  """Ends the process with status 1 unless `beat` is called; a context.

  Args:
    folder: for stacks-process-N.txt; may be gs://.
    process: index N of this process.
    seconds: limit between two calls of `beat`; 0 for none.
  """

  def __init__(self, folder: str, process: int, seconds: float):
    self._path = epath.Path(folder) / f"stacks-process-{process}.txt"
    self._process, self._seconds = process, seconds
    self._limit: float | None = None
    self._doing = ""
    self._deadline = self._armed = 0.0
    self._changed = threading.Condition()
    self._done = False

  def __enter__(self):
    if self._seconds:
      self.beat("starting", long=True)
      self._thread = threading.Thread(
        target=self._watch, name="watchdog", daemon=True
      )
      self._thread.start()
    return self

  def __exit__(self, *_):
    with self._changed:
      self._done = True
      self._changed.notify()
    faulthandler.cancel_dump_traceback_later()

  def beat(self, doing: str, *, long: bool = False) -> None:
    """Restarts the clock.

    Args:
      doing: what the process does next, for the message.
      long: it may take four times the limit.
    """
    if not self._seconds:
      return
    limit, now = self._seconds * (_LONG if long else 1), time.monotonic()
    # Each call starts a new thread: once a second is enough.
    if limit != self._limit or now > self._armed + 1:
      faulthandler.dump_traceback_later(
        limit + _GRACE_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr
      )
      self._armed = now
    self._limit, self._doing, self._deadline = limit, doing, now + limit

  def _watch(self):
    while True:
      with self._changed:
        # A call of `beat` may also bring the deadline nearer.
        left = self._deadline - time.monotonic()
        self._changed.wait(min(max(left, 0.05), 1.0))
        if self._done:
          return
      if time.monotonic() >= self._deadline:
        self._end()

  def _end(self):
    # Where the file system hangs too, faulthandler's thread ends the process.
    with contextlib.suppress(OSError):
      self._write()
    print(
      f"error: process {self._process} was stuck in {self._doing} for "
      f"{self._limit:g} s (config.run.step_timeout); its stacks are in "
      f"{self._path}; run the same command again to resume from the last "
      "checkpoint",
      file=sys.stderr,
      flush=True,
    )
    os._exit(1)  # sys.exit would wait for the thread that hangs

  def _write(self):
    if not remote.is_remote(self._path):
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with open(self._path, "w") as file:
        faulthandler.dump_traceback(file, all_threads=True)
      return
    with tempfile.TemporaryFile("w+") as file:  # it needs a descriptor
      faulthandler.dump_traceback(file, all_threads=True)
      file.seek(0)
      self._path.write_text(file.read())
