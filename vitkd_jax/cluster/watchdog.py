"""Ends a process that does not get on, with all its stacks on disk.

JAX's heartbeat finds processes that died; one that sleeps in a loader, a
file system or a lock goes on beating, and all others wait for it.
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

# Compilation, the first batch, saves: what may take longer than a step.
_LONG = 4
# After which a stuck interpreter, too, is ended, by a thread that is not
# Python's.
_GRACE_SECONDS = 5


class Watchdog:
  """Wants to be told again and again that the work goes on; a context.

  Args:
    folder: where stacks-process-N.txt goes; may be gs://.
    process: N.
    seconds: without a `beat` after which the process ends with status 1; 0
      never ends it.
  """

  def __init__(self, folder: str, process: int, seconds: float):
    self._path = epath.Path(folder) / f"stacks-process-{process}.txt"
    self._process, self._seconds = process, seconds
    self._limit, self._doing = None, ""
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
    """The work goes on.

    Args:
      doing: what comes now, for the message.
      long: it may take four times as long.
    """
    if not self._seconds:
      return
    limit, now = self._seconds * (_LONG if long else 1), time.monotonic()
    # Its thread is made anew each time: once a second is enough.
    if limit != self._limit or now > self._armed + 1:
      faulthandler.dump_traceback_later(
        limit + _GRACE_SECONDS, exit=True, file=sys.__stderr__
      )
      self._armed = now
    self._limit, self._doing, self._deadline = limit, doing, now + limit

  def _watch(self):
    while True:
      with self._changed:
        # A beat may also bring the deadline nearer.
        left = self._deadline - time.monotonic()
        self._changed.wait(min(max(left, 0.05), 1.0))
        if self._done:
          return
      if time.monotonic() >= self._deadline:
        self._end()

  def _end(self):
    # An unwilling file system must not keep the process alive: faulthandler's
    # thread ends it then.
    with contextlib.suppress(OSError):
      self._write()
    print(
      f"error: process {self._process} was stuck in {self._doing} for "
      f"{self._limit:g} s (config.run.step_timeout); its stacks are in "
      f"{self._path}; start the same command again to go on from the last "
      "checkpoint",
      file=sys.stderr,
      flush=True,
    )
    os._exit(1)  # an orderly exit would wait for the thread that is stuck

  def _write(self):
    if not remote.is_remote(self._path):
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with open(self._path, "w") as file:
        faulthandler.dump_traceback(file, all_threads=True)
      return
    with tempfile.TemporaryFile("w+") as file:  # it wants a real file
      faulthandler.dump_traceback(file, all_threads=True)
      file.seek(0)
      self._path.write_text(file.read())
