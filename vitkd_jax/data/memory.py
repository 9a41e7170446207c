"""Memory that a process may still fill."""

import pathlib

_MEMINFO = pathlib.Path("/proc/meminfo")
_GROUP = pathlib.Path("/sys/fs/cgroup")


def available() -> int | None:
  """Bytes, within the container's limit; None where Linux does not tell."""
  try:
    rows = _MEMINFO.read_text().splitlines()
    (free,) = (int(r.split()[1]) for r in rows if r.startswith("MemAvailable"))
  except (OSError, ValueError):
    return None
  free *= 1024
  try:
    most = int((_GROUP / "memory.max").read_text())  # "max" is no limit
    used = dict(
      row.split() for row in (_GROUP / "memory.stat").read_text().splitlines()
    )
  except (OSError, ValueError):
    return free
  # Pages of files are given back when memory is short.
  return max(0, min(free, most - int(used["anon"])))
