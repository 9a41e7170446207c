"""How an image file becomes a model's input: one value that every tool reads.

The training's evaluation, `evaluate`, exported files and folders, and the
model card all read it, so a score means the same in each of them. It holds
plain values: nothing here imports a decoder or a model.
"""

from collections.abc import Mapping
import dataclasses
import math
import numbers
from typing import Any

from vitkd_jax import check

# Default crop of the evaluation, 224 of 256, as in torchvision and timm.
CROP_PCT = 0.875

# timm's name -> Pillow's code, which Hugging Face's configs hold.
INTERPOLATIONS = {
  "nearest": 0,
  "lanczos": 1,
  "bilinear": 2,
  "bicubic": 3,
  "box": 4,
  "hamming": 5,
}

# Largest short side as a multiple of the crop: a slip of a digit would use up
# the memory.
_MOST_RESIZED = 16

_Colour = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """From an image of any size to a model's input.

  Attributes:
    size: rows and columns of the input, in pixels.
    short_side: short side in pixels after the resize, before the centre crop;
      None for images that already have `size` and are read whole.
    mean: subtracted per channel from images in [0, 1].
    std: per channel, divided by after that; > 0.
    interpolation: of the resize, a key of INTERPOLATIONS.
    squash: resize both sides to `short_side`, whatever the aspect ratio.

  Raises:
    ValueError: a value is out of range.
  """

  size: tuple[int, int]
  short_side: int | None
  mean: _Colour
  std: _Colour
  interpolation: str = "bicubic"
  squash: bool = False

  def __post_init__(self) -> None:
    for name in ("size", "mean", "std"):
      value = getattr(self, name)
      if not isinstance(value, list | tuple) or not all(
        map(check.is_real, value)
      ):
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
    """Whether images are read whole, without resize and crop."""
    return self.short_side is None

  @property
  def crop_pct(self) -> float:
    """The shortest decimal from which timm computes exactly this short side."""
    side, short = min(self.size), self.short_side or min(self.size)
    for digits in range(1, 18):
      nearest = round(side / short, digits)
      # 7 / 0.28 is below 25 in floating point: try one digit down, too.
      for share in (nearest, round(nearest - 10**-digits, digits)):
        if share > 0 and resized(side, share) == short:
          return share
    raise AssertionError(f"no crop_pct for {side} of {short}")

  def at(self, size: tuple[int, int]) -> "Preprocess":
    """The same preprocessing, with the same crop_pct, for another input size.

    Args:
      size: rows and columns of the input, in pixels.
    """
    rows, columns = size
    if (rows, columns) == self.size:
      return self
    short = resized(min(size), self.crop_pct)
    return dataclasses.replace(self, size=(rows, columns), short_side=short)

  def __str__(self) -> str:
    """A description for people."""
    height, width = self.size
    if self.whole:
      return f"whole images of {height}x{width} pixels"
    what = "both sides" if self.squash else "short side"
    return (
      f"{what} to {self.short_side} pixels ({self.interpolation}), "
      f"{height}x{width} from the centre"
    )


def resized(side: int, crop_pct: float = CROP_PCT) -> int:
  """Short side of the resize, by timm's rounding.

  Args:
    side: of the crop, in pixels.
    crop_pct: side of the crop / short side, in (0, 1].
  """
  return math.floor(side / crop_pct)


def check_crop(side: int, short_side: int) -> None:
  """Checks that a crop fits into a resized image.

  Args:
    side: of the crop, in pixels.
    short_side: of the resized image, in pixels.

  Raises:
    ValueError: the crop is larger than the short side, or far smaller.
  """
  if not isinstance(short_side, int) or not 0 < side <= short_side:
    raise ValueError(
      f"expected a short side >= {side} for a crop of {side} pixels, got "
      f"{short_side}; resize to at least {side}"
    )
  if short_side > _MOST_RESIZED * side:
    raise ValueError(
      f"expected a short side <= {_MOST_RESIZED * side} for a crop of {side} "
      f"pixels, got {short_side}; resize to at most {_MOST_RESIZED * side}"
    )


def short_side(image_size: int, eval_resize: int = 0) -> int | None:
  """Short side of the resize in a training's evaluation; None for no crop.

  Args:
    image_size: side of the crop in pixels; 0 for whole images.
    eval_resize: short side in pixels; 0 for that of `CROP_PCT`.
  """
  return (eval_resize or resized(image_size)) if image_size else None


def from_dict(fields: Mapping[str, Any]) -> Preprocess:
  """A `Preprocess` from its `dataclasses.asdict`, possibly via JSON.

  Args:
    fields: of `Preprocess`, by name.

  Raises:
    ValueError: a field is unknown, missing or out of range.
  """
  try:
    return Preprocess(**fields)
  except TypeError:
    raise ValueError(
      f"preprocess={fields!r}: expected the fields of Preprocess"
    ) from None


def is_side(value: object) -> bool:
  """Whether a value can be the side of an image: an integer in [1, 2^15].

  Args:
    value: of any type.
  """
  return (
    isinstance(value, numbers.Integral)
    and not isinstance(value, bool)
    and 0 < int(value) <= 2**15
  )
