"""The index of a model in several files: `model.safetensors.index.json`."""

import os

from vitkd_jax import check
from vitkd_jax.weights import opening

_LONGEST = 100_000_000  # bytes of an index


def is_index(path: str) -> bool:
  """Whether a file is an index of shards.

  Args:
    path: of the file.
  """
  return path.endswith(".index.json")


def files_of(path: str) -> dict[str, str]:
  """The file of each tensor by name, all of them beside the index.

  Args:
    path: of the index; may be a URL.

  Raises:
    ValueError: the index is damaged, or names a file in another folder.
  """
  with opening.opened(path) as file:
    found = check.parse_json(file.read(_LONGEST), repr(path))
  shards = found.get("weight_map") if isinstance(found, dict) else None
  if not isinstance(shards, dict) or not shards:
    raise ValueError(f"{path!r}: expected a 'weight_map' from tensors to files")
  for name, file in shards.items():
    # In the folder itself, as an index may come from anywhere.
    if not isinstance(file, str) or os.path.basename(file) != file or not file:
      raise ValueError(
        f"{path!r}: expected the name of a file beside it for tensor "
        f"{name!r}, got {file!r}"
      )
  folder = os.path.dirname(path)
  return {name: os.path.join(folder, file) for name, file in shards.items()}
