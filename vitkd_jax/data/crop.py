"""Host side, one example: an image file -> a square uint8 crop.

Training crops a random part, as fast as possible; evaluation crops the centre,
exactly as torchvision and timm do with Pillow.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np
from PIL import Image

from vitkd_jax.data import decode, preprocess

Source = bytes | decode.File | decode.Pixels

# Reading threads and worker processes already share the cores.
cv2.setNumThreads(0)

# Up to this downscaling factor, OpenCV's cubic after a three-tap filter stands
# in for Pillow's antialiased bicubic; beyond it the slower area mean does.
_FILTER_UP_TO = 2.5
# The filter's outer taps by factor: a least-squares fit between the two resizes
# of a row whose pixels differ as those of 303 ImageNet images do (mean square
# by distance). Upscaling uses the first: OpenCV's cubic is the sharper one.
_FACTORS = (1.0, 1.5, 2.0, 2.5)
_OUTER_TAPS = (0.0175, 0.1416, 0.2468, 0.3216)
# Longest side, as a multiple of the short side, that evaluation resizes. The
# rest is far from the crop; resizing a 1 x 60,000 image whole would take
# gigabytes.
_LONGEST = 32
# A decoder's shrunk image keeps at least this many pixels per pixel of the
# crop's side; measured in benchmarks/RESULTS.md.
_TRAIN_SLACK = 2
_EVAL_SLACK = 4


@dataclasses.dataclass(frozen=True)
class RandomCrop:
  """A random part of an image, resized to a square: the training crop.

  Area and ratio are drawn as in "Going deeper with convolutions"
  (arXiv:1409.4842) by torchvision's rules: ten trials, then the largest
  central part of an allowed ratio.

  Attributes:
    size: side of the result in pixels.
    area: smallest and largest share of the image's area, in (0, 1].
    ratio: smallest and largest width / height, drawn log-uniformly.
  """

  size: int
  area: tuple[float, float] = (0.08, 1.0)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)

  def __call__(self, data: Source, rng: np.random.Generator) -> np.ndarray:
    """uint8 [size, size, 3]: a random crop of one image.

    Args:
      data: an image file, or its bytes.
      rng: draws the part.

    Raises:
      decode.BadRecordError: the bytes are not an image, or damaged.
    """
    file = _opened(data)
    box = random_box(rng, file.height, file.width, self.area, self.ratio)
    shrink = _shrink(file, min(box[2:]) / (_TRAIN_SLACK * self.size))
    pixels = file.pixels(shrink, rows=box[0] + box[2])
    part = _part(pixels, box, shrink)
    return decode.to_rgb(resize(part, self.size))


@dataclasses.dataclass(frozen=True)
class CentreCrop:
  """The centre of an image after a resize: the evaluation crop.

  Attributes:
    size: side of the result in pixels.
    short_side: short side in pixels after the resize, at least `size`.
    interpolation: of the resize, a key of `preprocess.INTERPOLATIONS`.
    squash: resize both sides to `short_side`, whatever the aspect ratio.

  Raises:
    ValueError: the crop is larger than the resized image, or far smaller.
  """

  size: int
  short_side: int
  interpolation: str = "bicubic"
  squash: bool = False

  def __post_init__(self) -> None:
    preprocess.check_crop(self.size, self.short_side)

  def __call__(self, data: Source, rng: object = None) -> np.ndarray:
    """uint8 [size, size, 3]: the centre crop of one image.

    Args:
      data: an image file, or its bytes.
      rng: not used; for the signature of `RandomCrop`.

    Raises:
      decode.BadRecordError: the bytes are not an image, or damaged.
    """
    del rng
    file = _opened(data)
    short = min(file.height, file.width)
    shrink = _shrink(file, short / (_EVAL_SLACK * self.short_side))
    pixels, cut = file.pixels(shrink), (0, 0)
    if not self.squash:
      pixels, cut = _middle(pixels)
    sides = (file.height - shrink * cut[0], file.width - shrink * cut[1])
    # As in torchvision, the long side is truncated, not rounded, and halves
    # round to even.
    height, width = (
      self.short_side
      if self.squash
      else max(self.short_side, self.short_side * side // short)
      for side in sides
    )
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    how = preprocess.INTERPOLATIONS[self.interpolation]
    image = image.resize((width, height), Image.Resampling(how))
    top = round((height - self.size) / 2)
    left = round((width - self.size) / 2)
    image = image.crop((left, top, left + self.size, top + self.size))
    array = np.asarray(image)
    return decode.to_rgb(array.reshape(self.size, self.size, -1))


def centre(images: preprocess.Preprocess) -> CentreCrop | None:
  """The evaluation crop of a preprocessing; None for whole images.

  Args:
    images: size, resize and interpolation of the crop.

  Raises:
    ValueError: the crop is not square.
  """
  if images.short_side is None:
    return None
  height, width = images.size
  if height != width:
    raise ValueError(
      f"expected a square crop, got {height}x{width} pixels; choose one side"
    )
  return CentreCrop(
    height, images.short_side, images.interpolation, images.squash
  )


def random_box(
  rng: np.random.Generator,
  height: int,
  width: int,
  area: tuple[float, float],
  ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
  """Draws the part of an image that `RandomCrop` takes.

  Args:
    rng: draws area, ratio and place.
    height: of the image in pixels.
    width: of the image in pixels.
    area: see `RandomCrop`.
    ratio: see `RandomCrop`.

  Returns:
    Top, left, height and width in pixels.
  """
  low, high = (math.log(x) for x in ratio)
  for _ in range(10):
    target = height * width * rng.uniform(*area)
    aspect = math.exp(rng.uniform(low, high))
    w = round(math.sqrt(target * aspect))
    h = round(math.sqrt(target / aspect))
    if 0 < w <= width and 0 < h <= height:
      top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
      return int(top), int(left), h, w
  aspect = min(max(width / height, ratio[0]), ratio[1])
  w = min(width, max(1, round(height * aspect)))
  h = min(height, max(1, round(width / aspect)))
  return (height - h) // 2, (width - w) // 2, h, w


def resize(image: np.ndarray, size: int) -> np.ndarray:
  """Resizes to a square, close to Pillow's antialiased bicubic.

  Args:
    image: uint8 [H, W, C].
    size: side of the result in pixels.

  Returns:
    uint8 [size, size, C].
  """
  height, width = image.shape[:2]
  how = cv2.INTER_AREA
  if math.sqrt(height * width) <= _FILTER_UP_TO * size:
    x, y = _filter(width / size), _filter(height / size)
    image = cv2.sepFilter2D(image, -1, x, y, borderType=cv2.BORDER_REPLICATE)
    how = cv2.INTER_CUBIC
  out = cv2.resize(image, (size, size), interpolation=how)
  return out.reshape(size, size, -1)  # OpenCV drops a single channel


@functools.lru_cache(1024)
def _filter(factor: float) -> np.ndarray:
  """float64 [3], taps of sum 1 for an axis that shrinks by `factor`."""
  if factor == 1:  # the resize is the identity
    return np.array([0.0, 1.0, 0.0])
  outer = np.interp(factor, _FACTORS, _OUTER_TAPS)
  return np.array([outer, 1 - 2 * outer, outer])


def may_shrink(file: decode.File, size: int) -> bool:
  """Whether a crop may decode the file shrunk.

  Args:
    file: an image file.
    size: side of the crop in pixels.
  """
  # The evaluation's short side is at least its size, so this holds for both.
  slack = min(_TRAIN_SLACK, _EVAL_SLACK)
  short = min(file.height, file.width)
  return _shrink(file, short / (slack * size)) > 1


def _opened(data: Source) -> decode.File | decode.Pixels:
  return decode.File(data) if isinstance(data, bytes) else data


def _shrink(file: decode.File | decode.Pixels, factor: float) -> int:
  """The largest of the decoder's 1, 2, 4 and 8 that is <= `factor`."""
  if not file.shrinks:
    return 1
  return next((s for s in (8, 4, 2) if factor >= s), 1)


def _middle(pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
  """The middle of a very long image, and the pixels removed on each axis."""
  most = _LONGEST * min(pixels.shape[:2])
  top, left = (max(0, side - most) // 2 for side in pixels.shape[:2])
  height, width = pixels.shape[:2]
  part = pixels[top : height - top, left : width - left]
  return part, (2 * top, 2 * left)


def _part(
  pixels: np.ndarray, box: tuple[int, int, int, int], shrink: int
) -> np.ndarray:
  """Cuts `box`, in pixels of the file, out of the decoded image.

  Edges round to the nearest decoded pixel: an error below a quarter pixel of
  the result.
  """
  top, left, h, w = box
  rows = slice(round(top / shrink), round((top + h) / shrink))
  columns = slice(round(left / shrink), round((left + w) / shrink))
  return pixels[rows, columns]
