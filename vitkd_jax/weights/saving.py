"""Writes a model's parameters for other libraries, or as a program."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

from etils import epath
from flax import traverse_util
import ml_dtypes
import numpy as np

from vitkd_jax import check
from vitkd_jax.data import preprocess as preprocessing
from vitkd_jax.models import backbones, equal, fitting, posemb, variants, vit
from vitkd_jax.weights import (
  adapt,
  card,
  files,
  huggingface,
  onnx_graph,
  processors,
  reading,
  resolve,
  stablehlo,
  targets,
  timm,
)

# What runs without this package, parameters included.
PROGRAMS = ("stablehlo", "onnx")
FORMATS = ("timm", "huggingface", "big_vision", "flat", *PROGRAMS)
DTYPES = {
  "float32": np.float32,
  "float16": np.float16,
  "bfloat16": ml_dtypes.bfloat16,
}


def save(
  path: str | os.PathLike,
  params: Mapping[str, Any],
  *,
  variant: str,
  format: str,
  image_size: int | tuple[int, int] | None = None,
  preprocess: preprocessing.Preprocess | None = None,
  class_names: Sequence[str] | None = None,
  dtype: str = "float32",
  fold: bool = False,
  metadata: Mapping[str, str] | None = None,
  readme: str | None = None,
  **fields: Any,
) -> str:
  """Writes parameters to a file or folder; a failure leaves no partial file.

  Args:
    path: for "timm" and "huggingface" a folder (`model.safetensors`,
      `config.json` and, for the latter, `preprocessor_config.json`), or a
      `.safetensors` file alone; for the other formats a file. May be a URL.
    params: nested parameters of the variant's model, scanned or not.
    variant: name of the model, as for `vit.Model`.
    format: "timm"; "huggingface" (ViT, DeiT, DINOv2; LayerScale is folded
      except for DINOv2); "big_vision" (`.npz`; LayerScale is folded); "flat":
      our names joined by "/", in a `.safetensors` or `.npz` file; "stablehlo",
      a folder of `stablehlo.write`; or "onnx", a file of `onnx_graph.write`.
    image_size: side or (rows, columns) in pixels; by default that of
      `preprocess`, else the variant's or the square grid of the position
      embeddings.
    preprocess: preprocessing of an evaluation's images; by default the
      published model's, which a "flat" file does not state.
    class_names: in the order of the logits; stated in folders, in a "flat"
      `.safetensors` file and in an "onnx" file.
    dtype: of the file's floats: "float32", "float16" or "bfloat16"; of
      "stablehlo", of its matrix products, too.
    fold: fold LayerScale in every format.
    metadata: text by name for the header of a "flat" `.safetensors` file.
    readme: text of a folder's `README.md`, the model card.
    **fields: further fields of `vit.Model` that the parameters are for.

  Returns:
    The path of the file of weights.

  Raises:
    ValueError: an unknown format or dtype, parameters that are not the
      variant's, or a model that the format cannot express.
    ImportError: "onnx" without the package of this name.
  """
  check_target(path, format, dtype)
  path = os.path.expanduser(path)
  named = variants.get(variant)
  if named.family != "ViT" and format not in ("flat", "stablehlo"):
    raise ValueError(
      f"expected format='flat' or 'stablehlo' for {variant}, a "
      f"{named.family}, got {format!r}"
    )
  keeps_layerscale = format in ("timm", "flat") or (
    format == "huggingface" and "dinov2" in variant
  )
  if fold or not keeps_layerscale:
    params = equal.fold_layerscale(params)
    fields = {**fields, "layerscale_init": None}
  leaves = {
    name: np.asarray(leaf)
    for name, leaf in traverse_util.flatten_dict(params, sep="/").items()
  }
  leaves = fitting.unstack(leaves)
  count = len(leaves["head/bias"]) if "head/bias" in leaves else None
  model = backbones.make_model(
    count, variant=variant, **{**fields, "scan": False}
  )
  if image_size is None and preprocess is not None:
    image_size = preprocess.size
  elif image_size is None:
    image_size = adapt.image_size(leaves, model, named.image_size)
  size = (image_size,) * 2 if isinstance(image_size, int) else image_size
  images = (
    preprocess.at(size) if preprocess else processors.published(named, size)
  )
  for field in ("lift", "last_width"):
    if format not in ("flat", *PROGRAMS) and getattr(model, field, None):
      raise ValueError(
        f"expected format='flat', 'stablehlo' or 'onnx' for a "
        f"model with {field}, which no other library has, got {format!r}"
      )
  names = _class_names(class_names, count)
  adapt.check(leaves, adapt.shapes(model, size))

  facts = _facts(variant, count, size, fields)
  if preprocess or format != "flat":
    facts["preprocess"] = dataclasses.asdict(images)
  if names:
    facts["class_names"] = names
  if format in PROGRAMS:
    for name, array in leaves.items():
      leaves[name] = array.astype(DTYPES[dtype], copy=False)
    if format == "stablehlo":
      file = stablehlo.write(path, leaves, model, size, facts)
      _write_readme(path, readme)
      return file
    assert isinstance(model, vit.ViT)  # refused above
    onnx_graph.write(path, leaves, model, size, facts)
    return path
  if format == "flat":
    theirs, texts = leaves, dict[str, Any]()
    stated = {
      name: fact if isinstance(fact, str) else json.dumps(fact)
      for name, fact in facts.items()
    }
    metadata = {**(metadata or {}), **stated}
  else:
    assert isinstance(model, vit.ViT)  # refused above
    theirs, texts = _translate(format, leaves, model, named, images, names)
  del leaves
  for name, array in theirs.items():
    theirs[name] = array.astype(DTYPES[dtype], copy=False)
  return _write(path, theirs, format, metadata, texts, readme)


def check_target(
  path: str | os.PathLike, format: str, dtype: str, source: str | None = None
) -> None:
  """Refuses what `save` cannot write, whatever the parameters.

  Args:
    path: as for `save`.
    format: as for `save`.
    dtype: as for `save`.
    source: of the weights, which are not to be replaced; None to replace any
      file.

  Raises:
    ValueError: an unknown format or dtype, or a path that does not suit or
      holds files of others.
    ImportError: "onnx" without the package of this name.
  """
  check.known("format", format, FORMATS)
  check.known("dtype", dtype, DTYPES)
  suffix = os.path.splitext(os.fspath(path))[1]
  ends: tuple[str, ...] = {
    "big_vision": (".npz",),
    "flat": (".npz", ".safetensors"),
    "onnx": (".onnx",),
  }.get(format, ())
  if ends and suffix not in ends:
    raise ValueError(
      f"expected a path that ends in {' or '.join(ends)} for "
      f"format={format!r}, got {os.fspath(path)!r}"
    )
  path = os.path.expanduser(path)
  if source is not None:
    targets.check_apart(path, source)
  if not ends and suffix != ".safetensors":
    targets.check_folder(path, format)
  if format == "onnx":
    onnx_graph.library()


def holds(path: str, params: Mapping[str, Any]) -> bool:
  """Whether a "flat" file exists and has exactly these parameters.

  Args:
    path: of the file; may be a URL.
    params: nested parameters, scanned or not.
  """
  if not epath.Path(path).exists():
    return False
  try:
    found = reading.read(path).arrays
  except ValueError:  # damaged
    return False
  leaves = traverse_util.flatten_dict(params, sep="/")
  leaves = {name: np.asarray(leaf) for name, leaf in leaves.items()}
  leaves = fitting.unstack(leaves)
  return found.keys() == leaves.keys() and all(
    np.array_equal(found[name], leaf) for name, leaf in leaves.items()
  )


def _translate(
  format: str,
  leaves: dict[str, np.ndarray],
  model: vit.ViT,
  variant: variants.Variant,
  images: preprocessing.Preprocess,
  names: Sequence[str] | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Another library's leaves, and the content of its JSON files by name."""
  size = images.size
  if format == "timm":
    leaves = _with_position(leaves, model, size)
    theirs = timm.write(leaves, model, variant.name)
    return theirs, {"config.json": timm.config(model, variant, images, names)}
  if format == "huggingface":
    leaves = _with_position(leaves, model, size)
    return huggingface.write(leaves, model, variant.name), {
      "config.json": huggingface.config(model, variant, size, names),
      "preprocessor_config.json": processors.to_huggingface(images),
    }
  other_tokens = model.has_class_token != (model.pool_type == "tok")
  if model.distilled or model.registers or model.fc_norm or other_tokens:
    raise ValueError(
      "expected a model without distillation token, registers and norm "
      "after the pooling for format='big_vision'; use format='flat' or "
      "'timm'"
    )
  timm.check_norm(model, "big_vision")
  return leaves, {}


def _facts(
  variant: str,
  num_classes: int | None,
  image_size: tuple[int, int],
  fields: Mapping[str, Any],
) -> dict[str, Any]:
  """What a file states about its model, as JSON has it."""
  fields = {k: v for k, v in fields.items() if k not in variants.RUNTIME_FIELDS}
  return {
    "variant": variant,
    "num_classes": num_classes or 0,
    "image_size": image_size,
    "fields": fields,
  }


def _class_names(
  names: Sequence[str] | None, count: int | None
) -> list[str] | None:
  if not names or resolve.nameless(names):
    return None
  if len(names) != count:
    raise ValueError(
      f"expected {count or 0} class_names, one per class of the head, got "
      f"{len(names)}"
    )
  return list(names)


def _write(path, arrays, format, metadata, texts, readme) -> str:
  if format in ("big_vision", "flat"):
    if path.endswith(".npz"):
      files.write_npz(path, arrays)
    else:
      files.write_safetensors(path, arrays, metadata)
    return path
  if path.endswith(".safetensors"):
    files.write_safetensors(path, arrays, {"format": "pt"})
    return path
  file = os.path.join(path, resolve.WEIGHTS)
  files.write_safetensors(file, arrays, {"format": "pt"})
  for name, content in texts.items():
    text = json.dumps(content, indent=2) + "\n"
    files.write_text(os.path.join(path, name), text)
  _write_readme(path, readme)
  return file


def _write_readme(folder: str, text: str | None) -> None:
  if text is not None:
    files.write_text(os.path.join(folder, card.FILE), text)


def _with_position(
  leaves: dict[str, np.ndarray], model: vit.ViT, size: tuple[int, int]
) -> dict[str, np.ndarray]:
  """The leaves with a position embedding, also if it is fixed."""
  if model.posemb == "learn":
    return leaves
  fixed = posemb.sincos_2d(*model.grid(*size), model.width)
  return {**leaves, "pos_embedding": np.asarray(fixed)}
