"""A quick hash of a source, by which a second start recognises it."""

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

  No file is opened. Equal hashes mean equal names and sizes; different ones may
  differ in times only.

  Args:
    source: a local folder.
    deep: include the folders in it.
    options: what else determines the dataset; JSON-serializable.
    without: folders to exclude, since the output may be inside the source.
  """
  digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
  level, known = [source], set()
  excluded = {os.path.realpath(path) for path in without}
  with futures.ThreadPoolExecutor(16) as pool:  # a network drive's latency
    while level:
      listed = list(pool.map(_listed, level))
      below = []
      for path, (identity, lines, folders) in zip(level, listed, strict=True):
        if identity in known:  # a link to a parent
          continue
        known.add(identity)
        relative = os.path.relpath(path, source)
        digest.update(os.fsencode(f"{relative}/\n") + b"".join(lines))
        below += [f for f in folders if os.path.realpath(f) not in excluded]
      level = below if deep else []
  return digest.hexdigest()


def _listed(path: str) -> tuple[Any, list[bytes], list[str]]:
  """The folder's identity, a line for each file, and paths of its folders."""
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
