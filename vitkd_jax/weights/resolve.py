"""Resolves paths of weights, and reads what they state about their model."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

from vitkd_jax import check, remote
from vitkd_jax.data import preprocess as preprocessing
from vitkd_jax.models import backbones, variants
from vitkd_jax.weights import (
  adapt,
  bv_steps,
  hub,
  opening,
  processors,
  reading,
  stablehlo,
  timm,
)

SHIPPED = "shipped:"
# The file in timm's and Hugging Face's folders.
WEIGHTS = "model.safetensors"
# The file that a finished run exports.
EXPORTED = "student.safetensors"
_SHIPPED_FOLDER = pathlib.Path(__file__).parents[1] / "teachers"

_LONGEST_SENTENCE = 400  # characters of a message

# Endings of files that run by themselves, see `saving.PROGRAMS`.
_PROGRAMS = (".onnx", ".stablehlo")

# File of weights in a folder, in order of preference.
_IN_FOLDER = (
  WEIGHTS,
  EXPORTED,
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
)


def find(path: str) -> str:
  """The file of weights that a path stands for.

  Args:
    path: as for `loading.load`.

  Raises:
    ValueError: there are no weights at the path.
  """
  path = hub.local(path)
  if path.startswith(SHIPPED):
    name = path.removeprefix(SHIPPED)
    known = sorted(p.stem for p in _SHIPPED_FOLDER.glob("*.safetensors"))
    if name not in known:
      raise ValueError(
        f"expected shipped:NAME with a NAME among {', '.join(known)}, got "
        f"{name!r}"
      )
    return str(_SHIPPED_FOLDER / f"{name}.safetensors")
  if remote.is_remote(path) and remote.exists(path):
    return path
  file = in_folder(path) if opening.is_folder(path) else None
  file = file or bv_steps.find(path)
  if file is not None:
    return file
  program = os.path.join(path, stablehlo.FILE)
  if path.endswith(_PROGRAMS) or opening.exists(program):
    raise ValueError(
      f"expected weights at {path!r}, got a program, from which none are read;"
      " give the weights that it was made of"
    )
  if not opening.is_folder(path):
    if remote.is_remote(path) or not os.path.lexists(path):
      whole, part = bv_steps.split(path)
      if part is not None and opening.exists(whole):
        return path
      raise ValueError(
        f"expected weights at {path!r}, got no such file or folder"
        + hub.published(path)
      )
    return path
  if opening.is_folder(os.path.join(path, "checkpoints")):
    raise ValueError(
      f"{path!r} has checkpoints of a run that has not exported its student; "
      "read them with vitkd_jax.runs.students.load, or convert them to a file "
      "with python -m vitkd_jax.convert"
    )
  raise ValueError(
    f"expected {', '.join(_IN_FOLDER)} or checkpoints in {path!r}, got none of "
    "them"
  )


def in_folder(path: str) -> str | None:
  """The file of weights in a folder, or None.

  Args:
    path: of the folder; may be a URL.
  """
  files = (os.path.join(path, name) for name in _IN_FOLDER)
  return next(filter(opening.exists, files), None)


@dataclasses.dataclass(frozen=True)
class Stated:
  """What a file or folder states about its model; None for the rest.

  Attributes:
    variant: name of the model; Hugging Face's folders do not state it.
    fields: of `vit.Model`, beyond the variant's.
    image_size: rows and columns in pixels.
    preprocess: preprocessing of its evaluation.
    class_names: in the order of its logits.
  """

  variant: str | None = None
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  image_size: tuple[int, int] | None = None
  preprocess: preprocessing.Preprocess | None = None
  class_names: tuple[str, ...] | None = None


def stated(path: str | os.PathLike) -> Stated:
  """What a file or folder states about its model.

  Args:
    path: as for `loading.load`.

  Raises:
    ValueError: there is nothing at the path, or it is damaged.
  """
  return checked(path, describe)


def checked(
  path: str | os.PathLike, function: Callable[[str], Stated]
) -> Stated:
  """`function(path)`, with every failure as one sentence.

  Args:
    path: as for `loading.load`.
    function: such as `describe`.

  Raises:
    ValueError: there is nothing at the path, or it is damaged.
  """
  path = hub.local(path)
  try:
    said = function(path)
    _check(said)
  except (TypeError, KeyError, AttributeError, IndexError) as error:
    raise ValueError(
      f"{path!r} is damaged: cannot read what it states about its model "
      f"({error})"
    ) from None
  except ValueError as error:
    text = str(error)
    if path in text:
      raise
    if len(text) > _LONGEST_SENTENCE:  # it quotes a value in the file
      text = text[:_LONGEST_SENTENCE] + "..."
    raise ValueError(f"{path}: {text}") from None
  return said


def describe(path: str) -> Stated:
  """As `stated`, with errors of any type.

  Args:
    path: as for `loading.load`.
  """
  if opening.is_folder(path):
    config = opening.read_json(os.path.join(path, "config.json"))
    if said := of_folder(path, config):
      return said
  return of_file(find(path))


def _check(said: Stated) -> None:
  """Refuses a model that cannot be built."""
  if said.variant is None:
    return
  if not isinstance(said.variant, str) or len(said.variant) > 100:
    raise ValueError(
      f"expected variant to be a model's name, got {str(said.variant)[:100]!r}"
    )
  backbones.make_model(None, variant=said.variant, **said.fields)


def of_folder(path: str, config: Mapping[str, Any]) -> Stated | None:
  """What another library's folder states about its model, or None.

  Args:
    path: of the folder; may be a URL.
    config: its config.json.
  """
  if config.get("architecture") in variants.NAMED:
    return _timm_folder(config)
  if "model_type" in config:
    return _huggingface_folder(path, config)
  return None


def _timm_folder(config: Mapping[str, Any]) -> Stated:
  variant = config["architecture"]
  own = config.get("pretrained_cfg") or config  # older files have one level
  named = variants.get(variant)
  published = processors.published(named)
  images = processors.from_timm(own, published)
  names = config.get("label_names") or own.get("label_names")
  if isinstance(names, dict):
    names = [names.get(str(i)) for i in range(len(names))]
  fields = timm.fields(config.get("model_args") or {}, named.family)
  return Stated(variant, fields, images.size, images, class_names(names))


def _huggingface_folder(path: str, config: Mapping[str, Any]) -> Stated:
  names = config.get("id2label") or {}
  names = [names.get(str(i)) for i in range(len(names))]
  said = opening.read_json(os.path.join(path, "preprocessor_config.json"))
  images = processors.from_huggingface(said) if said else None
  size = None if images is None else images.size
  return Stated(None, {}, size, images, class_names(names))


def of_file(path: str) -> Stated:
  """What a file states about its model: a flat file, other files nothing.

  Args:
    path: of the file; may be a URL.

  Raises:
    ValueError: the file is missing or damaged, or states something invalid.
  """
  if bv_steps.is_step(path):
    return _of_step(path)
  if not path.endswith(".safetensors"):
    return Stated()
  metadata = reading.read_metadata(path)
  if "variant" not in metadata:
    return Stated()
  variant = metadata["variant"]
  size = image_size(metadata)
  entry = _value(metadata, "preprocess")
  images = preprocessing.from_dict(entry) if entry else None
  short = _value(metadata, "eval_resize")
  if images is None and size and short:  # older files
    named = variants.get(variant)
    images = preprocessing.Preprocess(size, short, named.mean, named.std)
  fields = _value(metadata, "fields")
  if fields is not None and not isinstance(fields, dict):
    raise ValueError(
      f"expected fields to be a model's, got {str(fields)[:100]}"
    )
  names = _value(metadata, "class_names")
  return Stated(variant, tuples(fields or {}), size, images, class_names(names))


def _of_step(path: str) -> Stated:
  """What the config beside a step of big_vision's says of the ViT it trains."""
  variant, fields = bv_steps.model(path)
  if variant is None:
    return Stated()
  leaves = reading.blank(path)
  model = backbones.make_model(None, variant=variant, **fields)
  side = variants.get(variant).image_size
  arrays = leaves.arrays if leaves else {}
  return Stated(variant, fields, adapt.image_size(arrays, model, side))


def _value(metadata: Mapping[str, str], key: str) -> Any:
  """An entry of a flat file's metadata, or None."""
  return check.parse_json(metadata.get(key, "null"), key)


def class_names(names: Any) -> tuple[str, ...] | None:
  """Class names as a tuple; None if they are missing or mere numbers.

  Args:
    names: of any type, as a file states them.

  Raises:
    ValueError: they are not a list of text.
  """
  if not names:
    return None
  if not isinstance(names, list | tuple) or not all(
    isinstance(name, str) for name in names
  ):
    raise ValueError(
      f"expected class names to be a list of text, got {str(names)[:100]}"
    )
  return None if nameless(names) else tuple(names)


def nameless(names: Sequence[str]) -> bool:
  """Whether all names are class indices, or transformers' "LABEL_<index>".

  Args:
    names: in the order of the logits.
  """
  return all(n in (str(i), f"LABEL_{i}") for i, n in enumerate(names))


def image_size(metadata: Mapping[str, str]) -> tuple[int, int] | None:
  """Rows and columns in pixels that a flat file states, or None.

  Args:
    metadata: of the file.

  Raises:
    ValueError: they are not two positive integers.
  """
  size = _value(metadata, "image_size")
  if size is None:
    return None
  sides = size if isinstance(size, list) else []
  if len(sides) != 2 or not all(map(preprocessing.is_side, sides)):
    raise ValueError(
      "expected image_size to be rows and columns in pixels, got "
      f"{str(size)[:100]}"
    )
  return sides[0], sides[1]


def config_beside(file: str) -> dict[str, Any]:
  """The config.json beside a folder's weights; {} if there is none.

  Args:
    file: of the weights.
  """
  if os.path.basename(file) not in _IN_FOLDER:
    return {}
  return opening.read_json(os.path.join(os.path.dirname(file), "config.json"))


def tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields from JSON, with tuples for its lists.

  Args:
    fields: of a model, by name.
  """
  return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
