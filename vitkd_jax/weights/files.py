"""Hashes and writes files of weights.

Writers write a temporary file beside the target and rename it, so that a
failure leaves no partial file.
"""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import json
import os
import pathlib
import re
import tempfile
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from vitkd_jax import remote
from vitkd_jax.weights import bv_steps, opening, shards

Arrays = dict[str, np.ndarray]


def sha256(path: str | os.PathLike) -> str:
  """The SHA-256 of a file; of an index, with its shards.

  Args:
    path: a local path or a URL, see `reading.read`.

  Returns:
    64 hexadecimal digits.

  Raises:
    ValueError: the file cannot be read.
  """
  path = os.fspath(path)
  if bv_steps.is_step(path):
    return bv_steps.sha256(path)
  path, _ = bv_steps.split(path)
  with opening.opened(path) as file:
    digest = hashlib.file_digest(file, "sha256")
  if shards.is_index(path):
    for shard in sorted(set(shards.files_of(path).values())):
      digest.update(sha256(shard).encode())
  return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
  """Context whose temporary file becomes `path` if the body succeeds.

  Args:
    path: of the file to write; may be a URL.

  Yields:
    The path of the temporary file.

  Raises:
    ValueError: the file cannot be written.
  """
  path = os.fspath(path)
  if remote.is_remote(path):
    with tempfile.TemporaryDirectory() as folder:
      local = pathlib.Path(folder, os.path.basename(path))
      yield str(local)
      remote.write(path, local.read_bytes())
    return
  folder = os.path.dirname(path) or "."
  temporary = None
  try:
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
      dir=folder, prefix=f".{os.path.basename(path)}."
    )
    os.close(handle)
    yield temporary
    # Or after a power failure the name could outlive the content.
    with open(temporary, "rb") as file:
      os.fsync(file.fileno())
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private
    os.replace(temporary, path)
  except OSError as error:
    raise ValueError(f"cannot write {path!r}: {error.strerror}") from None
  finally:
    if temporary and os.path.exists(temporary):
      os.unlink(temporary)


def remove_unfinished(path: str | os.PathLike) -> None:
  """Removes the temporary files that killed processes left beside a file.

  Args:
    path: of the file, which no other process writes now; may be a URL, beside
      which there are none.
  """
  if remote.is_remote(path):
    return
  target = pathlib.Path(path)
  mkstemps = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}")
  for found in target.parent.glob(".*"):
    if mkstemps.fullmatch(found.name):
      found.unlink()


def write_safetensors(
  path: str | os.PathLike, arrays: Arrays, metadata: dict[str, str]
) -> None:
  """Writes arrays to a `.safetensors` file; equal input gives equal bytes.

  Args:
    path: of the file; may be a URL.
    arrays: by name.
    metadata: text by name, for the header.

  Raises:
    ValueError: the file cannot be written.
  """
  arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
  with replacing(path) as temporary:
    safetensors_numpy.save_file(arrays, temporary, metadata)
    if metadata:
      _sort_metadata(temporary)


def _sort_metadata(path: str) -> None:
  """Sorts the metadata in a header, whose order safetensors leaves open."""
  with open(path, "r+b") as file:
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    texts = header.pop("__metadata__")
    header = {"__metadata__": dict(sorted(texts.items())), **header}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
    content = text.encode().ljust(size)  # as the format pads it
    if len(content) == size:  # not if safetensors writes its JSON differently
      file.seek(8)
      file.write(content)


def write_npz(path: str | os.PathLike, arrays: Arrays) -> None:
  """Writes arrays to an uncompressed `.npz` file.

  Args:
    path: of the file; may be a URL.
    arrays: by name.

  Raises:
    ValueError: the file cannot be written.
  """
  named: dict[str, Any] = dict(arrays)  # mypy takes `arrays` for allow_pickle
  with replacing(path) as temporary, open(temporary, "wb") as file:
    np.savez(file, **named)


def check_below(
  most: int, leaves: Mapping[str, np.ndarray], format: str, instead: str
) -> None:
  """Refuses parameters that a format has no room for.

  Args:
    most: bytes that it has room for, about 2 GiB.
    leaves: the parameters.
    format: its name.
    instead: how to write them, the end of a sentence.

  Raises:
    ValueError: they are larger.
  """
  size = sum(leaf.nbytes for leaf in leaves.values())
  if size > most:
    raise ValueError(
      f"expected parameters below 2 GiB for format={format!r}, got {size:,} "
      f"bytes; write them as {instead}"
    )


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file.

  Args:
    path: of the file; may be a URL.
    text: its content.

  Raises:
    ValueError: the file cannot be written.
  """
  with replacing(path) as temporary, open(temporary, "w") as file:
    file.write(text)
