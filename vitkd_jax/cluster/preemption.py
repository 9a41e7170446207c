"""Notices that a run must end: SIGTERM, TPU maintenance, a closed terminal.

JAX's own handler catches them in every process that `startup.start` joined,
and agrees on one common point; there must be no other handler of SIGTERM. One
that comes while JAX compiles is kept, and answered by the first poll after it.
"""

from collections.abc import Iterator
import contextlib
import itertools
import os
import signal
import threading
import time

from jax.experimental import multihost_utils

from vitkd_jax import errors
from vitkd_jax.cluster import console

# JAX agrees on the next number after the largest that any process asked with:
# one that is left out would be waited for for ever.
_numbers = itertools.count(1)
# A launcher passes on the Ctrl-C that its children got from the terminal, too.
_ONE_PRESS_SECONDS = 1.0
# For the main thread to answer before anything is worth saving; while it
# compiles, it cannot.
_ANSWER_SECONDS = 2.0
_saves = threading.Event()
_interrupted = threading.Event()


def noticed() -> bool:
  """Whether all processes must save and end here.

  To be called at the same points on every process, often, and no more once
  it was true. Without `startup.start` it is always False.
  """
  return multihost_utils.reached_preemption_sync_point(next(_numbers))


def interrupted() -> bool:
  """Whether the notice was this process's Ctrl-C."""
  return _interrupted.is_set()


@contextlib.contextmanager
def saving() -> Iterator[None]:
  """Context: there is progress that is worth saving, and `noticed` is asked."""
  _interrupted.clear()
  _saves.set()
  try:
    yield
  finally:
    _saves.clear()


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Context in which SIGHUP, and SIGINT while `saving`, are sent on as SIGTERM.

  A second SIGINT, and one before there is anything to save, ends the process
  with status 130. Signals that are ignored, as `nohup` has it, stay ignored.
  To be entered by the main thread.
  """
  ours = {
    signal.SIGHUP: (signal.SIG_DFL, lambda *_: None),
    signal.SIGINT: (signal.default_int_handler, _interrupt),
  }
  before = {number: signal.getsignal(number) for number in ours}
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  # The main thread may be in a long call of C++, whose end Python's handlers
  # wait for; a thread is told at once.
  listener = threading.Thread(target=_listen, args=(reader,), daemon=True)
  listener.start()
  wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for number, (default, handler) in ours.items():
    if before[number] == default:
      signal.signal(number, handler)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(wakeup)
    os.close(writer)  # which ends the thread


def _interrupt(number, frame):
  """The main thread's part: outside of `saving`, what Python always does."""
  if not _saves.is_set():
    signal.default_int_handler(number, frame)


def _listen(reader):
  first = None
  with os.fdopen(reader, "rb", buffering=0) as signals:
    while number := signals.read(1):
      now = time.monotonic()
      if number[0] == signal.SIGHUP:
        os.kill(os.getpid(), signal.SIGTERM)
      elif number[0] != signal.SIGINT:
        continue
      elif first is None and _saves.is_set():
        first = now
        _interrupted.set()
        console.complain(
          "interrupted: saving the state; Ctrl-C again leaves at once"
        )
        os.kill(os.getpid(), signal.SIGTERM)
      elif first is None:
        threading.Timer(_ANSWER_SECONDS, _leave).start()
      elif now > first + _ONE_PRESS_SECONDS:
        _leave()


def _leave():
  console.complain("error: interrupted")
  os._exit(errors.INTERRUPTED)
