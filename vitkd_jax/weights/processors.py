"""Other libraries' words for `preprocess.Preprocess`, both ways.

timm says it in the `pretrained_cfg` of a folder's config.json, Hugging Face's
transformers in preprocessor_config.json.
"""

from collections.abc import Mapping
from typing import Any

from vitkd_jax.data import preprocess


def to_timm(images: preprocess.Preprocess) -> dict[str, Any]:
  """The entries of timm's `pretrained_cfg`."""
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

  transformers cuts an odd margin one pixel nearer to the top left than
  torchvision, timm and we do, where half of it is rounded up there.
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
  """What timm's evaluation does with a `pretrained_cfg`.

  Args:
    config: the entries; one that is missing is the default's.
    default: for the published model.

  Raises:
    ValueError: the entries say what cannot be done here.
  """
  size = config.get("input_size") or [3, *default.size]
  share = config.get("crop_pct") or default.crop_pct
  mode = config.get("crop_mode") or "center"
  if not isinstance(size, list | tuple) or len(size) != 3:
    raise ValueError(f"input_size={size!r}: expected channels, rows, columns")
  if not preprocess.is_number(share) or not 0 < share <= 1:
    raise ValueError(f"crop_pct={share!r}: expected a share in (0, 1]")
  if mode not in ("center", "squash"):
    raise ValueError(f"crop_mode={mode!r}: expected 'center' or 'squash'")
  size = tuple(size[1:])
  if not all(map(preprocess.is_side, size)):
    raise ValueError(f"input_size={size!r}: expected rows and columns")
  return preprocess.Preprocess(
    size,
    preprocess.resized(min(size), share),
    config.get("mean") or default.mean,
    config.get("std") or default.std,
    config.get("interpolation") or default.interpolation,
    mode == "squash",
  )


# transformers' defaults of the classes that ViT, DeiT and DINOv2 come with,
# version 5.24: models/*/image_processing_*.py.
_HALF = [0.5, 0.5, 0.5]
_HUGGINGFACE = {
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
  """What transformers' processor does with a preprocessor_config.json.

  Raises:
    ValueError: it says what cannot be done here.
  """
  named = config.get("image_processor_type") or config.get(
    "feature_extractor_type", "ViTImageProcessor"
  )
  kind = str(named)
  for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
    kind = kind.removesuffix(ending)
  if kind not in _HUGGINGFACE:
    raise ValueError(
      f"image_processor_type={named!r}: expected that of "
      + ", ".join(_HUGGINGFACE)
    )
  given = {k: v for k, v in config.items() if v is not None}
  said = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    **_HUGGINGFACE[kind],
    **given,
  }
  if not said["do_rescale"] or said["rescale_factor"] != 1 / 255:
    raise ValueError("expected do_rescale with rescale_factor 1/255")
  if not said["do_resize"] and said["do_center_crop"]:
    raise ValueError("do_resize=False: expected a resize before the crop")
  squash, short = _huggingface_size(said["size"], kind == "Bit")
  size = (short, short)
  if said["do_center_crop"]:
    size = _huggingface_crop(said["crop_size"])
  elif not squash:
    raise ValueError(f"size={said['size']!r}: expected a crop after it")
  names = {code: name for name, code in preprocess.INTERPOLATIONS.items()}
  if said["resample"] not in preprocess.INTERPOLATIONS.values():
    raise ValueError(f"resample={said['resample']!r}: expected 0 to 5")
  normal = said["do_normalize"]
  return preprocess.Preprocess(
    size,
    short if said["do_resize"] else None,
    said["image_mean"] if normal else (0.0, 0.0, 0.0),
    said["image_std"] if normal else (1.0, 1.0, 1.0),
    names[said["resample"]],
    squash,
  )


def _huggingface_size(size, to_short_side) -> tuple[bool, int]:
  """Whether the ratio changes, and the resized image's (short) side."""
  if preprocess.is_side(size):
    return not to_short_side, size
  if isinstance(size, Mapping):
    short, height, width = map(size.get, ("shortest_edge", "height", "width"))
    if len(size) == 1 and preprocess.is_side(short):
      return False, short
    if len(size) == 2 and height == width and preprocess.is_side(height):
      return True, height
  raise ValueError(
    f"size={size!r}: expected shortest_edge, or height and width that are equal"
  )


def _huggingface_crop(size) -> tuple[int, int]:
  if preprocess.is_side(size):
    return size, size
  if isinstance(size, Mapping):
    height, width = map(size.get, ("height", "width"))
    if preprocess.is_side(height) and preprocess.is_side(width):
      return height, width
  raise ValueError(f"crop_size={size!r}: expected height and width in pixels")
