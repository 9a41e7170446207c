"""What a test may not leave to the next one."""

import contextlib
import gc
import multiprocessing
import os
import pathlib
import signal
import time

import jax

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# Seconds that a process gets which has been told to end.
_PATIENCE = 60
# Of a library that lives as long as this process.
_SERVANTS = (b"resource_tracker", b"forkserver")


class Watch:
  """The state of this process before a test; `check` compares it after."""

  def __init__(self):
    self._children = children()
    self._environment = dict(os.environ)
    self._handlers = list(map(signal.getsignal, _SIGNALS))
    self._config = dict(jax.config.values)
    self._files = files()

  def check(self) -> None:
    """Raises AssertionError for what is left; ends processes and restores."""
    if files() - self._files:
      gc.collect()  # so that ResourceWarnings come here, not in another test
    left = self._left()
    _restore(os.environ, self._environment)
    for number, handler in zip(_SIGNALS, self._handlers, strict=True):
      if signal.getsignal(number) != handler:
        signal.signal(number, handler)
    for name in self._changed_settings():
      jax.config.update(name, self._config[name])
    assert not left, f"the test left {'; '.join(left)}"

  def _left(self):
    left = [f"the process {name}" for name in self._end_children()]
    left += [
      f"the variable {name}={os.environ.get(name)!r}"
      for name in _changed(os.environ, self._environment)
    ]
    left += [
      f"a handler of {number.name}"
      for number, handler in zip(_SIGNALS, self._handlers, strict=True)
      if signal.getsignal(number) != handler
    ]
    return left + [
      f"jax.config.{name}={jax.config.values[name]!r}"
      for name in self._changed_settings()
    ]

  def _changed_settings(self):
    now = jax.config.values  # made anew at each access
    return _changed(now, self._config) if now != self._config else ()

  def _end_children(self):
    """Names of the processes that do not end of themselves; kills them."""
    deadline = time.monotonic() + _PATIENCE
    while new := children() - self._children:
      if time.monotonic() > deadline:
        break
      time.sleep(0.01)
    names = []
    for pid in new:
      names.append(_command(pid).replace(b"\0", b" ").decode(errors="replace"))
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return names


def _changed(now, before):
  # pytest's own says which test runs.
  names = (now.keys() | before.keys()) - {"PYTEST_CURRENT_TEST"}
  return sorted(name for name in names if now.get(name) != before.get(name))


def _restore(now, before):
  for name in _changed(now, before):
    if name in before:
      now[name] = before[name]
    else:
      del now[name]


def children() -> set[int]:
  """Process ids of this process's children, as far as Linux tells."""
  multiprocessing.active_children()  # takes leave of those that have ended
  found = set()
  threads = "/proc/self/task"
  for thread in os.listdir(threads) if os.path.isdir(threads) else ():
    try:
      # Around each test, of all threads: `open` would take three times as long.
      file = os.open(f"{threads}/{thread}/children", os.O_RDONLY)
    except OSError:  # a thread that has ended
      continue
    try:
      found.update(map(int, os.read(file, 2**20).split()))
    except OSError:
      continue
    finally:
      os.close(file)
  return {
    pid for pid in found if not any(s in _command(pid) for s in _SERVANTS)
  }


def files() -> set[str]:
  """Numbers of the open files, as far as Linux tells."""
  folder = "/proc/self/fd"
  return set(os.listdir(folder)) if os.path.isdir(folder) else set()


def _command(pid):
  try:
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
  except OSError:
    return b""
