"""Ends a process that hangs, and writes its stacks to disk.

JAX's heartbeat detects processes that died. One that hangs in a loader, a file
system or a lock still has a heartbeat, and all others wait for it.
"""

import contextlib
import faulthandler
import os
import subprocess
import sys
import tempfile
import threading
import time

from etils import epath

from vitkd_jax import remote
from vitkd_jax.cluster import overseer

# Times as long as a step: compilation, the first batch, saves.
_LONG = 4
# After which another process ends one whose interpreter hangs.
_GRACE_SECONDS = 5
# Most seconds between two looks at the clock that count: a process that was
# stopped for an hour has not been stuck for one.
_LONGEST_LOOK = 2.0


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
    self._look = min(1.0, seconds / 20)  # between two looks at the clock
    self._limit: float | None = None
    self._doing = ""
    # Seconds that this process has run, written by the watching thread alone.
    self._now = self._deadline = 0.0
    self._told = -1.0
    self._changed = threading.Condition()
    self._done = False
    self._overseer: subprocess.Popen | None = None

  def __enter__(self):
    if self._seconds:
      # Without a default stderr there is no place for stacks.
      with contextlib.suppress(OSError, ValueError, AttributeError):
        self._oversee()
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
    if self._overseer is not None:
      faulthandler.unregister(overseer.REQUEST)
      self._overseer.kill()
      self._overseer.communicate()  # closes the pipe

  def _oversee(self):
    faulthandler.register(
      overseer.REQUEST,
      file=sys.__stderr__ or sys.stderr,
      all_threads=True,
      chain=True,  # the default action ends the process
    )
    said = (
      f"error: process {self._process} was stuck, and its interpreter too, for "
      "longer than config.run.step_timeout; its stacks follow; run the same "
      "command again to resume from the last checkpoint"
    )
    program = [sys.executable, "-I", "-S", overseer.__file__]
    self._overseer = subprocess.Popen(
      [*program, str(os.getpid()), said],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      bufsize=0,
      start_new_session=True,  # signals to the group are not for it
    )
    assert self._overseer.stdin is not None
    self._pipe = self._overseer.stdin.fileno()
    os.set_blocking(self._pipe, False)

  def beat(self, doing: str, *, long: bool = False) -> None:
    """Restarts the clock.

    Args:
      doing: what the process does next, for the message.
      long: it may take four times the limit.
    """
    if not self._seconds:
      return
    limit, now = self._seconds * (_LONG if long else 1), self._now
    # Once in a look is enough.
    if self._overseer and (limit != self._limit or now != self._told):
      seconds = overseer.SECONDS.pack(limit + _GRACE_SECONDS)
      with contextlib.suppress(OSError):  # it was killed, or is stopped
        os.write(self._pipe, seconds)
      self._told = now
    self._limit, self._doing = limit, doing
    self._deadline = now + self._look + limit

  def _watch(self):
    last = time.monotonic()
    while True:
      with self._changed:
        self._changed.wait(self._look)
        if self._done:
          return
      now = time.monotonic()
      self._now += min(now - last, _LONGEST_LOOK)
      last = now
      if self._now >= self._deadline:
        self._end()

  def _end(self):
    # Where the file system hangs too, the other process ends this one.
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
