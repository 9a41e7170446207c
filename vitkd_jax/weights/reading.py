"""Reads files of named arrays: safetensors, npz and PyTorch's.

No reader here executes what a file says: `np.load` never unpickles and
`torch.load` runs with weights_only.
"""

import dataclasses
import io
import os
import re
from typing import Any
import zipfile

import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from vitkd_jax import check, remote
from vitkd_jax.weights import opening, shards, torch_files

Arrays = dict[str, np.ndarray]

# The most that a safetensors header may take, as in the library.
_LONGEST_HEADER = 100_000_000
# What safetensors calls the types that NumPy has.
_DTYPE = re.compile(r"F(64|32|16)|BF16|[IU](64|32|16|8)|BOOL")


@dataclasses.dataclass(frozen=True)
class Content:
  """What a file of weights holds.

  Attributes:
    arrays: by name; floats are float32.
    metadata: the text in a safetensors header, {} for the other kinds.
    names: of the entries of a PyTorch checkpoint that they were nested in.
    notes: what was chosen on the way, in sentences.
  """

  arrays: Arrays
  metadata: dict[str, str]
  names: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()


def read(path: str | os.PathLike, which: str | None = None) -> Content:
  """The arrays of a file by name, and its metadata.

  What the file is, is told from its first bytes. Half-precision floats become
  float32. A path with a scheme (`gs://...`) is read whole into memory.

  Args:
    path: a `.safetensors`, `.npz`, `.pth` or `.bin` file, or the
      `.index.json` of one in shards.
    which: "student" or "ema" of a PyTorch checkpoint that holds both.

  Raises:
    ValueError: the file is missing, truncated, too large for this machine, no
      weights at all (a web page, a Git LFS pointer), or a pickle with more
      than arrays in it.
  """
  path = os.fspath(path)
  if shards.is_index(path):
    return _read_shards(path, which)
  try:
    with opening.opened(path) as content:
      found = _read(path, content, which)
    arrays = {k: _as_float32(path, k, a) for k, a in found.arrays.items()}
  except MemoryError:
    raise ValueError(
      f"{path!r} does not fit in the memory of this machine"
    ) from None
  except OSError as error:
    raise ValueError(opening.unreadable(path, error)) from None
  if not arrays:
    raise ValueError(f"{path!r} holds no arrays")
  return dataclasses.replace(found, arrays=arrays)


def _read(path, content, which) -> Content:
  head = content.read(512)
  size = content.seek(0, os.SEEK_END)
  content.seek(0)
  kind = _kind(path, head, content)
  opening.check_memory(path, size)
  content.seek(0)
  if kind == "safetensors":
    return _read_safetensors(path, content, size)
  if head.startswith(b"PK"):
    with zipfile.ZipFile(content) as archive:
      opening.check_memory(path, sum(i.file_size for i in archive.infolist()))
    content.seek(0)
  if kind == "npz":
    return Content(_read_npz(path, content), {})
  found = torch_files.read(path, content, which)
  return Content(found.arrays, {}, found.names, found.notes)


def read_metadata(path: str) -> dict[str, str]:
  """The text in a `.safetensors` file's header.

  Raises:
    ValueError: the file is missing or damaged.
  """
  if remote.is_remote(path):  # the header alone, of what may be gigabytes
    start = remote.read(path, 0, 8)
    length = min(int.from_bytes(start, "little"), _LONGEST_HEADER)
    content = io.BytesIO(start + remote.read(path, 8, 8 + length))
    return _safetensors_header(path, content, len(content.getvalue()))[0]
  with opening.opened(path) as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return _safetensors_header(path, file, size)[0]


def _kind(path: str, head: bytes, content) -> str:
  if head[8:9] == b"{":
    return "safetensors"
  if head.lstrip()[:1] == b"<":
    raise ValueError(
      f"{path!r} is a web page, not weights: the download brought an error "
      "page; fetch the file again"
    )
  if head.startswith(b"version https://git-lfs"):
    raise ValueError(
      f"{path!r} is a Git LFS pointer, not weights; run `git lfs pull`"
    )
  if head.startswith(b"PK"):
    try:
      names = zipfile.ZipFile(content).namelist()
    except Exception:  # struct, zipfile and Unicode errors share no base class
      raise ValueError(opening.truncated(path, "archive")) from None
    return "npz" if any(n.endswith(".npy") for n in names) else "torch"
  if head.startswith(b"\x80"):  # PyTorch's format before 1.6
    return "torch"
  raise ValueError(
    f"{path!r} is neither safetensors nor npz nor a PyTorch file, or its "
    "beginning is damaged"
  )


def _safetensors_header(path, content, size) -> tuple[dict[str, str], Any]:
  """The metadata, and what the header says of each tensor."""
  length = int.from_bytes(content.read(8), "little")
  if not 0 < length <= min(size - 8, _LONGEST_HEADER):
    raise ValueError(opening.truncated(path, "safetensors file"))
  try:
    header = check.parse_json(content.read(length), "header")
  except ValueError:
    raise ValueError(opening.truncated(path, "safetensors file")) from None
  metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else 0
  if not isinstance(metadata, dict) or not all(
    isinstance(text, str) for text in metadata.values()
  ):
    raise ValueError(opening.truncated(path, "safetensors file"))
  return metadata, header


def _read_safetensors(path, content, size) -> Content:
  metadata, header = _safetensors_header(path, content, size)
  for name, tensor in header.items():
    dtype = tensor.get("dtype") if isinstance(tensor, dict) else None
    if isinstance(dtype, str) and not _DTYPE.fullmatch(dtype):
      raise ValueError(
        f"{path!r}: expected floats of 16 to 64 bits, got dtype {dtype:.20} "
        f"in tensor {name!r}"
      )
  try:
    if isinstance(content, io.BytesIO):
      return Content(safetensors_numpy.load(content.getvalue()), metadata)
    with safetensors.safe_open(path, framework="numpy") as file:
      arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except (safetensors.SafetensorError, KeyError, TypeError):
    raise ValueError(opening.truncated(path, "safetensors file")) from None
  return Content(arrays, metadata)


def _read_npz(path, content) -> Arrays:
  try:
    with np.load(content, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except MemoryError:
    raise
  except ValueError as error:
    if "allow_pickle" in str(error):
      raise ValueError(
        f"{path!r} holds pickled objects, which are never loaded; save plain "
        "arrays instead"
      ) from None
    raise ValueError(opening.truncated(path, "npz file")) from None
  except Exception:  # zlib, zipfile and EOF errors share no base class
    raise ValueError(opening.truncated(path, "npz file")) from None
  if not all(isinstance(array, np.ndarray) for array in arrays.values()):
    raise ValueError(
      opening.truncated(path, "npz file")
    )  # bytes, without a header
  return arrays


def _read_shards(path, which) -> Content:
  places, arrays = shards.files_of(path), {}
  files = sorted(set(places.values()))
  opening.check_memory(path, sum(map(_size, files)))
  for file in files:
    content = read(file, which)
    arrays |= {k: a for k, a in content.arrays.items() if places.get(k) == file}
  missing = sorted(set(places) - set(arrays))
  if missing:
    raise ValueError(
      f"{path!r}: {places[missing[0]]!r} has no tensor {missing[0]!r}"
    )
  note = f"read from {len(files)} shards"
  return Content(arrays, {}, notes=(note,))


def _size(path: str) -> int:
  with opening.opened(path) as file:
    return file.seek(0, os.SEEK_END)


def _as_float32(path, name, array: np.ndarray) -> np.ndarray:
  # np.save stores bfloat16 as two-byte void.
  if array.dtype.str[1:] == "V2" and array.dtype.names is None:
    array = array.view(ml_dtypes.bfloat16)
  if array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16:
    with np.errstate(over="ignore"):  # an infinity, which no model may have
      return array.astype(np.float32, copy=False)
  if array.dtype.kind not in "iub":
    raise ValueError(
      f"{path!r}: expected numbers, got dtype {array.dtype} in array {name!r}"
    )
  return array
