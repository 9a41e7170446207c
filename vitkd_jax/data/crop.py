"""Host side, one example: an image file -> a square crop of uint8.

Training takes a random part, as fast as it can; evaluation takes the middle,
as exactly as others (torchvision, timm) do with Pillow.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np
from PIL import Image

from vitkd_jax.data import decode, preprocess

Source = bytes | decode.File | decode.Pixels

# Reading threads and worker processes share the cores already.
cv2.setNumThreads(0)

# Up to this factor of shrinking, OpenCV's cubic after a filter of three taps
# stands in for Pillow's antialiased bicubic; beyond it the mean over areas,
# which takes longer.
_FILTER_UP_TO = 2.5
# The filter's outer taps by factor: least squares between the two resizings of
# a row whose pixels differ as those of 303 ImageNet images do (mean square by
# distance). Enlarging takes the first: OpenCV's cubic is the sharper one.
_FACTORS = (1.0, 1.5, 2.0, 2.5)
_OUTER_TAPS = (0.0175, 0.1416, 0.2468, 0.3216)
# Evaluation's part of an image that is longer: what it leaves out is far from
# the crop, but would be resized; of 1 x 60,000 pixels into gigabytes.
_LONGEST = 32
# A decoder's shrunk image keeps at least this many pixels for one of the
# crop; measured in benchmarks/RESULTS.md.
_TRAIN_SLACK = 2
_EVAL_SLACK = 4


@dataclasses.dataclass(frozen=True)
class RandomCrop:
  """A random part of an image, brought to a square: the training's crop.

  Area and ratio are drawn as in "Going deeper with convolutions"
  (arXiv:1409.4842) by torchvision's rules: ten trials, then the largest
  central part of an allowed ratio.

  Attributes:
    size: pixels of a side of the result.
    area: least and greatest part of the image's area.
    ratio: least and greatest width / height, log-uniform.
  """

  size: int
  area: tuple[float, float] = (0.08, 1.0)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)

  def __call__(self, data: Source, rng: np.random.Generator) -> np.ndarray:
    """uint8 [size, size, 3] of an image file, or of its bytes.

    Raises:
      decode.BadRecordError: the bytes are no image, or a damaged one.
    """
    file = _opened(data)
    box = random_box(rng, file.height, file.width, self.area, self.ratio)
    shrink = _shrink(file, min(box[2:]) / (_TRAIN_SLACK * self.size))
    pixels = file.pixels(shrink, rows=box[0] + box[2])
    part = _part(pixels, box, shrink)
    return decode.to_rgb(resize(part, self.size))


@dataclasses.dataclass(frozen=True)
class CentreCrop:
  """The middle of an image whose short side was resized: the evaluation's.

  Attributes:
    size: pixels of a side of the result.
    short_side: pixels of the short side before the crop, at least `size`.
    interpolation: of that resize, a key of `preprocess.INTERPOLATIONS`.
    squash: both sides become `short_side`, whatever the image's ratio.

  Raises:
    ValueError: the crop is larger than what it is cut from, or far smaller.
  """

  size: int
  short_side: int
  interpolation: str = "bicubic"
  squash: bool = False

  def __post_init__(self):
    preprocess.check_crop(self.size, self.short_side)

  def __call__(self, data: Source, rng: object = None) -> np.ndarray:
    """uint8 [size, size, 3] of an image file, or bytes; `rng` is not used.

    Raises:
      decode.BadRecordError: the bytes are no image, or a damaged one.
    """
    del rng
    file = _opened(data)
    short = min(file.height, file.width)
    shrink = _shrink(file, short / (_EVAL_SLACK * self.short_side))
    pixels, cut = file.pixels(shrink), (0, 0)
    if not self.squash:
      pixels, cut = _middle(pixels)
    sides = (file.height - shrink * cut[0], file.width - shrink * cut[1])
    # The long side is cut, not rounded, and halves go to the even pixel, as
    # in torchvision.
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
  """The crop that a preprocessing means; None where images are taken whole.

  Raises:
    ValueError: the crop is not square.
  """
  if images.whole:
    return None
  height, width = images.size
  if height != width:
    raise ValueError(
      f"crops of {height}x{width} pixels cannot be made here; expected a square"
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
  """Top, left, height and width of `RandomCrop`'s part of an image."""
  logs = [math.log(x) for x in ratio]
  for _ in range(10):
    target = height * width * rng.uniform(*area)
    aspect = math.exp(rng.uniform(*logs))
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
  """uint8 [size, size, C] of `image` uint8 [H, W, C], near Pillow's bicubic."""
  height, width = image.shape[:2]
  how = cv2.INTER_AREA
  if math.sqrt(height * width) <= _FILTER_UP_TO * size:
    x, y = _filter(width / size), _filter(height / size)
    image = cv2.sepFilter2D(image, -1, x, y, borderType=cv2.BORDER_REPLICATE)
    how = cv2.INTER_CUBIC
  out = cv2.resize(image, (size, size), interpolation=how)
  return out.reshape(size, size, -1)  # OpenCV drops a single channel


@functools.lru_cache(1024)
def _filter(factor):
  """Taps float64 [3], of sum 1, for an axis that is to shrink by `factor`."""
  if factor == 1:  # nothing moves between pixels
    return np.array([0.0, 1.0, 0.0])
  outer = np.interp(factor, _FACTORS, _OUTER_TAPS)
  return np.array([outer, 1 - 2 * outer, outer])


def may_shrink(file: decode.File, size: int) -> bool:
  """Whether a crop to `size` pixels may have the file decoded shrunk."""
  # The evaluation's short side is at least its size, so this holds for both.
  slack = min(_TRAIN_SLACK, _EVAL_SLACK)
  short = min(file.height, file.width)
  return _shrink(file, short / (slack * size)) > 1


def _opened(data):
  return decode.File(data) if isinstance(data, bytes) else data


def _shrink(file, factor):
  """The decoder's 1, 2, 4 or 8 next below `factor`."""
  if not file.shrinks:
    return 1
  return next((s for s in (8, 4, 2) if factor >= s), 1)


def _middle(pixels):
  """The middle of a very long image, and how much less it has on each axis."""
  most = _LONGEST * min(pixels.shape[:2])
  top, left = (max(0, side - most) // 2 for side in pixels.shape[:2])
  height, width = pixels.shape[:2]
  part = pixels[top : height - top, left : width - left]
  return part, (2 * top, 2 * left)


def _part(pixels, box, shrink):
  """The box, in pixels of the file, of the decoded image.

  Its edges go to the nearest decoded pixel: of the result less than a quarter.
  """
  top, left, h, w = box
  rows = slice(round(top / shrink), round((top + h) / shrink))
  columns = slice(round(left / shrink), round((left + w) / shrink))
  return pixels[rows, columns]
