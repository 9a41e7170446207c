"""This machine, and what each of several trainings gets of it."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import platform
import re


def said() -> str:
  """This machine, in words: its processor, and what accelerators it has."""
  name = platform.processor() or platform.machine()
  with contextlib.suppress(OSError):
    text = pathlib.Path("/proc/cpuinfo").read_text()
    if match := re.search(r"^model name\s*: (.*)$", text, re.M):
      name = match[1]
  gpus = _gpus()
  text = f"{name}, {len(_own_cores())} cores"
  return text + (f", {len(gpus)} GPUs" if gpus else "")


def _gpus() -> list[str]:
  """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
  given = os.environ.get("CUDA_VISIBLE_DEVICES")
  if given is not None:
    return [name for name in given.split(",") if name]
  found = pathlib.Path("/dev").glob("nvidia[0-9]*")
  return [str(i) for i in range(len(list(found)))]


def device(slot: int, jobs: int) -> dict[str, str]:
  """Environment that gives one of several trainings a GPU of its own."""
  gpus = _gpus()
  if jobs == 1 or len(gpus) < 2:
    return {}
  return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]}


def _own_cores() -> list[int]:
  if hasattr(os, "sched_getaffinity"):  # Linux
    return sorted(os.sched_getaffinity(0))
  return []


@contextlib.contextmanager
def cores(slot: int, jobs: int) -> Iterator[None]:
  """A context whose child processes get one of several trainings' cores."""
  every = _own_cores()
  share = len(every) // jobs
  if jobs == 1 or not share:
    yield
    return
  # A new process inherits the cores of the thread that starts it.
  os.sched_setaffinity(0, every[slot * share : (slot + 1) * share])
  try:
    yield
  finally:
    os.sched_setaffinity(0, every)
