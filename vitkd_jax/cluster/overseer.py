"""Ends a process whose interpreter hangs; a script that runs beside it.

A timer within the process would also count the time for which it was stopped
(Ctrl-Z, `kill -STOP`, a suspended job), and end it when it goes on.

  python overseer.py PROCESS MESSAGE < pipe

The pipe brings seconds, float64 each, that the process may take from then on.
"""

import math
import os
import pathlib
import select
import signal
import struct
import sys

SECONDS = struct.Struct("d")
# faulthandler takes it for a request to write all stacks.
REQUEST = signal.SIGUSR2
_TICK = 1.0
_TICKS_TO_WRITE = 5


def watch(process: int, message: str) -> None:
  """Returns when the process has ended, or has been ended.

  Args:
    process: its identity, of the parent.
    message: for stderr, before it is ended.
  """
  left = math.inf
  while os.getppid() == process:
    ready, _, _ = select.select([0], [], [], _TICK)
    if ready:
      sent = os.read(0, 512 * SECONDS.size)
      if len(sent) < SECONDS.size:  # closed
        return
      (left,) = SECONDS.unpack(sent[-SECONDS.size :])
    elif not _is_stopped(process):
      left -= _TICK
    if left <= 0:
      print(message, file=sys.stderr, flush=True)
      os.kill(process, REQUEST)
      # It may be in a call that no signal but SIGKILL ends.
      for _ in range(_TICKS_TO_WRITE):
        if os.getppid() != process:
          return
        select.select([], [], [], _TICK)
      os.kill(process, signal.SIGKILL)
      return


def _is_stopped(process: int) -> bool:
  """Whether a process is stopped by a signal; never where /proc is missing."""
  try:
    stat = pathlib.Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return False
  return stat.rpartition(")")[2].split()[0] in ("T", "t")


if __name__ == "__main__":
  watch(int(sys.argv[1]), sys.argv[2])
