"""How an image file becomes a model's input: one value that every tool reads.

The training's evaluation, `evaluate`, exported files and folders, and the
model card take it from here, so that a score means the same in each of them.
Plain values alone: nothing here imports a decoder or a model.
"""

from collections.abc import Mapping
import dataclasses
import math
import numbers
from typing import Any

# Of the evaluation's crop where nothing else is said, 224 of 256: torchvision's
# and timm's.
CROP_PCT = 0.875

# Pillow's codes, which Hugging Face's configs hold, by timm's names.
INTERPOLATIONS = {
  "nearest": 0,
  "lanczos": 1,
  "bilinear": 2,
  "bicubic": 3,
  "box": 4,
  "hamming": 5,
}

# The short side's greatest multiple of the crop: a slip of a digit would take
# all memory.
_MOST_RESIZED = 16

_Colour = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """From an image of any size to a model's input.

  Attributes:
    size: rows and columns of the input, in pixels.
    short_side: pixels of the image's short side before the crop of its
      middle; None where images have `size` already and are taken whole.
    mean: per channel, of images in [0, 1], subtracted.
    std: the standard deviation, likewise, divided by.
    interpolation: of the resize, a key of INTERPOLATIONS.
    squash: both sides become `short_side`, whatever the image's ratio.

  Raises:
    ValueError: a value is out of range.
  """

  size: tuple[int, int]
  short_side: int | None
  mean: _Colour
  std: _Colour
  interpolation: str = "bicubic"
  squash: bool = False

  def __post_init__(self):
    for name in ("size", "mean", "std"):
      value = getattr(self, name)
      if not isinstance(value, list | tuple) or not all(map(is_number, value)):
        raise ValueError(f"{name}={value!r}: expected a sequence of numbers")
      object.__setattr__(self, name, tuple(value))
    if len(self.size) != 2 or not all(map(is_side, self.size)):
      raise ValueError(f"size={self.size}: expected rows and columns in pixels")
    if not len(self.mean) == len(self.std) == 3 or min(self.std) <= 0:
      raise ValueError(
        f"mean={self.mean}, std={self.std}: expected three channels, std > 0"
      )
    if self.interpolation not in list(INTERPOLATIONS):  # a list has no hash
      raise ValueError(
        f"interpolation={self.interpolation!r}: expected one of "
        + ", ".join(INTERPOLATIONS)
      )
    if self.short_side is not None:
      check_crop(min(self.size), self.short_side)

  @property
  def whole(self) -> bool:
    """Images are taken as they come."""
    return self.short_side is None

  @property
  def crop_pct(self) -> float:
    """The shortest decimal of which timm makes exactly this short side."""
    side, short = min(self.size), self.short_side or min(self.size)
    for digits in range(1, 18):
      nearest = round(side / short, digits)
      # 7 / 0.28 is less than 25 in floating point: one digit down, then.
      for share in (nearest, round(nearest - 10**-digits, digits)):
        if share > 0 and resized(side, share) == short:
          return share
    raise AssertionError(f"no crop_pct for {side} of {short}")

  def at(self, size: tuple[int, int]) -> "Preprocess":
    """The same part of an image for an input of another size."""
    if tuple(size) == self.size:
      return self
    short = resized(min(size), self.crop_pct)
    return dataclasses.replace(self, size=tuple(size), short_side=short)

  def __str__(self) -> str:
    """In words, for a person."""
    height, width = self.size
    if self.whole:
      return f"whole images of {height}x{width} pixels"
    what = "both sides" if self.squash else "short side"
    return (
      f"{what} to {self.short_side} pixels ({self.interpolation}), "
      f"{height}x{width} from the centre"
    )


def resized(side: int, crop_pct: float = CROP_PCT) -> int:
  """Pixels of the short side that a crop is this share of: timm's rounding."""
  return math.floor(side / crop_pct)


def check_crop(side: int, short_side: int) -> None:
  """Raises ValueError unless a crop can be cut from a short side."""
  if not isinstance(short_side, int) or not 0 < side <= short_side:
    raise ValueError(
      f"a crop of {side} pixels cannot be cut from a short side of "
      f"{short_side}; resize to at least {side}"
    )
  if short_side > _MOST_RESIZED * side:
    raise ValueError(
      f"a crop of {side} pixels from a short side of {short_side} is next to "
      f"nothing of the image; resize to at most {_MOST_RESIZED * side}"
    )


def short_side(image_size: int, eval_resize: int = 0) -> int | None:
  """The short side that a training's evaluation crops from, if it does.

  Args:
    image_size: pixels of a side of the crop; 0 takes images whole.
    eval_resize: pixels of the short side, if it is said; 0 for the usual.
  """
  return (eval_resize or resized(image_size)) if image_size else None


def from_dict(fields: Mapping[str, Any]) -> Preprocess:
  """A value from `dataclasses.asdict` of it, which has been through JSON.

  Raises:
    ValueError: it is none.
  """
  try:
    return Preprocess(**fields)
  except TypeError:
    raise ValueError(
      f"preprocess={fields!r}: expected the fields of Preprocess"
    ) from None


def is_number(value: object) -> bool:
  """A finite real number, as JSON has them."""
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return real and math.isfinite(value)


def is_side(value: object) -> bool:
  """A whole number of pixels that an image's side may have."""
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  return whole and 0 < value <= 2**15
