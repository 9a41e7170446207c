"""Reads files of named arrays: safetensors, npz, PyTorch's, big_vision's.

No code in a file is executed: `np.load` never unpickles, and `torch.load` runs
with weights_only.
"""

import dataclasses
import io
import os
from typing import Any, BinaryIO
import zipfile

import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from vitkd_jax import check, remote
from vitkd_jax.weights import bv_steps, opening, shards, torch_files

Arrays = dict[str, np.ndarray]

# Bytes of a safetensors header, as in the library.
_LONGEST_HEADER = 100_000_000
# safetensors' names of the dtypes that NumPy and ml_dtypes have.
_DTYPES = {
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "BOOL": np.dtype(bool),
  **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
  **{
    f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}")
    for kind in "IU"
    for size in (1, 2, 4, 8)
  },
}


@dataclasses.dataclass(frozen=True)
class Content:
  """The content of a file of weights.

  Attributes:
    arrays: by name; floats are float32.
    metadata: text in a safetensors header; {} for other files.
    names: of the entries of a PyTorch checkpoint that contain the arrays.
    notes: sentences on what was chosen.
  """

  arrays: Arrays
  metadata: dict[str, str]
  names: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()


def read(path: str | os.PathLike, which: str | None = None) -> Content:
  """The arrays of a file by name, and its metadata.

  The first bytes decide the kind of file. Half-precision floats become float32.
  URLs (`gs://...`) are read into memory as a whole.

  Args:
    path: a `.safetensors`, `.npz`, `.pth` or `.bin` file, the `.index.json` of
      a sharded one, or a step of big_vision's; may end in the name of a part,
      see `bv_steps.split`.
    which: "student" or "ema" of a PyTorch checkpoint that has both.

  Raises:
    ValueError: the file is missing, truncated, too large for this machine, not
      weights (a web page, a Git LFS pointer), or a pickle of other objects
      than arrays.
  """
  path = os.fspath(path)
  if shards.is_index(path):
    return _read_shards(path, which)
  file, part = bv_steps.split(path)
  try:
    if bv_steps.is_step(path):
      found = Content(bv_steps.read(path), {})
    else:
      with opening.opened(file) as content:
        found = _part(path, _read(file, content, which), part)
    arrays = {k: _as_float32(path, k, a) for k, a in found.arrays.items()}
  except MemoryError:
    raise ValueError(
      f"{path!r} does not fit in the memory of this machine"
    ) from None
  except OSError as error:
    raise ValueError(opening.unreadable(path, error)) from None
  if not arrays:
    raise ValueError(f"expected arrays in {path!r}, got none")
  return dataclasses.replace(found, arrays=arrays)


def _part(path: str, found: Content, part: str | None) -> Content:
  """The content with the arrays of a part alone, by its own names."""
  if part is None:
    return found
  try:
    own = bv_steps.pick(found.arrays, part)
  except ValueError as error:
    raise ValueError(f"{path!r}: {error}") from None
  arrays = {name: found.arrays[theirs] for name, theirs in own.items()}
  return dataclasses.replace(found, arrays=arrays)


def _read(path: str, content: BinaryIO, which: str | None) -> Content:
  kind, head, size = _identified(path, content)
  opening.check_memory(path, size)
  if kind == "safetensors":
    return _read_safetensors(path, content, size)
  if head.startswith(b"PK"):
    with zipfile.ZipFile(content) as archive:
      unpacked = sum(i.file_size for i in archive.infolist())
    opening.check_unpacked(path, size, unpacked)
    content.seek(0)
  if kind == "npz":
    return Content(_read_npz(path, content), {})
  found = torch_files.read(path, content, which)
  return Content(found.arrays, {}, found.names, found.notes)


def blank(path: str | os.PathLike) -> Content | None:
  """What `read` would return, with zeros that take no memory for all numbers.

  Args:
    path: as for `read`.

  Returns:
    None for files that do not begin with names and shapes, and for those that
    `read` refuses.
  """
  path = os.fspath(path)
  places = shards.files_of(path) if shards.is_index(path) else {}
  arrays: Arrays = {}
  metadata: dict[str, str] = {}
  try:
    whole, part = bv_steps.split(path)
    if bv_steps.is_step(path):
      whole, part = path, None
    for file in sorted(set(places.values())) or [whole]:
      stated = _stated(file)
      if stated is None:
        return None
      metadata, leaves = stated
      for name, (dtype, shape) in leaves.items():
        if places.get(name, file) == file:
          zero = _as_float32(file, name, np.zeros((), dtype))
          arrays[name] = np.broadcast_to(zero, shape)
    return _part(path, Content(arrays, {} if places else metadata), part)
  except Exception:  # of damaged files, which `read` refuses by a sentence
    return None


# Of the arrays in a file, by name.
_Stated = dict[str, tuple[np.dtype, Any]]


def _stated(path: str) -> tuple[dict[str, str], _Stated] | None:
  """The metadata, and each array's dtype and shape; None for PyTorch's."""
  if bv_steps.is_step(path):
    return {}, bv_steps.stated(path)
  if remote.is_remote(path):
    if remote.read(path, 0, 9)[8:] != b"{":
      return None
    metadata, header = _remote_header(path)
  else:
    with opening.opened(path) as content:
      kind, _, size = _identified(path, content)
      if kind == "npz":
        return {}, _npz_headers(content)
      if kind != "safetensors":
        return None
      metadata, header = _safetensors_header(path, content, size)
  return metadata, {
    name: (_DTYPES[tensor["dtype"]], tensor["shape"])
    for name, tensor in header.items()
  }


def read_metadata(path: str) -> dict[str, str]:
  """The text in the header of a `.safetensors` file.

  Args:
    path: of the file; may be a URL.

  Raises:
    ValueError: the file is missing or damaged.
  """
  if remote.is_remote(path):
    return _remote_header(path)[0]
  with opening.opened(path) as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return _safetensors_header(path, file, size)[0]


def _remote_header(path: str) -> tuple[dict[str, str], Any]:
  """As `_safetensors_header`; the file itself may be gigabytes."""
  start = remote.read(path, 0, 8)
  length = min(int.from_bytes(start, "little"), _LONGEST_HEADER)
  content = io.BytesIO(start + remote.read(path, 8, 8 + length))
  return _safetensors_header(path, content, len(content.getvalue()))


def _identified(path: str, content: BinaryIO) -> tuple[str, bytes, int]:
  """The kind of a file, its first bytes and its size; it is rewound."""
  head = content.read(512)
  size = content.seek(0, os.SEEK_END)
  content.seek(0)
  kind = _kind(path, head, content)
  content.seek(0)
  return kind, head, size


def _kind(path: str, head: bytes, content: BinaryIO) -> str:
  if head[8:9] == b"{":
    return "safetensors"
  if head.lstrip()[:1] == b"<":
    raise ValueError(
      f"expected weights, got a web page, probably an error page, in {path!r}; "
      "download the file again"
    )
  if head.startswith(b"version https://git-lfs"):
    raise ValueError(
      f"expected weights, got a Git LFS pointer in {path!r}; run `git lfs pull`"
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
    f"expected a safetensors, npz or PyTorch file, got {path!r}, which is "
    "none of these or damaged at its beginning"
  )


def _safetensors_header(
  path: str, content: BinaryIO, size: int
) -> tuple[dict[str, str], Any]:
  """The metadata, and the header's entry of each tensor."""
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


def _read_safetensors(path: str, content: BinaryIO, size: int) -> Content:
  metadata, header = _safetensors_header(path, content, size)
  for name, tensor in header.items():
    dtype = tensor.get("dtype") if isinstance(tensor, dict) else None
    if isinstance(dtype, str) and dtype not in _DTYPES:
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


def _read_npz(path: str, content: BinaryIO) -> Arrays:
  try:
    with np.load(content, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except MemoryError:
    raise
  except ValueError as error:
    if "allow_pickle" in str(error):
      raise ValueError(
        f"expected plain arrays, got pickled objects in {path!r}, which are "
        "never loaded; save arrays alone"
      ) from None
    raise ValueError(opening.truncated(path, "npz file")) from None
  except Exception:  # zlib, zipfile and EOF errors share no base class
    raise ValueError(opening.truncated(path, "npz file")) from None
  # Bytes are what NumPy returns for an entry without a header.
  if not all(isinstance(array, np.ndarray) for array in arrays.values()):
    raise ValueError(opening.truncated(path, "npz file"))
  return arrays


def _npz_headers(content: BinaryIO) -> dict[str, tuple[np.dtype, Any]]:
  """The dtype and shape of each array."""
  found = {}
  with zipfile.ZipFile(content) as archive:
    for entry in archive.namelist():
      with archive.open(entry) as file:
        readers = {
          (1, 0): np.lib.format.read_array_header_1_0,
          (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
      found[entry.removesuffix(".npy")] = dtype, shape
  return found


def _read_shards(path: str, which: str | None) -> Content:
  places = shards.files_of(path)
  arrays: Arrays = {}
  files = sorted(set(places.values()))
  opening.check_memory(path, sum(map(_size, files)))
  for file in files:
    content = read(file, which)
    arrays |= {k: a for k, a in content.arrays.items() if places.get(k) == file}
  missing = sorted(set(places) - set(arrays))
  if missing:
    raise ValueError(
      f"{path!r}: expected a tensor {missing[0]!r} in {places[missing[0]]!r}"
    )
  note = f"read from {len(files)} shards"
  return Content(arrays, {}, notes=(note,))


def _size(path: str) -> int:
  with opening.opened(path) as file:
    return file.seek(0, os.SEEK_END)


def _as_float32(path: str, name: str, array: np.ndarray) -> np.ndarray:
  # np.save stores bfloat16 as two-byte void.
  if array.dtype.str[1:] == "V2" and array.dtype.names is None:
    array = array.view(ml_dtypes.bfloat16)
  if array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16:
    with np.errstate(over="ignore"):  # infinities are refused later
      return array.astype(np.float32, copy=False)
  if array.dtype.kind not in "iub":
    raise ValueError(
      f"{path!r}: expected numbers, got dtype {array.dtype} in array {name!r}"
    )
  return array
