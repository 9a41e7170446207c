"""What a path of weights stands for, and what it says of its model."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

from vitkd_jax import check, remote
from vitkd_jax.data import preprocess as preprocessing
from vitkd_jax.models import variants, vit
from vitkd_jax.weights import opening, processors, reading, timm

SHIPPED = "shipped:"
# What a run writes at its end.
EXPORTED = "student.safetensors"
_SHIPPED_FOLDER = pathlib.Path(__file__).parents[1] / "teachers"

_LONGEST_JSON = 100_000_000  # bytes
_LONGEST_SENTENCE = 400  # characters of a refusal

# The weights' file in a folder, in order of preference.
_IN_FOLDER = (
  "model.safetensors",
  EXPORTED,
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
)


def find(path: str) -> str:
  """The file of weights that a path stands for.

  Args:
    path: as `loading.load` takes it.

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
  if remote.is_remote(path) and remote.exists(path):
    return path
  if not is_folder(path):
    if remote.is_remote(path) or not os.path.lexists(path):
      raise ValueError(f"there are no weights at {path!r}")
    return path
  file = in_folder(path)
  if file is not None:
    return file
  if is_folder(os.path.join(path, "checkpoints")):
    raise ValueError(
      f"{path!r} holds the checkpoints of a run that has exported no student "
      "yet; vitkd_jax.runs.students.load reads them, and python -m "
      "vitkd_jax.convert writes them to a file"
    )
  raise ValueError(
    f"{path!r} holds neither {' nor '.join(map(repr, _IN_FOLDER))} nor "
    "checkpoints"
  )


def in_folder(path: str) -> str | None:
  """The file of weights in a folder, if there is one."""
  files = (os.path.join(path, name) for name in _IN_FOLDER)
  return next(filter(_exists, files), None)


@dataclasses.dataclass(frozen=True)
class Stated:
  """What a file or folder says of its model; None where it does not.

  Attributes:
    variant: the model's name.
    fields: of `vit.Model`, beyond the variant's.
    image_size: rows and columns in pixels that it was made for.
    preprocess: what made its evaluation's images.
    class_names: in the order of its logits.
  """

  variant: str | None = None
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  image_size: tuple[int, int] | None = None
  preprocess: preprocessing.Preprocess | None = None
  class_names: tuple[str, ...] | None = None


def stated(path: str | os.PathLike) -> Stated:
  """What a file or folder says of its model.

  Our own flat files and timm's folders name their variant; Hugging Face's do
  not.

  Raises:
    ValueError: there is nothing at the path, or it is damaged.
  """
  return checked(path, describe)


def checked(
  path: str | os.PathLike, function: Callable[[str], Stated]
) -> Stated:
  """`function(path)`, refused in one sentence where it cannot be right.

  Raises:
    ValueError: there is nothing at the path, or it is damaged.
  """
  path = os.path.expanduser(path)
  try:
    said = function(path)
    _check(said)
  except (TypeError, KeyError, AttributeError, IndexError) as error:
    raise ValueError(
      f"{path!r} is damaged: what it says of its model cannot be read ({error})"
    ) from None
  except ValueError as error:
    text = str(error)
    if path in text:
      raise
    if len(text) > _LONGEST_SENTENCE:  # it quotes a value of the file
      text = text[:_LONGEST_SENTENCE] + "..."
    raise ValueError(f"{path}: {text}") from None
  return said


def describe(path: str) -> Stated:
  """As `stated`, with errors as they come."""
  said = _folder(path) if is_folder(path) else None
  return said or of_file(find(path))


def _check(said: Stated) -> None:
  """Refuses a model that nobody could build, before anybody does."""
  if said.variant is None:
    return
  if not isinstance(said.variant, str) or len(said.variant) > 100:
    raise ValueError(
      f"variant={str(said.variant)[:100]!r}: expected the name of a model"
    )
  vit.Model(None, variant=said.variant, **said.fields)


def _folder(path) -> Stated | None:
  """What config.json says; None where it says nothing."""
  config = read_json(os.path.join(path, "config.json"))
  if config.get("architecture") in variants.NAMED:
    return _timm_folder(config)
  if "model_type" in config:
    return _huggingface_folder(path, config)
  return None


def _timm_folder(config) -> Stated:
  variant = config["architecture"]
  own = config.get("pretrained_cfg") or config  # older files have one level
  images = processors.from_timm(own, published(variants.get(variant)))
  names = config.get("label_names") or own.get("label_names")
  if isinstance(names, dict):
    names = [names.get(str(i)) for i in range(len(names))]
  fields = timm.fields(config.get("model_args") or {})
  return Stated(variant, fields, images.size, images, class_names(names))


def _huggingface_folder(path, config) -> Stated:
  names = config.get("id2label") or {}
  names = [names.get(str(i)) for i in range(len(names))]
  said = read_json(os.path.join(path, "preprocessor_config.json"))
  images = processors.from_huggingface(said) if said else None
  size = images and images.size
  return Stated(None, {}, size, images, class_names(names))


def of_file(path: str) -> Stated:
  """What a file says of its model; only flat ones say anything."""
  if not path.endswith(".safetensors"):
    return Stated()
  metadata = reading.read_metadata(path)
  if "variant" not in metadata:
    return Stated()
  variant = metadata["variant"]
  size = image_size(metadata)
  images = _value(metadata, "preprocess")
  short = _value(metadata, "eval_resize")
  if images:
    images = preprocessing.from_dict(images)
  elif size and short:  # older files
    named = variants.get(variant)
    images = preprocessing.Preprocess(size, short, named.mean, named.std)
  fields = _value(metadata, "fields")
  if fields is not None and not isinstance(fields, dict):
    raise ValueError(f"fields={str(fields)[:100]}: expected fields of a model")
  names = _value(metadata, "class_names")
  return Stated(variant, tuples(fields or {}), size, images, class_names(names))


def _value(metadata: dict[str, str], key: str) -> Any:
  """What a flat file says of one thing; None where it says nothing."""
  return check.parse_json(metadata.get(key, "null"), key)


def class_names(names: Any) -> tuple[str, ...] | None:
  """Class names; None for none, or mere numbers, which name nothing."""
  if not names:
    return None
  if not isinstance(names, list | tuple) or not all(
    isinstance(name, str) for name in names
  ):
    raise ValueError(f"class names {str(names)[:100]}: expected texts")
  return None if nameless(names) else tuple(names)


def nameless(names: Sequence[str]) -> bool:
  """Whether names are but the classes' numbers, or transformers' for them."""
  return all(n in (str(i), f"LABEL_{i}") for i, n in enumerate(names))


def published(
  variant: variants.Variant, size: tuple[int, int] | None = None
) -> preprocessing.Preprocess:
  """What the published model of a variant was evaluated with.

  Args:
    variant: the model's.
    size: rows and columns in pixels of the input; the variant's by default.
  """
  side = variant.image_size
  images = preprocessing.Preprocess(
    (side, side),
    preprocessing.resized(side, variant.crop_pct),
    variant.mean,
    variant.std,
    variant.interpolation,
  )
  return images.at(size or images.size)


def image_size(metadata: dict[str, str]) -> tuple[int, int] | None:
  """Rows and columns in pixels that a flat file states, if it does.

  Raises:
    ValueError: it states something else.
  """
  size = _value(metadata, "image_size")
  if size is None:
    return None
  sides = size if isinstance(size, list) else []
  if len(sides) != 2 or not all(map(preprocessing.is_side, sides)):
    raise ValueError(
      f"image_size={str(size)[:100]}: expected rows and columns in pixels"
    )
  return sides[0], sides[1]


def config_beside(file: str) -> dict[str, Any]:
  """The config.json beside a folder's weights, {} without."""
  if os.path.basename(file) not in _IN_FOLDER:
    return {}
  return read_json(os.path.join(os.path.dirname(file), "config.json"))


def tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields out of JSON, which has lists for tuples."""
  return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def is_folder(path: str) -> bool:
  """Whether a path, or a URL, is a folder's."""
  if remote.is_remote(path):
    return remote.is_folder(path)
  return os.path.isdir(path)


def _exists(path: str) -> bool:
  return (remote.exists if remote.is_remote(path) else os.path.exists)(path)


def read_json(path: str) -> dict[str, Any]:
  """The object in a file, {} where there is no file or it holds another."""
  if not (_exists(path) or os.path.lexists(path)):
    return {}
  with opening.opened(path) as file:
    found = check.parse_json(file.read(_LONGEST_JSON), repr(path))
  return found if isinstance(found, dict) else {}
