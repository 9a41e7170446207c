"""Worker processes of the input: how they live, and what they die of."""

import multiprocessing
import os
import signal
import threading

# Through which they hand over batches.
_SHARED = "/dev/shm"


def start(index: int, count: int) -> None:
  """Ties a worker process to its trainer."""
  del index, count
  ignore_signals()
  # Grain imports jax; a worker has no business on an accelerator.
  os.environ["JAX_PLATFORMS"] = "cpu"
  threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent():
  """Ends this process when its parent has, else it would wait for ever.

  Not with Linux's PR_SET_PDEATHSIG, which goes by the parent's *thread*: Grain
  starts workers in a thread that ends at `close()`, and a worker killed then
  may hold a lock of the queues between them, on which `close()` waits.
  """
  multiprocessing.parent_process().join()
  os._exit(1)


def ignore_signals() -> None:
  """Leaves it to the trainer to end this process."""
  # A scheduler sends SIGTERM to the whole process group; the trainer then saves
  # a last checkpoint, which it cannot when its workers die under it. So does a
  # terminal with Ctrl-C, and one that is closed.
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)


def explained(error: RuntimeError) -> str:
  """What Grain says of a worker process that is gone, and what to do."""
  said = str(error).partition(". ")[0].rstrip(".")
  if f"exit code -{int(signal.SIGBUS)}" in said:
    return (
      f"{said} (a bus error, as a rule because {_SHARED} is full, through which"
      " workers hand over images; give a container more of it, such as docker"
      " run --shm-size=8g, or take config.data.num_workers=0)"
    )
  if f"exit code -{int(signal.SIGKILL)}" in said:
    return (
      f"{said} (killed, as a rule because memory ran out; take fewer"
      " config.data.num_workers)"
    )
  return said
