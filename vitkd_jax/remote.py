"""Objects behind URLs such as gs://, through tensorstore: no TensorFlow."""

from collections.abc import Callable
import os
from typing import Any

# Of the stores that can be listed, which tells a folder from an object.
_SCHEMES = ("gs", "s3", "file")


def is_remote(path: str | os.PathLike | None) -> bool:
  """Whether a path has a scheme such as gs://.

  Args:
    path: a local path or a URL; None is neither.

  Raises:
    ValueError: a URL of another scheme.
  """
  scheme, found, _ = os.fspath(path or "").partition("://")
  if found and scheme not in _SCHEMES:
    raise ValueError(
      f"expected a local path or a URL of {', '.join(_SCHEMES)}, got "
      f"{os.fspath(path or '')!r}; download what is there first"
    )
  return bool(found)


def absolute(path: str | os.PathLike) -> str:
  """The absolute form of a local path; a URL unchanged.

  Args:
    path: a local path or a URL.
  """
  path = os.fspath(path)
  return path if is_remote(path) else os.path.abspath(path)


def read(url: str, start: int | None = None, stop: int | None = None) -> bytes:
  """The bytes of an object, or a range of them.

  Args:
    url: of the object.
    start: first byte of the range; None for the beginning.
    stop: byte after the last of the range; None for the end.

  Raises:
    ValueError: the object does not exist or cannot be read.
  """
  result = _ask(
    url, lambda store: store.read("", byte_range=slice(start, stop))
  )
  if result.state != "value":
    raise ValueError(f"cannot read {url!r}: no such object")
  return result.value


def write(url: str, content: bytes) -> None:
  """Writes an object atomically.

  Args:
    url: of the object.
    content: its bytes; they replace an existing object.

  Raises:
    ValueError: the object cannot be written.
  """
  _ask(url, lambda store: store.write("", content), "write")


def exists(url: str) -> bool:
  """Whether an object of exactly this name exists.

  Args:
    url: of the object.

  Raises:
    ValueError: the store cannot be read.
  """
  import tensorstore as ts

  only = ts.KvStore.KeyRange(b"", b"\0")
  return bool(_ask(url, lambda store: store.list(only)))


def is_folder(url: str) -> bool:
  """Whether objects exist below this name, and none of exactly this name.

  Args:
    url: of the folder, with or without a trailing slash.

  Raises:
    ValueError: the store cannot be read.
  """
  if exists(url):  # a file of file://, which cannot be listed
    return False
  return bool(_ask(url.rstrip("/") + "/", lambda store: store.list()))


def keys(path: str) -> list[str]:
  """The paths of all objects or files below a folder, relative to it.

  Args:
    path: of the folder, local or a URL.

  Raises:
    ValueError: the store cannot be read.
  """
  found = _ask(path.rstrip("/") + "/", lambda store: store.list())
  return sorted(key.decode() for key in found)


def store(path: str) -> str | dict[str, str]:
  """What tensorstore opens as the key-value store of a path.

  Args:
    path: local or a URL; of a folder with a trailing slash.
  """
  if is_remote(path):
    return path
  slash = "/" if path.endswith("/") else ""
  return {"driver": "file", "path": os.path.abspath(path) + slash}


def _ask(url: str, what: Callable[[Any], Any], verb: str = "read") -> Any:
  import tensorstore as ts

  try:
    return what(ts.KvStore.open(store(url)).result()).result()
  except Exception as error:  # one of ten types, by the status
    reason = str(error).partition(" [")[0].strip().replace("\n", " ")
    raise ValueError(f"cannot {verb} {url!r}: {reason}") from None
