"""What a path of weights stands for, and what it says of its model."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from vitkd_jax.models import variants, vit
from vitkd_jax.weights import reading, workdirs

SHIPPED = "shipped:"
_SHIPPED_FOLDER = pathlib.Path(__file__).parents[1] / "teachers"

# The weights' file in a folder, in order of preference.
_IN_FOLDER = (
  "model.safetensors",
  workdirs.EXPORTED,
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
)


def find(path: str, *, saved: bool = False) -> str | None:
  """The file of weights that a path stands for; None for our checkpoints.

  Args:
    path: as `loading.load` takes it.
    saved: a workdir's checkpoints go before its exported file.

  Raises:
    ValueError: there is none.
  """
  if path.startswith(SHIPPED):
    name = path.removeprefix(SHIPPED)
    known = sorted(p.stem for p in _SHIPPED_FOLDER.glob("*.safetensors"))
    if name not in known:
      raise ValueError(
        f"no teacher {name!r} is shipped; there are: {', '.join(known)}"
      )
    return str(_SHIPPED_FOLDER / f"{name}.safetensors")
  if "://" not in path and not os.path.lexists(path):
    raise ValueError(f"there are no weights at {path!r}")
  if not os.path.isdir(path):
    return path
  ours = os.path.isdir(os.path.join(path, "checkpoints"))
  for name in () if ours and saved else _IN_FOLDER:
    if os.path.exists(os.path.join(path, name)):
      return os.path.join(path, name)
  if ours or os.path.basename(os.path.normpath(path)) == "checkpoints":
    return None
  raise ValueError(
    f"{path!r} holds neither {' nor '.join(map(repr, _IN_FOLDER))} nor "
    "checkpoints"
  )


@dataclasses.dataclass(frozen=True)
class Stated:
  """What a file or folder says of its model.

  Attributes:
    variant: the model's name.
    fields: of `vit.Model`.
    image_size: rows and columns in pixels that it was made for; None where
      that is not said.
    eval_resize: pixels of the short side that its evaluation cropped them
      from; 0 where that is not said.
  """

  variant: str
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  image_size: tuple[int, int] | None = None
  eval_resize: int = 0


def stated(path: str | os.PathLike) -> Stated | None:
  """What a file or folder says of its model; None where it says nothing.

  Our own flat files, workdirs and timm's folders name their variant.

  Raises:
    ValueError: there is nothing at the path, or it is damaged.
  """
  path = os.fspath(path)
  if "://" in path:
    return None
  if os.path.isdir(path):
    config = _read_json(os.path.join(path, "config.json"))
    if config.get("architecture") in variants.NAMED:
      return Stated(config["architecture"])
    sections = config.get("config")
    student = isinstance(sections, dict) and sections.get("student")
    if isinstance(student, dict) and "variant" in student:
      known = vit.ViT.__dataclass_fields__
      fields = {k: v for k, v in student.items() if k in known}
      return Stated(student["variant"], _tuples(fields))
  file = find(path)
  if file is None or not file.endswith(".safetensors"):
    return None
  metadata = reading.read_metadata(file)
  if "variant" not in metadata:
    return None
  return Stated(
    metadata["variant"],
    _tuples(json.loads(metadata.get("fields", "{}"))),
    image_size(metadata),
    int(metadata.get("eval_resize", 0)),
  )


def image_size(metadata: dict[str, str]) -> tuple[int, int] | None:
  """Rows and columns in pixels that a flat file states, if it does."""
  size = json.loads(metadata.get("image_size", "null"))
  return size and (int(size[0]), int(size[1]))


def config_beside(file: str) -> dict[str, Any]:
  """The config.json beside a folder's weights, {} without."""
  if os.path.basename(file) not in _IN_FOLDER:
    return {}
  return _read_json(os.path.join(os.path.dirname(file), "config.json"))


def _tuples(fields):
  """Fields out of JSON, which has lists for tuples."""
  return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def _read_json(path: str) -> dict[str, Any]:
  """The object in a file, {} where there is no file or it holds another."""
  if not os.path.exists(path):
    return {}
  try:
    with open(path, encoding="utf-8") as file:
      found = json.load(file)
  except (OSError, ValueError) as error:
    raise ValueError(f"cannot read {path!r}: {error}") from None
  return found if isinstance(found, dict) else {}
