"""Host side, one example: the bytes of an image file -> uint8 pixels.

Ordinary JPEGs go through TurboJPEG (simplejpeg), whose pixels equal Pillow's;
every other format and everything unusual (CMYK, 16 bits, palettes, rotation by
EXIF, small faults) goes through Pillow. Pixels come as stored unless asked for
upright: timm and torchvision ignore the EXIF orientation, and so do published
weights and scores. Unreadable metadata are ignored.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import io
import math
from typing import TypeVar

from absl import logging
import numpy as np
from PIL import Image

from vitkd_jax.data import jpeg, memory, metadata

T = TypeVar("T")

# Most pixels in a file: a progressive JPEG takes up to 6 bytes for each, no
# matter how much it is shrunk.
MOST_IN_FILE = 2**27
# Most decoded pixels, 3 bytes each, in every reading thread. Images of the
# largest cameras pass as JPEG, which decodes shrunk.
MOST_DECODED = 2**25

# Bytes of memory that decoding takes for a pixel, at most: TurboJPEG's output;
# the coefficients of a progressive JPEG, of its full size; Pillow's formats and
# their copies (measured: 14 for PNG, 21 for WebP).
_PLAIN, _PROGRESSIVE, _PILLOW = 3, 6, 21
# What a file may decode to at once beside others, or else alone, in all threads
# together: a PNG of 0.1 MB may take 0.5 GB.
_LARGE = 2**24
_room = memory.Room(2**30)

# Pillow's names of the formats that are opened; no other is: EPS, for one,
# would start Ghostscript.
FORMATS = (
  *("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF"),
  *("PPM", "AVIF", "JPEG2000", "TGA"),
)

_GREY = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N")  # modes
# What turns an image upright, by EXIF orientation.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


class BadRecordError(ValueError):
  """A record cannot be read or is not an image; the message says why."""


class File:
  """An image file whose header is read now and whose pixels are read on demand.

  Attributes:
    height: of the unshrunk image in pixels.
    width: of the unshrunk image in pixels.
    channels: 1 for grey, 3 for RGB.
    shrinks: decodes faster at 1/2, 1/4 or 1/8 of its size.

  Args:
    data: the file's bytes.
    upright: turn the image by its EXIF orientation. Pillow always does so for a
      TIFF.

  Raises:
    BadRecordError: not an image, or one with too many pixels.
  """

  def __init__(self, data: bytes, upright: bool = False):
    self._data = data
    self._turn: Image.Transpose | None = None
    self._jpeg = jpeg.plain(data, upright)
    self._image: Image.Image | None = None
    if self._jpeg:
      self.height, self.width = self._jpeg.height, self._jpeg.width
      self.channels = 1 if self._jpeg.space == "GRAY" else 3
      self.shrinks = True
    else:
      with _naming(data):
        image = self._image = _lenient(data, lambda image: image)
      self.width, self.height = image.size
      self.channels = 1 if image.mode in _GREY else 3
      self.shrinks = image.format == "JPEG"
    if self.height * self.width > MOST_IN_FILE:
      raise self._too_large(MOST_IN_FILE)
    self._scans = jpeg.scans(data)
    if self._scans > jpeg.MOST_SCANS:
      raise BadRecordError(
        f"expected a JPEG of at most {jpeg.MOST_SCANS} scans, got more"
      )
    if self._image and upright and self._image.format != "TIFF":
      turn = metadata.orientation(self._image)
      self._turn = _TURNS.get(turn)
      if turn >= 5:
        self.height, self.width = self.width, self.height

  def pixels(self, shrink: int = 1, rows: int | None = None) -> np.ndarray:
    """Decodes the image.

    Args:
      shrink: 1, 2, 4 or 8, the divisor of height and width (rounded up); above
        1 only if `shrinks`.
      rows: number of rows needed from the top, of the unshrunk image; None for
        all. Fewer may decode faster.

    Returns:
      uint8 [H, W, 3] in RGB order, or [H, W, 1] for a grey image; at least the
      rows asked for.

    Raises:
      BadRecordError: the file is damaged, or has too many pixels.
    """
    height, width = (math.ceil(x / shrink) for x in (self.height, self.width))
    if height * width > MOST_DECODED:
      raise self._too_large(MOST_DECODED)
    needed = height * width * (_PLAIN if self._jpeg else _PILLOW)
    if self._scans > 1:
      needed += self.height * self.width * _PROGRESSIVE
    room = _room.taking(needed) if needed > _LARGE else contextlib.nullcontext()
    with room:
      return self._pixels(shrink, rows)

  def _pixels(self, shrink: int, rows: int | None) -> np.ndarray:
    if self._jpeg:
      try:
        return self._jpeg.pixels(shrink, rows or self.height)
      except ValueError:
        pass  # Pillow tolerates harmless faults, such as stray bytes
    with _naming(self._data):
      # Reuse the opened image the first time: Pillow decodes it only once.
      opened, self._image = self._image, None
      return _lenient(
        self._data,
        lambda image: _by_pillow(image, self._data, shrink, self._turn),
        opened,
      )

  def orientation(self) -> int:
    """EXIF orientation, from 1 (upright) to 8, that `upright` would undo."""
    if self._jpeg:
      return jpeg.orientation(self._data)
    opened = self._image or _lenient(self._data, lambda image: image)
    return 1 if opened.format == "TIFF" else metadata.orientation(opened)

  def _too_large(self, most: int) -> BadRecordError:
    return BadRecordError(
      f"expected an image of at most {most / 1e6:.0f} megapixels, got"
      f" {self.height}x{self.width} pixels"
    )


class Pixels:
  """A decoded image with the interface of `File`.

  Args:
    image: uint8 [H, W, 1] or [H, W, 3].
  """

  shrinks = False

  def __init__(self, image: np.ndarray):
    self._image = image
    self.height, self.width, self.channels = image.shape

  def pixels(self, shrink: int = 1, rows: int | None = None) -> np.ndarray:
    """The image as it is.

    Args:
      shrink: 1.
      rows: not used; see `File.pixels`.
    """
    del rows
    assert shrink == 1, shrink
    return self._image


def decode(data: bytes, upright: bool = False) -> np.ndarray:
  """Decodes an image file.

  Args:
    data: the file's bytes.
    upright: turn the image by its EXIF orientation; see `File`.

  Returns:
    uint8 [H, W, 3] in RGB order, or uint8 [H, W, 1] for a grey file. 16-bit
    samples keep their upper 8 bits; samples of a grey file that declares 9 to
    15 bits keep the upper 8 of those. Transparency is dropped.

  Raises:
    BadRecordError: the bytes are not an image, damaged or too large.
  """
  return File(data, upright).pixels()


def to_rgb(image: np.ndarray) -> np.ndarray:
  """Repeats a grey channel.

  Args:
    image: uint8 [..., 1] or [..., 3].

  Returns:
    uint8 [..., 3].
  """
  return np.broadcast_to(image, (*image.shape[:-1], 3))


@functools.cache
def _formats() -> list[str]:
  Image.init()  # loads Pillow's plugins; a release may lack some
  return [name for name in FORMATS if name in Image.OPEN]


def _lenient(
  data: bytes,
  use: Callable[[Image.Image], T],
  opened: Image.Image | None = None,
) -> T:
  """Applies `use` to the image; on failure, to the file without metadata."""

  def attempt(data: bytes) -> T:
    return use(Image.open(io.BytesIO(data), formats=_formats()))

  try:
    return attempt(data) if opened is None else use(opened)
  except Exception as error:  # Pillow's plugins raise many types
    bare = metadata.stripped(data)
    if bare is None or len(bare) == len(data):
      raise
    try:
      return attempt(bare)
    except Exception:
      raise error from None


def _by_pillow(
  image: Image.Image, data: bytes, shrink: int, turn: Image.Transpose | None
) -> np.ndarray:
  metadata.forget(image)
  if shrink > 1:  # a lower limit of the size; JPEG only
    image.draft(None, (image.width // shrink, image.height // shrink))
  narrow = image
  if turn is not None:
    image = image.transpose(turn)
  if image.mode in ("I", "F") or image.mode.startswith("I;16"):
    image = _upper_bits(image, narrow, data)
  elif image.mode == "P":  # Pillow warns of its transparency otherwise
    image = image.convert("RGBA")
  if image.mode in ("1", "L", "LA"):
    return np.asarray(image.convert("L"))[:, :, None]
  if image.mode != "RGB":
    image = image.convert("RGB")
  return np.asarray(image)


def _upper_bits(
  image: Image.Image, opened: Image.Image, data: bytes
) -> Image.Image:
  """The upper 8 bits of a grey image of up to 16 bits."""
  values = np.asarray(image)
  if values.dtype.kind == "f" or values.min() < 0 or values.max() > 0xFFFF:
    raise ValueError(f"expected 8 or 16 bits a sample, got {values.dtype}")
  bits = metadata.depth(opened, data, values)
  if bits == 16 and 255 < values.max() < 2**12:
    logging.log_first_n(
      logging.WARNING,
      "a 16-bit grey image has no value above %d and is read nearly black; if"
      " its camera has fewer bits, scale its values up first (docs/data.md)",
      1,
      values.max(),
    )
  return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


@contextlib.contextmanager
def _naming(data: bytes) -> Iterator[None]:
  """Turns whatever Pillow raises into a one-sentence BadRecordError."""
  try:
    yield
  except Exception as error:  # Pillow's plugins raise many types
    if not data:
      reason = "an empty file"
    elif isinstance(error, Image.UnidentifiedImageError):
      reason = f"{len(data):,} bytes that are not an image"
    else:
      reason = f"a damaged image of {len(data):,} bytes ({error})"
    raise BadRecordError(reason) from error
