"""Memory that is available to this process."""

import pathlib

_MEMINFO = pathlib.Path("/proc/meminfo")
_GROUP = pathlib.Path("/sys/fs/cgroup")


def available() -> int | None:
  """Available bytes, within the container's limit; None if unknown."""
  try:
    rows = _MEMINFO.read_text().splitlines()
    (free,) = (int(r.split()[1]) for r in rows if r.startswith("MemAvailable"))
  except (OSError, ValueError):
    return None
  free *= 1024
  try:
    most = int((_GROUP / "memory.max").read_text())  # raises for "max"
    used = dict(
      row.split() for row in (_GROUP / "memory.stat").read_text().splitlines()
    )
  except (OSError, ValueError):
    return free
  # The page cache is reclaimable, so only anonymous memory counts.
  return max(0, min(free, most - int(used["anon"])))
