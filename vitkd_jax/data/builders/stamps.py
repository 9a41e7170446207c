"""A quick look at a source, by which a second start knows it again."""

from collections.abc import Mapping, Sequence
from concurrent import futures
import hashlib
import json
import os
from typing import Any


def stamp(
  source: str,
  *,
  deep: bool,
  options: Mapping[str, Any],
  without: Sequence[str] = (),
) -> str:
  """A hash of a folder's file names, sizes and times, and of `options`.

  No file is opened. As long as the hash is the same, so are names and sizes;
  another one may have times alone that differ.

  Args:
    source: a local folder.
    deep: look into its folders, too.
    options: what else decides the data set, JSON-able.
    without: folders that are not looked into: what is written may lie below.
  """
  digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
  level, known = [source], set()
  without = {os.path.realpath(path) for path in without}
  with futures.ThreadPoolExecutor(16) as pool:  # a network drive's latency
    while level:
      listed = list(pool.map(_listed, level))
      below = []
      for path, (identity, lines, folders) in zip(level, listed, strict=True):
        if identity in known:  # a link that leads back
          continue
        known.add(identity)
        relative = os.path.relpath(path, source)
        digest.update(os.fsencode(f"{relative}/\n") + b"".join(lines))
        below += [f for f in folders if os.path.realpath(f) not in without]
      level = below if deep else []
  return digest.hexdigest()


def _listed(path):
  """Which folder it is, a line for each file, the paths of its folders."""
  lines, folders = [], []
  try:
    own = os.stat(path)
    with os.scandir(path) as entries:
      for entry in sorted(entries, key=lambda e: e.name):
        if entry.is_dir():
          folders.append(entry.path)
          continue
        try:
          about = entry.stat()
          found = f"{about.st_size} {about.st_mtime_ns}"
        except OSError:  # a link to nowhere
          found = "?"
        lines.append(os.fsencode(f"{entry.name}\t{found}\n"))
  except OSError:
    return path, [b"?\n"], []
  return (own.st_dev, own.st_ino), lines, folders
