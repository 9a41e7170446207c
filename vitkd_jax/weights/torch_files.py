"""Reads PyTorch's files without executing code in them."""

import argparse
import codecs
from collections.abc import Sequence
import contextlib
import dataclasses
import pathlib
import pickle
import re
from typing import Any
import warnings

import numpy as np

from vitkd_jax.weights import opening, rules

_WITHOUT_TORCH = (
  "reading {path!r} needs PyTorch, which is not installed; where it is, "
  "convert the file with safetensors.torch.save_file(torch.load(FILE, "
  'map_location="cpu", weights_only=True), "FILE.safetensors") (its entry '
  '"model" or "state_dict" if it has one)'
)

# Names under which trainers nest the tensors, possibly several times.
_STUDENT = ("model", "state_dict", "model_state_dict", "net", "student")
_EMA = (
  "model_ema",
  "state_dict_ema",
  "model_state_dict_ema",
  "ema_state_dict",
  "ema_model",
  "ema",
  "teacher",  # of DINO, whose authors evaluate it
)
_ORDER = {
  None: (*_STUDENT[:-1], "teacher", "student", *_EMA[:-1]),
  "student": _STUDENT,
  "ema": (*_EMA, *_STUDENT[:-1]),
}
_DEEPEST = 5  # a pickle may contain itself


@dataclasses.dataclass(frozen=True)
class State:
  """The tensors of a checkpoint.

  Attributes:
    arrays: by name.
    names: of the entries in which they are nested, outermost first.
    notes: sentences on what was chosen.
  """

  arrays: dict[str, np.ndarray]
  names: tuple[str, ...]
  notes: tuple[str, ...]


def read(path: str, content: Any, which: str | None) -> State:
  """The tensors of a file.

  Args:
    path: of the file, for messages.
    content: the file, open at its beginning.
    which: "student" or "ema" of a checkpoint that has both; None for the
      student, or DINO's teacher.

  Raises:
    ValueError: PyTorch is not installed, or the file is damaged, or it has
      other objects than tensors and plain values, or unsupported tensors.
  """
  found, names, notes = _load(path, content), [], []
  for _ in range(_DEEPEST):
    nested = [
      name for name in _STUDENT + _EMA if isinstance(_entry(found, name), dict)
    ]
    name = next((name for name in _ORDER[which] if name in nested), None)
    if name is None:
      break
    for other in nested:
      if other != name and (other in _EMA) != (name in _EMA):
        flag = "ema" if other in _EMA else "student"
        notes.append(f"read {name!r}; --which {flag} reads {other!r}")
        break
    found = found[name]
    names.append(name)
  arrays = {}
  for name, value in found.items() if isinstance(found, dict) else ():
    array = _numpy(path, name, value)
    if array is not None:
      arrays[name] = array
  if not arrays:
    kind = type(found).__name__
    keys = list(map(str, found)) if isinstance(found, dict) else []
    raise ValueError(
      f"{path!r}: expected a dict of tensors, got "
      + (f"a dict of {rules.some(keys, 10)}" if keys else f"a {kind}")
    )
  return State(arrays, tuple(names), tuple(notes))


def is_average(names: Sequence[str]) -> bool:
  """Whether nested tensors are a moving average.

  Args:
    names: of the entries in which they are nested.
  """
  return any(name in _EMA for name in names)


def _entry(found: Any, name: str) -> Any:
  return found.get(name) if isinstance(found, dict) else None


def _load(path: str, content: Any) -> Any:
  try:
    import torch
  except ImportError:
    raise ValueError(_WITHOUT_TORCH.format(path=path)) from None
  try:
    with warnings.catch_warnings(), _plain_values(torch):
      warnings.simplefilter("ignore")  # on storages and layouts
      return torch.load(content, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    reason = str(error)
    if "GLOBAL" not in reason and "Unsupported" not in reason:
      raise ValueError(opening.truncated(path, "PyTorch file")) from None
    named = re.search(r"GLOBAL (\S+)", reason)
    what = f" ({named[1]})" if named else ""
    raise ValueError(
      f"expected a pickle of tensors alone, got other objects{what} in "
      f"{path!r}, which are never executed; if you trust the file, save its "
      "state_dict alone"
    ) from None
  except MemoryError:
    raise
  except Exception as error:  # RuntimeError, EOFError, OSError and more
    if "allocate memory" in str(error):
      raise MemoryError from None
    raise ValueError(opening.truncated(path, "PyTorch file")) from None


def _plain_values(torch: Any) -> contextlib.AbstractContextManager:
  """Context that allows arguments and NumPy's numbers, which trainers save.

  Their constructors take values and execute nothing.
  """
  scalar = np.float64(0).__reduce__()[0]
  array = np.zeros(0).__reduce__()[0]
  numbers = "?bBhHiIlLqQefd"
  allowed = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    np.ndarray,
    (codecs.encode, "_codecs.encode"),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in _CORES),
    *((array, f"numpy.{core}.multiarray._reconstruct") for core in _CORES),
    *{type(np.dtype(code)) for code in numbers},
  ]
  return torch.serialization.safe_globals(allowed)


_CORES = ("core", "_core")  # of NumPy 1 and 2


def _numpy(path: str, name: object, value: Any) -> np.ndarray | None:
  """The numbers of a tensor; None for other objects.

  Raises:
    ValueError: its name is not text, or its kind is not supported.
  """
  import torch

  if isinstance(value, np.ndarray):
    return value if isinstance(name, str) else None
  if not isinstance(value, torch.Tensor):
    return None
  if not isinstance(name, str):
    raise ValueError(
      f"{path!r}: expected text as the name of a tensor, got {name!r}"
    )
  for is_kind, kind in (
    (value.is_meta, "a meta tensor, which has no numbers"),
    (value.is_quantized, "a quantised tensor"),
    (value.layout is not torch.strided, f"a tensor of {value.layout}"),
    (value.is_nested, "a nested tensor"),
    (value.is_complex(), "a complex tensor"),
  ):
    if is_kind:
      raise ValueError(
        f"{path!r}: expected a dense tensor of real numbers, got {kind} in "
        f"{name!r}"
      )
  needed = value.numel() * max(value.element_size(), 4)
  if value.numel() * value.element_size() > value.untyped_storage().nbytes():
    opening.check_memory(path, needed)  # it is a view with repeated numbers
  value = value.detach().resolve_neg()
  return (value.float() if value.is_floating_point() else value).numpy()
