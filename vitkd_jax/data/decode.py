"""Host side, one example: the bytes of an image file -> uint8 pixels.

Ordinary JPEGs go through TurboJPEG (simplejpeg), whose pixels are Pillow's;
every other format and all that is unusual (CMYK, 16 bits, palettes, rotation
by EXIF, small faults) goes through Pillow. Pixels come as they are stored
unless they are asked for upright: timm and torchvision ignore EXIF's
orientation, and published weights and scores were made so. What cannot be read
of metadata does not matter.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import io
import math
from typing import TypeVar

from absl import logging
import numpy as np
from PIL import Image
import simplejpeg

from vitkd_jax.data import metadata

T = TypeVar("T")

# A file of more pixels is refused: a progressive one takes up to 6 bytes for
# each, however much its pixels are shrunk.
MOST_IN_FILE = 2**27
# More decoded pixels are refused: 3 bytes each, in every reading thread. The
# largest cameras' images pass as JPEG, which decodes shrunk.
MOST_DECODED = 2**25

# Pillow's names of the formats that are opened. All others stay closed: EPS,
# for one, would start Ghostscript.
FORMATS = (
  *("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF"),
  *("PPM", "AVIF", "JPEG2000", "TGA"),
)

_BASELINE, _PROGRESSIVE = (0xC0, 0xC1), (0xC2,)  # JPEG's markers of a frame
_SCAN, _APP1 = 0xDA, 0xE1
_GREY = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N")  # modes
# By EXIF's orientation, what brings an image upright.
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
  """A record cannot be read or is no image; the message says why."""


class File:
  """An image file: its size now, its pixels when they are asked for.

  Attributes:
    height: in pixels, of what `pixels` gives.
    width: likewise.
    channels: 1 or 3, of what `pixels` gives.
    shrinks: may be decoded at 1/2, 1/4 or 1/8 of its size, and faster.

  Args:
    data: the file's bytes.
    upright: turn the image as EXIF says. A TIFF always is: Pillow does it.

  Raises:
    BadRecordError: no image, or one of too many pixels.
  """

  def __init__(self, data: bytes, upright: bool = False):
    self._data, self._turn = data, None
    self._jpeg, self._image = _plain_jpeg(data, upright), None
    if self._jpeg:
      self.height, self.width = self._jpeg.height, self._jpeg.width
      self.channels = 1 if self._jpeg.space == "GRAY" else 3
      self.shrinks = True
    else:
      with _naming(data):
        self._image = _lenient(data, lambda image: image)
      self.width, self.height = self._image.size
      self.channels = 1 if self._image.mode in _GREY else 3
      self.shrinks = self._image.format == "JPEG"
    if self.height * self.width > MOST_IN_FILE:
      raise self._too_large(MOST_IN_FILE)
    if self._image and upright and self._image.format != "TIFF":
      turn = metadata.orientation(self._image)
      self._turn = _TURNS.get(turn)
      if turn >= 5:
        self.height, self.width = self.width, self.height

  def pixels(self, shrink: int = 1, rows: int | None = None) -> np.ndarray:
    """The image, uint8 [H, W, 3] in RGB order; [H, W, 1] when it is grey.

    Args:
      shrink: 1, 2, 4 or 8: H and W are the file's divided by it, rounded up.
        Above 1 only where `shrinks`.
      rows: of the file that are needed; fewer may take less time. What comes
        has these and perhaps more.

    Raises:
      BadRecordError: the file is damaged, or has too many pixels.
    """
    height, width = (math.ceil(x / shrink) for x in (self.height, self.width))
    if height * width > MOST_DECODED:
      raise self._too_large(MOST_DECODED)
    if self._jpeg:
      try:
        return self._jpeg.pixels(shrink, rows or self.height)
      except ValueError:
        pass  # Pillow forgives what does no harm, such as stray bytes
    with _naming(self._data):
      # What was opened, the first time: Pillow reads a file but once.
      opened, self._image = self._image, None
      return _lenient(
        self._data,
        lambda image: _by_pillow(image, self._data, shrink, self._turn),
        opened,
      )

  def orientation(self) -> int:
    """EXIF's, by which `upright` turns the image: 1 is upright already."""
    if self._jpeg:
      return _jpeg_orientation(self._data)
    opened = self._image or _lenient(self._data, lambda image: image)
    return 1 if opened.format == "TIFF" else metadata.orientation(opened)

  def _too_large(self, most):
    return BadRecordError(
      f"an image of {self.height}x{self.width} pixels is larger than the"
      f" {most / 1e6:.0f} megapixels that are read"
    )


class Pixels:
  """An image that is decoded already, as a `File` is asked for it.

  Args:
    image: uint8 [H, W, 1 or 3].
  """

  shrinks = False

  def __init__(self, image: np.ndarray):
    self._image = image
    self.height, self.width, self.channels = image.shape

  def pixels(self, shrink: int = 1, rows: int | None = None) -> np.ndarray:
    """The image as it is; see `File`."""
    del rows
    assert shrink == 1, shrink
    return self._image


def decode(data: bytes, upright: bool = False) -> np.ndarray:
  """Pixels of an image file.

  Args:
    data: the file's bytes.
    upright: see `File`.

  Returns:
    uint8 [H, W, 3] in RGB order; uint8 [H, W, 1] when the file is grey. Of 16
    bits the upper 8 are kept, of a grey file that says it has 9 to 15 the
    upper 8 of these; transparency is dropped.

  Raises:
    BadRecordError: the bytes are no image, a damaged or too large a one.
  """
  return File(data, upright).pixels()


def to_rgb(image: np.ndarray) -> np.ndarray:
  """`image` uint8 [..., 1 or 3] with its grey repeated: uint8 [..., 3]."""
  return np.broadcast_to(image, (*image.shape[:-1], 3))


@dataclasses.dataclass(frozen=True)
class _Jpeg:
  """A JPEG that TurboJPEG decodes well.

  Attributes:
    data: its bytes.
    height: in pixels.
    width: likewise.
    space: "RGB" or "GRAY", of the pixels.
    height_at: where in `data` the two bytes of the height are.
    cuttable: the rows come one after the other, down to the file's end.
  """

  data: bytes
  height: int
  width: int
  space: str
  height_at: int
  cuttable: bool

  def pixels(self, shrink, rows):
    # The decoder stops after the rows that the header promises; entropy
    # decoding, most of its time, cannot skip what lies before or beside the
    # crop. Sixteen rows are one row of blocks, and the next is looked at when
    # colours are interpolated.
    height = min(self.height, (rows // 16 + 1) * 16)
    cut = self.cuttable and shrink == 1 and height < self.height
    data = self.data
    if cut:
      data = bytearray(data)
      data[self.height_at : self.height_at + 2] = height.to_bytes(2, "big")
    return simplejpeg.decode_jpeg(
      data,
      self.space,
      min_height=math.ceil(self.height / shrink) if shrink > 1 else 0,
      min_width=math.ceil(self.width / shrink) if shrink > 1 else 0,
      strict=not cut,  # the rest of the data is a recoverable error
    )


def _plain_jpeg(data, upright):
  """The `_Jpeg` of ordinary bytes; None where Pillow should look at them."""
  if not simplejpeg.is_jpeg(data):
    return None
  try:
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
  except ValueError:
    return None
  if space not in ("YCbCr", "Gray", "RGB"):
    return None
  frame = None
  for marker, at in metadata.segments(data):
    if upright and marker == _APP1 and data.startswith(b"Exif", at + 2):
      if _jpeg_orientation(data) != 1:
        return None
    elif marker in (*_BASELINE, *_PROGRESSIVE):
      frame = marker, at
    elif marker == _SCAN and frame:
      whole = data[at + 2] == data[frame[1] + 7]  # all channels in one scan
      return _Jpeg(
        data=data,
        height=height,
        width=width,
        space="GRAY" if space == "Gray" else "RGB",
        height_at=frame[1] + 3,
        cuttable=(
          whole and frame[0] in _BASELINE and data.endswith(b"\xff\xd9")
        ),
      )
  return None


def _jpeg_orientation(data):
  try:
    image = Image.open(io.BytesIO(data), formats=["JPEG"])
  except Exception:  # of its metadata
    return 1
  return metadata.orientation(image)


@functools.cache
def _formats():
  Image.init()  # loads Pillow's plugins, of which a release may lack some
  return [name for name in FORMATS if name in Image.OPEN]


def _lenient(
  data: bytes,
  use: Callable[[Image.Image], T],
  opened: Image.Image | None = None,
) -> T:
  """`use` of the opened file; if that fails, of the file less its metadata."""

  def attempt(data):
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


def _by_pillow(image, data, shrink, turn):
  metadata.forget(image)
  if shrink > 1:  # JPEG alone heeds it; the size is a lower limit
    image.draft(None, (image.width // shrink, image.height // shrink))
  narrow = image
  if turn is not None:
    image = image.transpose(turn)
  if image.mode in ("I", "F") or image.mode.startswith("I;16"):
    image = _upper_bits(image, narrow, data)
  elif image.mode == "P":  # whose transparency Pillow wants to keep
    image = image.convert("RGBA")
  if image.mode in ("1", "L", "LA"):
    return np.asarray(image.convert("L"))[:, :, None]
  return np.asarray(image.convert("RGB"))


def _upper_bits(image, opened, data):
  """The 8-bit image of a grey one of up to 16 bits."""
  values = np.asarray(image)
  if values.dtype.kind == "f" or values.min() < 0 or values.max() > 0xFFFF:
    raise ValueError(f"its {values.dtype} pixels are not of 8 or 16 bits")
  bits = metadata.depth(opened, data, values)
  if bits == 16 and 255 < values.max() < 2**12:
    logging.log_first_n(
      logging.WARNING,
      "a grey image of 16 bits has no value above %d and comes nearly black; if"
      " its camera has fewer bits, scale its values up first (docs/data.md)",
      1,
      values.max(),
    )
  return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


@contextlib.contextmanager
def _naming(data):
  """Turns whatever Pillow raises into one sentence of a BadRecordError."""
  try:
    yield
  except Exception as error:  # Pillow's plugins raise many types
    if not data:
      reason = "an empty file"
    elif isinstance(error, Image.UnidentifiedImageError):
      reason = f"{len(data):,} bytes that are no image"
    else:
      reason = f"a damaged image of {len(data):,} bytes ({error})"
    raise BadRecordError(reason) from error
