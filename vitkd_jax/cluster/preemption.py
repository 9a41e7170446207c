"""Preemption notices: SIGTERM, TPU maintenance, Ctrl-C, a closed terminal.

JAX's own handler catches SIGTERM in processes that `startup.start` joined to
others, and agrees on one common point; they must have no other handler of it.
A process alone has the handler of `heed`. A notice that arrives while JAX
compiles is kept until the first poll after it.
"""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import os
import signal
import threading
import time
from typing import Any, NoReturn

from jax.experimental import multihost_utils

from vitkd_jax import errors
from vitkd_jax.cluster import console, startup

# JAX agrees on the number after the largest that any process has polled with,
# and would wait forever for a number that is skipped.
_numbers = itertools.count(1)
# A launcher forwards a Ctrl-C that its children also got from the terminal.
_ONE_PRESS_SECONDS = 1.0
# For the main thread to answer before there is anything to save; it cannot
# while it compiles.
_ANSWER_SECONDS = 2.0
# One object for each training in `saving`.
_saving: set[object] = set()
_interrupted = threading.Event()
_terminated = threading.Event()
_listens = threading.Event()


def noticed() -> bool:
  """Whether all processes must save and end here.

  Call it often, at the same points on every process, and never again after it
  was True. Without `heed`, or others to join, it is always False.
  """
  if startup.process_count() == 1:
    return _terminated.is_set()
  return multihost_utils.reached_preemption_sync_point(next(_numbers))


def interrupted() -> bool:
  """Whether the notice was this process's Ctrl-C."""
  return _interrupted.is_set()


def stop(saved: str) -> NoReturn:
  """Ends the run after a notice.

  Args:
    saved: a clause for users on what is saved.

  Raises:
    errors.PreemptedError: always.
  """
  by_hand = interrupted()
  raise errors.PreemptedError(
    f"{'interrupted' if by_hand else 'preempted'}: {saved}; start the same "
    "command again to resume",
    errors.INTERRUPTED if by_hand else 0,
  )


def heed() -> None:
  """Takes SIGTERM for a notice from now on, while `listening`.

  Call it after `startup.start`; of others than a lone process JAX does so.
  """
  if _listens.is_set() and startup.process_count() == 1:
    _terminated.clear()
    signal.signal(signal.SIGTERM, _terminate)


@contextlib.contextmanager
def saving() -> Iterator[None]:
  """Context in which there is progress to save, and `noticed` is polled.

  Of several trainings in a process each has its own.
  """
  if not _saving:
    _interrupted.clear()
  own = object()
  _saving.add(own)
  try:
    yield
  finally:
    _saving.remove(own)


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Context that turns SIGHUP, and SIGINT while `saving`, into SIGTERM.

  A second SIGINT, or one before there is anything to save, ends the process
  with status 130. Ignored signals, as under `nohup`, stay ignored. Only the
  main thread may enter it.
  """
  ours: dict[int, tuple[Any, Callable[[int, Any], None]]] = {
    signal.SIGHUP: (signal.SIG_DFL, lambda *_: None),
    signal.SIGINT: (signal.default_int_handler, _interrupt),
  }
  before = {number: signal.getsignal(number) for number in ours}
  term = signal.getsignal(signal.SIGTERM)
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  # Python's handlers wait for the main thread to return from C++; the wakeup
  # descriptor tells a thread at once.
  listener = threading.Thread(target=_listen, args=(reader,), daemon=True)
  listener.start()
  wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for number, (default, handler) in ours.items():
    if before[number] == default:
      signal.signal(number, handler)
  _listens.set()
  try:
    yield
  finally:
    _listens.clear()
    for number, old in before.items():
      signal.signal(number, old)
    if signal.getsignal(signal.SIGTERM) is _terminate:
      signal.signal(signal.SIGTERM, term)
    signal.set_wakeup_fd(wakeup)
    os.close(writer)  # which ends the thread


def _terminate(*_):
  _terminated.set()


def _interrupt(number, frame):
  """Python's own handler, except while `saving`."""
  if not _saving:
    signal.default_int_handler(number, frame)


def _listen(reader: int) -> None:
  first = None
  with os.fdopen(reader, "rb", buffering=0) as signals:
    while number := signals.read(1):
      now = time.monotonic()
      if number[0] == signal.SIGHUP:
        os.kill(os.getpid(), signal.SIGTERM)
      elif number[0] != signal.SIGINT:
        continue
      elif first is None and _saving:
        first = now
        _interrupted.set()
        console.complain(
          "interrupted: saving the state; press Ctrl-C again to exit at once"
        )
        os.kill(os.getpid(), signal.SIGTERM)
      elif first is None:
        threading.Timer(_ANSWER_SECONDS, _leave).start()
      elif now > first + _ONE_PRESS_SECONDS:
        _leave()


def _leave() -> None:
  console.complain("error: interrupted")
  os._exit(errors.INTERRUPTED)
