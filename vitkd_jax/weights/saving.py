"""Writes a model's parameters for the tools that others use."""

from collections.abc import Mapping
import os
from typing import Any

from flax import traverse_util
import ml_dtypes
import numpy as np

from vitkd_jax.models import vit
from vitkd_jax.weights import big_vision, files, fit, rules, timm

_DTYPES = {
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
  dtype: str = "float32",
  metadata: Mapping[str, str] | None = None,
  **fields: Any,
) -> None:
  """Writes parameters to a file or folder; a failure leaves nothing behind.

  Args:
    path: the file, or for "timm" the folder (or a `.safetensors` file alone).
    params: nested parameters of the variant's model, scanned or not.
    variant: the model's name, as `vit.Model` takes it.
    format: "timm", "big_vision" (`.npz`) or "flat": our names joined by "/",
      `.safetensors` or `.npz`.
    dtype: of the floats in the file: "float32", "float16" or "bfloat16".
    metadata: text kept in a "flat" `.safetensors` file's header.
    **fields: further fields of `vit.Model` that the parameters were made with.

  Raises:
    ValueError: an unknown format, or parameters that are not the variant's.
  """
  formats = ("timm", "big_vision", "flat")
  if format not in formats:
    raise ValueError(f"format={format!r}: wanted one of {', '.join(formats)}")
  if dtype not in _DTYPES:
    raise ValueError(f"dtype={dtype!r}: wanted one of {', '.join(_DTYPES)}")
  path = os.fspath(path)
  leaves = {
    name: np.asarray(leaf)
    for name, leaf in traverse_util.flatten_dict(params, sep="/").items()
  }
  leaves = big_vision.unstack(leaves)
  num_classes = len(leaves["head/bias"]) if "head/bias" in leaves else None
  model = vit.Model(num_classes, variant=variant, **{**fields, "scan": False})
  _check(leaves, model)
  if format == "big_vision":
    _refuse_beyond_big_vision(model)
    leaves = traverse_util.flatten_dict(
      fit.fold_layerscale(traverse_util.unflatten_dict(leaves, sep="/")),
      sep="/",
    )
  if format == "timm":
    leaves = _to_timm(leaves, model)
    if not path.endswith(".safetensors"):
      path = os.path.join(path, "model.safetensors")
  leaves = {n: a.astype(_DTYPES[dtype], copy=False) for n, a in leaves.items()}
  if path.endswith(".npz"):
    files.write_npz(path, leaves)
    return
  metadata = dict(metadata or {})
  if format == "flat":
    metadata |= {"variant": variant, "num_classes": str(num_classes or 0)}
  else:
    metadata["format"] = "pt"
  files.write_safetensors(path, leaves, metadata)


def _check(leaves, model):
  grid = 1
  if "pos_embedding" in leaves:
    grid = leaves["pos_embedding"].shape[1]
  # A row of that many patches: only the count matters.
  size = (model.patch_size[0], model.patch_size[1] * grid)
  fit.check(leaves, fit.shapes(model, size))


def _refuse_beyond_big_vision(model):
  if model.distilled or model.registers:
    raise ValueError(
      "big_vision's model has neither a distillation token nor registers; "
      "write format='flat' or 'timm'"
    )


def _to_timm(leaves, model):
  theirs = rules.to_theirs(timm.RULES, leaves)
  if "pos_embed" in theirs and model.layerscale_init is None:
    # DeiT and ViT have an entry a prefix token, which is in the token here.
    prefix = int(model.pool_type == "tok") + model.distilled
    zeros = np.zeros((1, prefix, model.width), np.float32)
    theirs["pos_embed"] = np.concatenate([zeros, theirs["pos_embed"]], 1)
  return theirs
