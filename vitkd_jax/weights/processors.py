"""Published and other libraries' settings for `preprocess.Preprocess`.

timm keeps them in the `pretrained_cfg` of a folder's config.json, transformers
in preprocessor_config.json.
"""

from collections.abc import Mapping
from typing import Any

from vitkd_jax import check
from vitkd_jax.data import preprocess
from vitkd_jax.models import variants


def published(
  variant: variants.Variant, size: tuple[int, int] | None = None
) -> preprocess.Preprocess:
  """The preprocessing of the evaluation of a published model.

  Args:
    variant: of the model.
    size: rows and columns of its input in pixels; the variant's by default.
  """
  side = variant.image_size
  images = preprocess.Preprocess(
    (side, side),
    preprocess.resized(side, variant.crop_pct),
    variant.mean,
    variant.std,
    variant.interpolation,
  )
  return images.at(size or images.size)


def to_timm(images: preprocess.Preprocess) -> dict[str, Any]:
  """The entries of timm's `pretrained_cfg`.

  Args:
    images: preprocessing of an evaluation's images.
  """
  return {
    "input_size": [3, *images.size],
    "interpolation": images.interpolation,
    "crop_pct": images.crop_pct,
    "crop_mode": "squash" if images.squash else "center",
    "mean": list(images.mean),
    "std": list(images.std),
  }


def to_huggingface(images: preprocess.Preprocess) -> dict[str, Any]:
  """The preprocessor_config.json: resize, centre crop, normalisation.

  Where half of an odd margin is rounded up, transformers crops one pixel nearer
  to the top left than torchvision, timm and we do.

  Args:
    images: preprocessing of an evaluation's images.
  """
  height, width = images.size
  short = images.short_side or min(images.size)
  square = {"height": short, "width": short}
  return {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": square if images.squash else {"shortest_edge": short},
    "resample": preprocess.INTERPOLATIONS[images.interpolation],
    "do_center_crop": True,
    "crop_size": {"height": height, "width": width},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(images.mean),
    "image_std": list(images.std),
  }


def from_timm(
  config: Mapping[str, Any], default: preprocess.Preprocess
) -> preprocess.Preprocess:
  """The preprocessing of timm's evaluation with a `pretrained_cfg`.

  Args:
    config: entries of the `pretrained_cfg`.
    default: for missing entries.

  Raises:
    ValueError: an entry is invalid or not supported.
  """
  size = config.get("input_size") or [3, *default.size]
  share = config.get("crop_pct") or default.crop_pct
  mode = config.get("crop_mode") or "center"
  if not isinstance(size, list | tuple) or len(size) != 3:
    raise ValueError(
      f"expected input_size to be channels, rows, columns, got {size!r}"
    )
  if not check.is_real(share) or not 0 < share <= 1:
    raise ValueError(f"expected crop_pct in (0, 1], got {share!r}")
  check.known("crop_mode", mode, ("center", "squash"))
  _, rows, columns = size
  if not (preprocess.is_side(rows) and preprocess.is_side(columns)):
    raise ValueError(
      f"expected input_size to be channels, rows, columns, got {size!r}"
    )
  return preprocess.Preprocess(
    (rows, columns),
    preprocess.resized(min(rows, columns), share),
    config.get("mean") or default.mean,
    config.get("std") or default.std,
    config.get("interpolation") or default.interpolation,
    mode == "squash",
  )


# Defaults of the image processors of ViT, DeiT and DINOv2 in transformers 5.24:
# models/*/image_processing_*.py.
_HALF = [0.5, 0.5, 0.5]
_HUGGINGFACE: dict[str, dict[str, Any]] = {
  "ViT": {"resample": 2, "size": 224, "image_mean": _HALF, "image_std": _HALF},
  "DeiT": {
    "resample": 3,
    "size": 256,
    "crop_size": 224,
    "do_center_crop": True,
    "image_mean": _HALF,
    "image_std": _HALF,
  },
  "Bit": {
    "resample": 3,
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
  },
}


def from_huggingface(config: Mapping[str, Any]) -> preprocess.Preprocess:
  """The preprocessing of transformers' processor.

  Args:
    config: content of a preprocessor_config.json.

  Raises:
    ValueError: an entry is invalid or not supported.
  """
  named = config.get("image_processor_type") or config.get(
    "feature_extractor_type", "ViTImageProcessor"
  )
  kind = str(named)
  for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
    kind = kind.removesuffix(ending)
  if kind not in _HUGGINGFACE:
    raise ValueError(
      "expected image_processor_type to be that of "
      f"{', '.join(_HUGGINGFACE)}, got {named!r}"
    )
  given = {k: v for k, v in config.items() if v is not None}
  said: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    **_HUGGINGFACE[kind],
    **given,
  }
  if not said["do_rescale"] or said["rescale_factor"] != 1 / 255:
    raise ValueError(
      "expected do_rescale=True with rescale_factor=1/255, got "
      f"{said['do_rescale']} with {said['rescale_factor']}"
    )
  if not said["do_resize"] and said["do_center_crop"]:
    raise ValueError(
      "expected do_resize=True with do_center_crop=True, got False"
    )
  squash, short = _huggingface_size(said["size"], kind == "Bit")
  size = (short, short)
  if said["do_center_crop"]:
    size = _huggingface_crop(said["crop_size"])
  elif not squash:
    raise ValueError(
      "expected do_center_crop=True with a resize of the short side, got "
      f"False with size={said['size']!r}"
    )
  names = {code: name for name, code in preprocess.INTERPOLATIONS.items()}
  if said["resample"] not in preprocess.INTERPOLATIONS.values():
    raise ValueError(f"expected resample in [0, 5], got {said['resample']!r}")
  normal = said["do_normalize"]
  return preprocess.Preprocess(
    size,
    short if said["do_resize"] else None,
    said["image_mean"] if normal else (0.0, 0.0, 0.0),
    said["image_std"] if normal else (1.0, 1.0, 1.0),
    names[said["resample"]],
    squash,
  )


def _huggingface_size(size: Any, to_short_side: bool) -> tuple[bool, int]:
  """Whether the aspect ratio changes, and the (short) side in pixels."""
  if preprocess.is_side(size):
    return not to_short_side, size
  if isinstance(size, Mapping):
    short: Any = size.get("shortest_edge")
    height: Any = size.get("height")
    if len(size) == 1 and preprocess.is_side(short):
      return False, short
    equal = len(size) == 2 and height == size.get("width")
    if equal and preprocess.is_side(height):
      return True, height
  raise ValueError(
    "expected size to be shortest_edge, or equal height and width, got "
    f"{size!r}"
  )


def _huggingface_crop(size: Any) -> tuple[int, int]:
  if preprocess.is_side(size):
    return size, size
  if isinstance(size, Mapping):
    height: Any = size.get("height")
    width: Any = size.get("width")
    if preprocess.is_side(height) and preprocess.is_side(width):
      return height, width
  raise ValueError(
    f"expected crop_size to be height and width in pixels, got {size!r}"
  )
