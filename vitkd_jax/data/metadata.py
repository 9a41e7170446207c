"""Host side: the metadata of image files.

Nothing here decides whether an image is valid: unreadable metadata are ignored.
"""

from collections.abc import Iterator
import struct
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

ORIENTATION = 0x0112  # EXIF's tag, and TIFF's
_BITS, _MOST, _MOST_OF_SAMPLES = 258, 281, 341  # TIFF's tags
# Metadata that Pillow reads when it loads or turns an image.
_KEPT = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")

_SCAN = 0xDA  # JPEG's marker
_PNG = b"\x89PNG\r\n\x1a\n"


def orientation(image: Image.Image) -> int:
  """EXIF orientation of an opened image.

  Args:
    image: opened; its pixels are not loaded.

  Returns:
    1 (upright) to 8; from 5 on, height and width swap.
  """
  try:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
      value = image.tag_v2.get(ORIENTATION, 1)
    else:
      value = image.getexif().get(ORIENTATION, 1)
  except Exception:  # Pillow raises many types for damaged EXIF
    return 1
  return value if isinstance(value, int) and value in range(1, 9) else 1


def forget(image: Image.Image) -> None:
  """Keeps Pillow from reading an opened image's metadata again.

  A TIFF keeps its orientation: Pillow reports its turned size when it opens it
  and always turns it when it loads it.

  Args:
    image: opened; changed in place.
  """
  for name in _KEPT:
    image.info.pop(name, None)
  exif = Image.Exif()
  if isinstance(image, TiffImagePlugin.TiffImageFile):
    exif[ORIENTATION] = image.tag_v2.get(ORIENTATION, 1)
  # Pillow has no option for it, so this image shadows the method.
  image.getexif = lambda: exif  # type: ignore[method-assign]


def stripped(data: bytes) -> bytes | None:
  """Removes the metadata of a JPEG, PNG or WebP.

  Whatever Pillow cannot read of the result is damage.

  Args:
    data: the file's bytes.

  Returns:
    The file without metadata; None for other formats and damaged files.
  """
  try:
    if data.startswith(b"\xff\xd8"):
      return _jpeg(data)
    if data.startswith(_PNG):
      return _PNG + b"".join(
        data[at - 8 : end + 4]
        for name, at, end in png_chunks(data)
        # Critical chunks begin with a capital letter.
        if name[:1].isupper() or name == b"tRNS"
      )
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
      return _webp(data)
  except (struct.error, IndexError):
    pass
  return None


def segments(data: bytes) -> Iterator[tuple[int, int]]:
  """Finds the segments of a JPEG, up to the first scan.

  Args:
    data: the file's bytes.

  Yields:
    The marker, and the offset of the segment's length.
  """
  at = 2
  while at + 4 <= len(data) and data[at] == 0xFF:
    marker = data[at + 1]
    if marker == 0xFF:  # padding
      at += 1
      continue
    yield marker, at + 2
    if marker == _SCAN:
      return
    at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _jpeg(data: bytes) -> bytes | None:
  parts = [data[:2]]
  for marker, at in segments(data):
    end = at + int.from_bytes(data[at : at + 2], "big")
    if marker == _SCAN:
      return b"".join(parts) + data[at - 2 :]
    # Keep Adobe's segment, APP14, which states the colour space.
    if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE:
      parts.append(data[at - 2 : end])
  return None


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
  """Finds the chunks of a PNG.

  Args:
    data: the file's bytes.

  Yields:
    The chunk's name, and the offsets of its content's start and end.
  """
  at = len(_PNG)
  while at + 8 <= len(data):
    (size,) = struct.unpack_from(">I", data, at)
    yield data[at + 4 : at + 8], at + 8, at + 8 + size
    at += size + 12


def _webp(data: bytes) -> bytes:
  parts: list[bytes] = []
  at = 12
  while at + 8 <= len(data):
    name, size = struct.unpack_from("<4sI", data, at)
    end = at + 8 + size + size % 2
    part = data[at:end]
    if name == b"VP8X":  # its flags announce the other chunks
      part = part[:8] + bytes([part[8] & ~0x2C]) + part[9:]
    if name not in (b"EXIF", b"XMP ", b"ICCP"):
      parts.append(part)
    at = end
  body = b"WEBP" + b"".join(parts)
  return b"RIFF" + struct.pack("<I", len(body)) + body


def depth(image: Image.Image, data: bytes, values: np.ndarray) -> int:
  """Number of significant bits that a grey image's file declares.

  A camera's 10 or 12 bits in 16 look nearly black unless they are scaled. TIFF
  declares them by BitsPerSample, or by a maximum sample value of 2^n - 1. PNG
  does by sBIT, but its samples should already be scaled to 16 bits, as Pillow
  scales those of PPM and JPEG 2000; only samples that cannot have been scaled
  count as narrow.

  Args:
    image: opened; its format and tags are read.
    data: the file's bytes.
    values: its samples, unsigned integers of up to 16 bits.

  Returns:
    8 to 16; 16 if the file declares nothing, or less than its samples need.
  """
  try:
    bits = _stated(image, data, values)
  except Exception:  # tags of any type
    return 16
  return bits if 8 <= bits < 16 and values.max() < 2**bits else 16


def _stated(image: Image.Image, data: bytes, values: np.ndarray) -> Any:
  if isinstance(image, TiffImagePlugin.TiffImageFile):
    (bits,) = image.tag_v2.get(_BITS, (16,))
    most = image.tag_v2.get(_MOST_OF_SAMPLES) or image.tag_v2.get(_MOST)
    if bits == 16 and most:
      most = int(np.max(most)) + 1
      bits = most.bit_length() - 1 if most.bit_count() == 1 else 16
    return bits
  if image.format == "PNG":
    for name, at, _ in png_chunks(data):
      if name == b"sBIT":
        bits = data[at]
        low = values & (2 ** (16 - bits) - 1)
        scaled = not low.any() or (low == values >> bits).all()
        return 16 if scaled else bits
      if name == b"IDAT":
        break
  return 16
