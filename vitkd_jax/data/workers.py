"""Worker processes of the input: how they start and what their deaths mean."""

import multiprocessing
from multiprocessing import resource_tracker, shared_memory
import os
import signal
import threading
from typing import Any

# Workers hand over batches through it.
_SHARED = "/dev/shm"


def start(index: int, count: int) -> None:
  """Ties a worker process to its trainer; Grain's `worker_init_fn`.

  Args:
    index: of the worker; not used.
    count: number of workers; not used.
  """
  del index, count
  ignore_signals()
  # Grain imports jax; a worker must not touch the accelerator.
  os.environ["JAX_PLATFORMS"] = "cpu"
  _track_before_creation()
  threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
  """Ends this process when its parent ends; else it would wait forever.

  Linux's PR_SET_PDEATHSIG will not do: it follows the parent's *thread*. Grain
  starts workers in a thread that ends at `close()`, and a worker killed then
  may hold a lock of their queues, on which `close()` waits.
  """
  parent = multiprocessing.parent_process()
  assert parent, "not a worker process"
  parent.join()
  os._exit(1)


def _track_before_creation() -> None:
  """Has the resource tracker know of shared memory before it exists.

  Python makes a segment and then names it to the tracker, which removes what
  dead processes leave. A worker that dies in between leaves it forever.
  """
  module = vars(shared_memory).get("_posixshmem")
  if module is None:  # not POSIX
    return
  make = module.shm_open

  def tracked(path: str, flags: int, *args: Any, **kwargs: Any) -> int:
    if flags & os.O_CREAT:
      resource_tracker.register(path, "shared_memory")
    return int(make(path, flags, *args, **kwargs))

  module.shm_open = tracked


def ignore_signals() -> None:
  """Ignores signals that the trainer handles for its workers."""
  # A scheduler sends SIGTERM to the whole process group, a terminal SIGINT or
  # SIGHUP; the trainer then saves a last checkpoint and needs its workers.
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)


def explained(error: RuntimeError) -> str:
  """Grain's message about a dead worker process, and what to do about it.

  Args:
    error: raised by Grain's iterator.
  """
  said = str(error).partition(". ")[0].rstrip(".")
  if f"exit code -{int(signal.SIGBUS)}" in said:
    return (
      f"{said} (a bus error, usually because {_SHARED}, through which workers"
      " pass images, is full; give the container more of it, such as docker run"
      " --shm-size=8g, or set config.data.num_workers=0)"
    )
  if f"exit code -{int(signal.SIGKILL)}" in said:
    return (
      f"{said} (killed, usually because memory ran out; decrease"
      " config.data.num_workers)"
    )
  return said
