"""Host side: ordinary JPEGs through TurboJPEG (simplejpeg)."""

import dataclasses
import io
import math
import re

import numpy as np
from PIL import Image
import simplejpeg

from vitkd_jax.data import metadata

_BASELINE, _PROGRESSIVE = (0xC0, 0xC1), (0xC2,)  # JPEG's frame markers
_SCAN, _APP1 = 0xDA, 0xE1
_END, _BARE = 0xD9, (0x01, 0xD8)  # without a length
_FRAMES = tuple(x for x in range(0xC0, 0xD0) if x not in (0xC4, 0xC8, 0xCC))
# No escaped 0xFF, restart or padding.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Ten are usual.
MOST_SCANS = 100


@dataclasses.dataclass(frozen=True)
class Jpeg:
  """A JPEG that TurboJPEG decodes well.

  Attributes:
    data: its bytes.
    height: in pixels.
    width: in pixels.
    space: colour space of the pixels, "RGB" or "GRAY".
    height_at: offset in `data` of the two bytes of the height.
    cuttable: one baseline scan in row order, which may stop early.
  """

  data: bytes
  height: int
  width: int
  space: str
  height_at: int
  cuttable: bool

  def pixels(self, shrink: int, rows: int) -> np.ndarray:
    """Decodes the image.

    Args:
      shrink: 1, 2, 4 or 8, the divisor of height and width (rounded up).
      rows: number of rows needed from the top, of the unshrunk image.

    Returns:
      uint8 [H, W, 3] or [H, W, 1], at least the rows asked for.

    Raises:
      ValueError: the data are damaged.
    """
    # The decoder stops after the number of rows in the header; entropy
    # decoding, most of its time, cannot skip what is above or beside the crop.
    # Sixteen rows are one row of blocks; colour interpolation reads the next.
    height = min(self.height, (rows // 16 + 1) * 16)
    cut = self.cuttable and shrink == 1 and height < self.height
    data: bytes | bytearray = self.data
    if cut:
      data = bytearray(data)
      data[self.height_at : self.height_at + 2] = height.to_bytes(2, "big")
    return simplejpeg.decode_jpeg(
      data,
      self.space,
      min_height=math.ceil(self.height / shrink) if shrink > 1 else 0,
      min_width=math.ceil(self.width / shrink) if shrink > 1 else 0,
      strict=not cut,  # leftover data is a recoverable error
    )


def plain(data: bytes, upright: bool) -> Jpeg | None:
  """An ordinary JPEG; None for what Pillow should decode.

  Args:
    data: bytes of any file.
    upright: leave a JPEG that needs turning to Pillow.
  """
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
      if orientation(data) != 1:
        return None
    elif marker in (*_BASELINE, *_PROGRESSIVE):
      frame = marker, at
    elif marker == _SCAN and frame:
      whole = data[at + 2] == data[frame[1] + 7]  # all channels in one scan
      return Jpeg(
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


def scans(data: bytes) -> int:
  """Number of scans of a JPEG, counted up to `MOST_SCANS` + 1.

  Each is a pass over the whole image, and may be 20 bytes long.

  Args:
    data: bytes of any file.

  Returns:
    0 for other files; 1 for a JPEG that is decoded from its first scan alone.
  """
  frame: tuple[int, int] | None = None
  found, at = 0, 2
  while data.startswith(b"\xff\xd8") and found <= MOST_SCANS:
    # As libjpeg does, which passes over whatever is not a marker.
    begun = _MARKER.search(data, at)
    if begun is None or data[begun.end() - 1] == _END:
      break
    marker, at = data[begun.end() - 1], begun.end()
    if marker in _FRAMES:
      frame = frame or (marker, at)
    elif marker == _SCAN:
      found += 1
      if frame and frame[0] in _BASELINE:
        channels = data[frame[1] + 7 : frame[1] + 8]
        if data[at + 2 : at + 3] == channels:  # all of them in one scan
          return 1
    if marker not in _BARE:
      at += int.from_bytes(data[at : at + 2], "big")
  return found


def orientation(data: bytes) -> int:
  """EXIF orientation, from 1 (upright) to 8.

  Args:
    data: bytes of a JPEG.
  """
  try:
    image = Image.open(io.BytesIO(data), formats=["JPEG"])
  except Exception:  # of its metadata
    return 1
  return metadata.orientation(image)
