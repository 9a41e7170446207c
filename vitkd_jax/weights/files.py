"""Files of named arrays: safetensors, npz and PyTorch's, read without trust.

No reader here executes what a file says: `np.load` never unpickles and
`torch.load` runs with weights_only. A writer fills a temporary file beside the
target and renames it, so that a failure leaves nothing behind.
"""

import contextlib
import hashlib
import io
import os
import tempfile
from typing import Any
import zipfile

import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

Arrays = dict[str, np.ndarray]

_WITHOUT_TORCH = (
  "reading {path!r} needs PyTorch, which is not installed; where it is, "
  "convert the file with safetensors.torch.save_file(torch.load(FILE, "
  'map_location="cpu", weights_only=True), "FILE.safetensors") (of the entry '
  '"model" or "state_dict" where the file has one)'
)


def sha256(path: str | os.PathLike) -> str:
  """The SHA-256 of a file's bytes, in hexadecimal.

  Raises:
    ValueError: the file cannot be read.
  """
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise ValueError(_unreadable(path, error)) from None


def read(path: str | os.PathLike) -> tuple[Arrays, dict[str, str]]:
  """The arrays of a file by name, and its metadata.

  What the file is, is told from its first bytes. Half-precision floats become
  float32. A path with a scheme (`gs://...`) is read whole into memory.

  Args:
    path: a `.safetensors`, `.npz`, `.pth` or `.bin` file.

  Returns:
    The arrays, and safetensors' metadata ({} for the other kinds).

  Raises:
    ValueError: the file is missing, truncated, no weights at all (a web page,
      a Git LFS pointer), or a pickle with more than arrays in it.
  """
  path = os.fspath(path)
  if "://" in path:
    content = io.BytesIO(_remote(path))
  else:
    try:
      content = open(path, "rb")  # noqa: SIM115, closed below
    except OSError as error:
      raise ValueError(_unreadable(path, error)) from None
  with content:
    head = content.read(512)
    content.seek(0)
    kind = _kind(path, head, content)
    content.seek(0)
    match kind:
      case "safetensors":
        arrays, metadata = _read_safetensors(path, content)
      case "npz":
        arrays, metadata = _read_npz(path, content), {}
      case _:
        arrays, metadata = _read_torch(path, content), {}
  if not arrays:
    raise ValueError(f"{path!r} holds no arrays")
  return {name: _as_float32(a) for name, a in arrays.items()}, metadata


def read_metadata(path: str) -> dict[str, str]:
  """The text in a `.safetensors` file's header.

  Raises:
    ValueError: the file is missing or damaged.
  """
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      return file.metadata() or {}
  except OSError as error:
    raise ValueError(_unreadable(path, error)) from None
  except safetensors.SafetensorError:
    raise ValueError(_truncated(path, "safetensors file")) from None


def _unreadable(path, error) -> str:
  return f"cannot read weights from {os.fspath(path)!r}: {error.strerror}"


def _remote(url: str) -> bytes:
  """The bytes behind a URL; tensorstore speaks gs:// without TensorFlow."""
  import tensorstore as ts

  try:
    result = ts.KvStore.open(url).result().read("").result()
  except Exception as error:
    raise ValueError(f"cannot read weights from {url!r}: {error}") from None
  if result.state != "value":
    raise ValueError(f"cannot read weights from {url!r}: no such object")
  return result.value


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
    except zipfile.BadZipFile:
      raise ValueError(_truncated(path, "archive")) from None
    return "npz" if any(n.endswith(".npy") for n in names) else "torch"
  if head.startswith(b"\x80"):  # PyTorch's format before 1.6
    return "torch"
  raise ValueError(
    f"{path!r} is neither safetensors nor npz nor a PyTorch file, or its "
    "beginning is damaged"
  )


def _truncated(path: str, kind: str) -> str:
  return (
    f"{path!r} is no complete {kind}: it is truncated or damaged; "
    "fetch or write it again"
  )


def _read_safetensors(path, content) -> tuple[Arrays, dict[str, str]]:
  try:
    if isinstance(content, io.BytesIO):
      return safetensors_numpy.load(content.getvalue()), {}
    with safetensors.safe_open(path, framework="numpy") as file:
      names = file.keys()
      arrays = {name: file.get_tensor(name) for name in names}
      return arrays, file.metadata() or {}
  except (safetensors.SafetensorError, KeyError, TypeError) as error:
    raise ValueError(
      f"{_truncated(path, 'safetensors file')} ({error})"
    ) from None


def _read_npz(path, content) -> Arrays:
  try:
    with np.load(content, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except ValueError as error:
    if "allow_pickle" in str(error):
      raise ValueError(
        f"{path!r} holds pickled objects, which are never loaded; save plain "
        "arrays instead"
      ) from None
    raise ValueError(_truncated(path, "npz file")) from None
  except Exception:  # zlib, zipfile and EOF errors share no base class
    raise ValueError(_truncated(path, "npz file")) from None


def _read_torch(path, content) -> Arrays:
  try:
    import torch
  except ImportError:
    raise ValueError(_WITHOUT_TORCH.format(path=path)) from None
  import pickle

  try:
    loaded = torch.load(content, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    reason = str(error)
    if "GLOBAL" not in reason and "Unsupported" not in reason:
      raise ValueError(_truncated(path, "PyTorch file")) from None
    raise ValueError(
      f"{path!r} is a pickle with more than arrays in it, which is never "
      "executed; where you trust it, save its state_dict alone"
    ) from None
  except Exception:  # RuntimeError, EOFError, OSError and more
    raise ValueError(_truncated(path, "PyTorch file")) from None
  return {
    name: value.float().numpy() if value.is_floating_point() else value.numpy()
    for name, value in _state_dict(path, loaded).items()
    if isinstance(value, torch.Tensor)
  }


def _state_dict(path: str, loaded: Any) -> dict[str, Any]:
  """The dict of tensors, which trainers nest under one of these names."""
  for name in ("model", "state_dict", "teacher"):
    if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
      loaded = loaded[name]
  if not isinstance(loaded, dict):
    raise ValueError(
      f"{path!r} holds a {type(loaded).__name__}, not a dict of tensors"
    )
  return loaded


def _as_float32(array: np.ndarray) -> np.ndarray:
  # np.save stores bfloat16 as two-byte void.
  if array.dtype.kind == "V" and array.dtype.itemsize == 2:
    array = array.view(ml_dtypes.bfloat16)
  if array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16:
    return array.astype(np.float32, copy=False)
  return array


@contextlib.contextmanager
def replacing(path: str | os.PathLike):
  """Yields a temporary name that becomes `path` when the body has succeeded.

  Raises:
    ValueError: the file cannot be written.
  """
  path = os.fspath(path)
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
  """Writes arrays to a `.safetensors` file."""
  arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
  with replacing(path) as temporary:
    safetensors_numpy.save_file(arrays, temporary, metadata)


def write_npz(path, arrays: Arrays) -> None:
  """Writes arrays to an uncompressed `.npz` file."""
  with replacing(path) as temporary, open(temporary, "wb") as file:
    np.savez(file, **arrays)


def write_text(path, text: str) -> None:
  """Writes a text file."""
  with replacing(path) as temporary, open(temporary, "w") as file:
    file.write(text)
