"""big_vision's names, old and new; the new ones are ours."""

from collections.abc import Iterable, Iterator
import re

import numpy as np

from vitkd_jax.data import preprocess
from vitkd_jax.models import fitting, variants, vit
from vitkd_jax.weights import bv_steps, rules

NAME = "big_vision"

# A leaf of every ViT.
_FIRST = "embedding/kernel"


# Before Linen, flax numbered the layers of a block across types.
_RENAMES = (
  (r"^Transformer/posembed_input/pos_embedding$", "pos_embedding"),
  (r"^Transformer/pos_embedding$", "pos_embedding"),
  (r"(encoderblock(_\d+)?)/LayerNorm_2/", r"\1/LayerNorm_1/"),
  (
    r"(encoderblock(_\d+)?)/MultiHeadDotProductAttention_1/",
    r"\1/MultiHeadDotProductAttention_0/",
  ),
  (r"(encoderblock(_\d+)?)/MlpBlock_3/", r"\1/MlpBlock_0/"),
  # The MAP head was at the top level for a while.
  (
    r"^(probe$|MlpBlock_0/|MultiHeadDotProductAttention_0/|LayerNorm_0/)",
    r"MAPHead_0/\1",
  ),
)


def matches(names: Iterable[str]) -> bool:
  """Whether names are big_vision's or ours.

  Args:
    names: of a file's leaves.
  """
  return any("Transformer/encoderblock" in name for name in names)


def clean(source: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The leaves under our names, one leaf per block.

  Parameters are extracted from a training state, older names renamed and
  scanned blocks unstacked.

  Args:
    source: a file's arrays by name.

  Raises:
    ValueError: a leaf of a scanned encoder has no axis of blocks, or the
      leaves are of several models.
  """
  own = bv_steps.pick(source, None)
  models = [
    name.removesuffix(_FIRST).strip("/")
    for name in own
    if name.endswith(_FIRST)
  ]
  if models and "" not in models:
    raise ValueError(
      f"expected one model, got parts of others, {rules.some(sorted(models))}; "
      f"add the part to the path, as in {':' + min(models)!r}"
    )
  renamed = {}
  for name, theirs in own.items():
    array = source[theirs]
    for pattern, new in _RENAMES:
      name = re.sub(pattern, new, name)
    renamed[name] = array
  return fitting.unstack(renamed)


# Its sizes; ours beside them are for tests and the quickstart.
_SIZES = variants.SIZES.keys() - {"test", "pico", "nano"}
_FIELDS = ("patch_size", "width", "depth", "mlp_dim", "num_heads")


def needs(model: vit.ViT, images: preprocess.Preprocess) -> Iterator[str]:
  """Sentences on what a written model needs in a config of big_vision's.

  Args:
    model: that was written, before its LayerScale was folded.
    images: its preprocessing, at the size of its positions.
  """
  said = {name: getattr(model, name) for name in _FIELDS}
  said["mlp_dim"] = model.mlp_dim or 4 * model.width
  for size in sorted(_SIZES):
    if variants.SIZES[size] == tuple(said.values())[1:]:
      rows, columns = model.patch_size
      same = rows == columns
      said = {"variant": f"{size}/{rows}" if same else size}
      said |= {} if same else {"patch_size": model.patch_size}
      break
  for name in ("pool_type", "posemb", "rep_size"):
    if getattr(model, name) != getattr(vit.ViT, name):
      said[name] = getattr(model, name)
  arguments = ", ".join(f"{name}={value!r}" for name, value in said.items())
  yield f"config.model_name = 'vit', config.model = dict({arguments})"
  if model.gelu == "erf":
    yield (
      "nn.gelu(x, approximate=False) in MlpBlock of its models/vit.py, which "
      "has the tanh form: logits differ a little without"
    )
  if (images.mean, images.std) == variants.INCEPTION_MEAN_STD:
    yield "value_range(-1, 1) in pp and pp_fn, which is its default"
  else:
    mean, std = (
      ", ".join(f"{255 * x:.4g}" for x in each)
      for each in (images.mean, images.std)
    )
    yield (
      f"vgg_value_range(mean=({mean}), std=({std})) in place of value_range in "
      "pp and pp_fn; --fold-normalization writes a file for value_range(-1, 1)"
    )
  if model.layerscale_init is not None:
    yield (
      "nothing for LayerScale, which is folded: the same function, but not the "
      "same model to train on"
    )
  if model.posemb == "learn":
    height, width = images.size
    yield (
      f"images of {height}x{width} px, or --image-size for others: its own "
      "loader resizes positions bilinearly, and square grids alone"
    )
