"""Opens files of weights, and checks them before they are read."""

import contextlib
import io
import os
import pathlib
import stat
from typing import Any

from vitkd_jax import check, remote

_LONGEST_JSON = 100_000_000  # bytes

# Archives that unpack to less, in bytes, are never refused for it.
_SMALL = 1 << 28


def opened(path: str) -> io.BytesIO | io.BufferedReader:
  """A regular file, open for reading; an object in memory.

  Args:
    path: a local path or a URL.

  Raises:
    ValueError: there is no such file, it cannot be read, or it is a folder, a
      FIFO or a device, which may never end.
  """
  if remote.is_remote(path):
    return io.BytesIO(remote.read(path))
  try:
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
      return open(path, "rb")
  except (OSError, ValueError) as error:  # ValueError: a null character
    raise ValueError(unreadable(path, error)) from None
  kind = next(
    (word for is_kind, word in _KINDS if is_kind(mode)), "special file"
  )
  raise ValueError(
    f"cannot read weights from {path!r}: expected a regular file, got a {kind}"
  )


_KINDS = (
  (stat.S_ISFIFO, "FIFO"),
  (stat.S_ISDIR, "folder"),
  (stat.S_ISSOCK, "socket"),
  (stat.S_ISCHR, "device"),
  (stat.S_ISBLK, "device"),
)


def exists(path: str) -> bool:
  """Whether there is a file or folder, or an object of exactly this name.

  Args:
    path: a local path or a URL.
  """
  return (remote.exists if remote.is_remote(path) else os.path.exists)(path)


def is_folder(path: str) -> bool:
  """Whether a path is a folder.

  Args:
    path: a local path or a URL.
  """
  return (remote.is_folder if remote.is_remote(path) else os.path.isdir)(path)


def read_json(path: str) -> dict[str, Any]:
  """The dict in a JSON file; {} if there is no file, or no dict in it.

  Args:
    path: of the file; may be a URL.

  Raises:
    ValueError: the file is damaged or cannot be read.
  """
  if not (exists(path) or os.path.lexists(path)):
    return {}
  with opened(path) as file:
    found = check.parse_json(file.read(_LONGEST_JSON), repr(path))
  return found if isinstance(found, dict) else {}


def check_memory(path: str, needed: int) -> None:
  """Refuses a file that does not fit in memory, before it is read.

  Args:
    path: of the file.
    needed: bytes of its content.

  Raises:
    ValueError: this machine has less memory.
  """
  there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  limit = pathlib.Path("/sys/fs/cgroup/memory.max")
  with contextlib.suppress(OSError, ValueError):  # no cgroup, or "max"
    there = min(there, int(limit.read_text()))
  if needed > there:
    raise ValueError(
      f"{path!r} needs {needed / 1e9:,.1f} GB of memory, but this machine has "
      f"{there / 1e9:,.1f} GB"
    )


def check_unpacked(path: str, size: int, unpacked: int) -> None:
  """Refuses an archive whose content is no weights: it compresses too well.

  Args:
    path: of the file.
    size: its bytes.
    unpacked: bytes of its content.

  Raises:
    ValueError: the content is a hundred times as large, and large.
  """
  check_memory(path, unpacked)
  if unpacked > max(100 * size, _SMALL):
    raise ValueError(
      f"expected weights in {path!r}, got an archive of {size / 1e6:,.1f} MB "
      f"that unpacks to {unpacked / 1e6:,.1f} MB, which no weights do; save "
      "them without compression if they are"
    )


def unreadable(path: str, error: Exception) -> str:
  """The sentence about a file that cannot be read.

  Args:
    path: of the file.
    error: the reason.
  """
  reason = getattr(error, "strerror", None) or str(error)
  return f"cannot read weights from {path!r}: {reason}"


def truncated(path: str, kind: str) -> str:
  """The sentence about a truncated or damaged file.

  Args:
    path: of the file.
    kind: of file, such as "npz file".
  """
  return f"{path!r}: truncated or damaged {kind}; download or write it again"
