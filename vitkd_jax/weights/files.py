"""Hashes files of weights, and writes them.

A writer fills a temporary file beside the target and renames it, so that a
failure leaves nothing behind.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile

import numpy as np
from safetensors import numpy as safetensors_numpy

from vitkd_jax import remote
from vitkd_jax.weights import opening, shards

Arrays = dict[str, np.ndarray]


def sha256(path: str | os.PathLike) -> str:
  """The SHA-256 of a file's bytes, in hexadecimal; an index's with its shards.

  Raises:
    ValueError: the file cannot be read.
  """
  path = os.fspath(path)
  with opening.opened(path) as file:
    digest = hashlib.file_digest(file, "sha256")
  if shards.is_index(path):
    for shard in sorted(set(shards.files_of(path).values())):
      digest.update(sha256(shard).encode())
  return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: str | os.PathLike):
  """Yields a temporary name that becomes `path` when the body has succeeded.

  The path may be a URL.

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
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private
    os.replace(temporary, path)
  except OSError as error:
    raise ValueError(f"cannot write {path!r}: {error.strerror}") from None
  finally:
    if temporary and os.path.exists(temporary):
      os.unlink(temporary)


def write_safetensors(path, arrays: Arrays, metadata: dict[str, str]) -> None:
  """Writes arrays to a `.safetensors` file, twice the same the same bytes."""
  arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
  with replacing(path) as temporary:
    safetensors_numpy.save_file(arrays, temporary, metadata)
    if metadata:
      _sort_metadata(temporary)


def _sort_metadata(path):
  """Sorts the header's metadata, which safetensors writes in any order."""
  with open(path, "r+b") as file:
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    texts = header.pop("__metadata__")
    header = {"__metadata__": dict(sorted(texts.items())), **header}
    sorted_ = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
    sorted_ = sorted_.encode().ljust(size)  # as the format pads it
    if len(sorted_) == size:  # else it spells its header otherwise
      file.seek(8)
      file.write(sorted_)


def write_npz(path, arrays: Arrays) -> None:
  """Writes arrays to an uncompressed `.npz` file."""
  with replacing(path) as temporary, open(temporary, "wb") as file:
    np.savez(file, **arrays)


def write_text(path, text: str) -> None:
  """Writes a text file."""
  with replacing(path) as temporary, open(temporary, "w") as file:
    file.write(text)
