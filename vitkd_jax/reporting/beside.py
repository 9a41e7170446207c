"""What other commands left in the folders of a workdir.

`evaluate --out RUN/NAME` and `inspect --out RUN/NAME` write files there that a
report of the run shows with it.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import io
import json
from typing import Any
import zipfile

from etils import epath
import numpy as np

from vitkd_jax.runs import reading

INSPECTION, GALLERY = "inspect.json", "gallery.npz"


@dataclasses.dataclass(frozen=True)
class Left:
  """What a command left of a run.

  Attributes:
    run: the run.
    found: its results.
    folder: where they are.
  """

  run: reading.Run
  found: Mapping[str, Any]
  folder: epath.Path


def evaluations(run: reading.Run) -> Iterator[Left]:
  """Evaluations of a run, by folder; those of several datasets, too.

  Args:
    run: the run.

  Raises:
    ValueError: a file is damaged.
  """
  for pattern in ("*/evaluation.json", "*/*/evaluation.json"):
    for path in sorted(epath.Path(run.path).glob(pattern)):
      yield Left(run, _json(path), path.parent)


def inspections(run: reading.Run) -> Iterator[Left]:
  """Inspections of a run, by folder, with their galleries.

  Args:
    run: the run.

  Raises:
    ValueError: a file is damaged.
  """
  for path in sorted(epath.Path(run.path).glob(f"*/{INSPECTION}")):
    found = _json(path)
    found["gallery"] = _gallery(path.parent / GALLERY)
    yield Left(run, found, path.parent)


def written(found: Mapping[str, Any]) -> dict[str, str | bytes]:
  """The files of an inspection, for `inspections`, by name.

  Args:
    found: from `diagnostics.running.inspect`.
  """
  plain = {name: x for name, x in found.items() if name != "gallery"}
  arrays: dict[str, Any] = _flat(found["gallery"])
  content = io.BytesIO()
  np.savez_compressed(content, **arrays)
  return {
    INSPECTION: json.dumps(plain, indent=2) + "\n",
    GALLERY: content.getvalue(),
  }


def _flat(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Arrays by the path of their keys."""
  found: dict[str, np.ndarray] = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      inner = _flat(value).items()
      found |= {f"{name}/{key}": x for key, x in inner}
    else:
      found[name] = np.asarray(value)
  return found


def _gallery(path: epath.Path) -> dict[str, Any] | None:
  """As `_flat` was given it; None where there is none."""
  if not path.exists():
    return None
  tree: dict[str, Any] = {}
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
      for key in arrays.files:
        *outer, last = key.split("/")
        inner = tree
        for name in outer:
          inner = inner.setdefault(name, {})
        inner[last] = arrays[key]
  except (ValueError, EOFError, zipfile.BadZipFile):
    raise ValueError(_damaged(path)) from None
  return tree


def _json(path: epath.Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_bytes())
  except ValueError:
    found = None
  if not isinstance(found, dict):
    raise ValueError(_damaged(path))
  return found


def _damaged(path: epath.Path) -> str:
  return f"{path} is damaged; delete it or write it again"
