"""Files behind a scheme, such as gs://, by tensorstore: no TensorFlow."""

import os
from typing import Any


def is_remote(path: str | os.PathLike | None) -> bool:
  """Whether there is a path, and it has a scheme."""
  return path is not None and "://" in os.fspath(path)


def absolute(path: str | os.PathLike) -> str:
  """A local path from the root on; a remote one as it is."""
  path = os.fspath(path)
  return path if is_remote(path) else os.path.abspath(path)


def read(url: str, start: int | None = None, stop: int | None = None) -> bytes:
  """The bytes of an object, or those from `start` to `stop`.

  Raises:
    ValueError: there is none, or it cannot be read.
  """
  result = _ask(
    url, lambda store: store.read("", byte_range=slice(start, stop))
  )
  if result.state != "value":
    raise ValueError(f"cannot read {url!r}: no such object")
  return result.value


def write(url: str, content: bytes) -> None:
  """Writes an object whole, or not at all.

  Raises:
    ValueError: it cannot be written.
  """
  _ask(url, lambda store: store.write("", content), "write")


def exists(url: str) -> bool:
  """Whether there is an object of exactly this name."""
  import tensorstore as ts

  only = ts.KvStore.KeyRange(b"", b"\0")
  return bool(_ask(url, lambda store: store.list(only)))


def is_folder(url: str) -> bool:
  """Whether there are objects below this name, and none of it."""
  if exists(url):  # of file://, which cannot be listed
    return False
  return bool(_ask(url.rstrip("/") + "/", lambda store: store.list()))


def _ask(url, what, verb="read") -> Any:
  import tensorstore as ts

  try:
    return what(ts.KvStore.open(url).result()).result()
  except Exception as error:  # it raises what the status means: ten types
    reason = str(error).partition(" [")[0].strip().replace("\n", " ")
    raise ValueError(f"cannot {verb} {url!r}: {reason}") from None
