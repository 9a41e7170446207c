"""Valid values of a model's fields."""

from collections.abc import Iterable, Iterator
import numbers
from typing import Any, NoReturn

import jax.numpy as jnp

from vitkd_jax.models import layers

_CHOICES = {
  "posemb": ("learn", "sincos2d"),
  "pool_type": ("gap", "map", "tok", "0", "none"),
  "gelu": tuple(layers.GELU),
  "init_scheme": ("big_vision", "deit"),
  # The policies in `jax.checkpoint_policies`, without the functions that make
  # one. "none" saves nothing either.
  "remat_policy": (
    "nothing_saveable",
    "dots_with_no_batch_dims_saveable",
    "dots_saveable",
    "everything_saveable",
    "checkpoint_dots_with_no_batch_dims",
    "checkpoint_dots",
    "none",
  ),
}

# Of matrix products.
DTYPES = ("float32", "bfloat16", "float16")

# Smallest and largest value of each integer field. The largest are far beyond
# any trained ViT (56 blocks, width 6,144), but still trace in minutes.
_BOUNDS = {
  "width": (1, 1 << 15),
  "depth": (1, 512),
  "class_depth": (1, 512),
  "mlp_dim": (1, 1 << 18),
  "num_heads": (1, 1 << 12),
  "lift": (1, 1 << 15),
  "last_width": (1, 1 << 15),
  "last_heads": (1, 1 << 12),
  "registers": (0, 1 << 12),
}
# Of them those that may be None.
_OPTIONAL = ("mlp_dim", "lift", "last_width", "last_heads")
_LARGEST_PATCH = 1 << 12
_MOST_CLASSES = 10_000_000
_LARGEST = float(jnp.finfo(jnp.float32).max)


def check(model: Any) -> None:
  """Checks the fields of a ViT.

  Args:
    model: a `vit.ViT`; its fields may hold values of any type.

  Raises:
    ValueError: a value is invalid, or two do not fit each other.
  """
  check_fields(model)
  if model.class_token is False and model.pool_type == "tok":
    raise ValueError(
      "pool_type='tok' reads a CLS token: expected class_token=True or None,"
      " got False"
    )
  if model.fc_norm and model.pool_type != "gap":
    raise ValueError(
      f"fc_norm=True needs pool_type='gap', got {model.pool_type!r}"
    )
  if model.distilled and model.pool_type != "tok":
    raise ValueError(
      f"distilled=True needs pool_type='tok', got {model.pool_type!r}"
    )
  _check_ends(model)


def _check_ends(model: Any) -> None:
  """Checks the fields of a ViT that ends wider than it starts."""
  width, heads = model.last_width, model.last_heads
  if (width is None) != (heads is None):
    raise ValueError(
      "expected both last_width and last_heads, or neither, got "
      f"{width} and {heads}"
    )
  if width is not None and width % heads:
    raise ValueError(
      f"last_width {width} is not divisible by last_heads {heads}"
    )
  if width is None and model.lift is None:
    return
  name = "lift" if model.lift else "last_width"
  unfit = {
    "last_width": model.lift and width,
    "scan": width and model.scan,
    "distilled": model.lift and model.distilled,
    "fc_norm": model.fc_norm,
    "rep_size": model.rep_size,
  }
  for other, given in unfit.items():
    if given:
      raise ValueError(
        f"{name} and {other}={getattr(model, other)} do not go together: "
        "leave out one of them"
      )
  if model.pool_type not in ("tok", "gap"):
    raise ValueError(
      f"{name} needs pool_type='tok' or 'gap', got {model.pool_type!r}"
    )


def check_fields(model: Any) -> None:
  """Checks the value of each field that a model has.

  Args:
    model: of any kind; its fields may hold values of any type.

  Raises:
    ValueError: a value is invalid, or the heads do not divide the width.
  """

  def refuse(name: str, expected: str) -> NoReturn:
    value = repr(getattr(model, name))
    if len(value) > 100:
      value = value[:100] + "..."
    raise ValueError(f"model field {name}={value}: expected {expected}")

  def known(names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    return (
      (name, getattr(model, name)) for name in names if hasattr(model, name)
    )

  for name, value in known(_CHOICES):
    if value not in _CHOICES[name]:
      refuse(name, "one of " + ", ".join(map(repr, _CHOICES[name])))
  for name, value in known(_BOUNDS):
    least, most = _BOUNDS[name]
    if value is None and name in _OPTIONAL:
      continue
    if not _whole(value, least, most):
      refuse(name, f"an integer in [{least}, {most}]")
  sides = model.patch_size
  pair = isinstance(sides, tuple) and len(sides) == 2
  if not pair or not all(_whole(side, 1, _LARGEST_PATCH) for side in sides):
    refuse(
      "patch_size",
      f"rows and columns of a patch, in pixels in [1, {_LARGEST_PATCH}]",
    )
  for name, value in known(("class_token",)):
    if value is not None and not isinstance(value, bool):
      refuse(name, "True, False or None")
  for name, value in known(("head_zeroinit", "scan", "distilled", "fc_norm")):
    if not isinstance(value, bool):
      refuse(name, "True or False")
  most = _BOUNDS["mlp_dim"][1]
  for name, value in known(("rep_size",)):
    if not isinstance(value, bool) and not _whole(value, 0, most):
      refuse(name, f"True, False or a width in [0, {most}]")
  for name, value in known(("dropout", "drop_path")):
    if not _real(value) or not 0 <= value < 1:
      refuse(name, "a rate in [0, 1)")
  if not _real(model.norm_eps) or not 0 <= model.norm_eps < 1:
    refuse("norm_eps", "a number in [0, 1)")
  scale = model.layerscale_init
  if scale is not None and not (_real(scale) and abs(scale) <= _LARGEST):
    refuse("layerscale_init", "a finite float32 or None")
  try:
    usable = jnp.dtype(model.dtype_mm).name in DTYPES
  except (TypeError, ValueError, KeyError):  # NumPy's, of nested values
    usable = False
  if not usable:
    refuse("dtype_mm", "one of " + ", ".join(DTYPES))
  classes = model.num_classes
  if classes is not None and not _whole(classes, 0, _MOST_CLASSES):
    refuse("num_classes", f"an integer in [0, {_MOST_CLASSES}], or None")
  if model.width % model.num_heads:
    raise ValueError(
      f"width {model.width} is not divisible by num_heads {model.num_heads}"
    )


def check_patches(
  who: str, patch_size: tuple[int, int], height: int, width: int
) -> None:
  """Checks that images are divisible into patches.

  Args:
    who: names the model in the message.
    patch_size: rows and columns of its patches, in pixels.
    height: of the images, in pixels.
    width: of the images, in pixels.

  Raises:
    ValueError: a side is not divisible by the patch size.
  """
  if height % patch_size[0] or width % patch_size[1]:
    raise ValueError(
      f"images of {height}x{width} pixels are not divisible by the {who}'s "
      f"patch size, {patch_size[0]}x{patch_size[1]}; choose another patch_size "
      "or image size"
    )


def _real(value: object) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _whole(value: Any, least: int, most: int) -> bool:
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  return whole and least <= value <= most
