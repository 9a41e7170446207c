"""Host side: what image files say beside their pixels.

Nothing here decides whether an image is good: metadata that cannot be read are
as if they were not there.
"""

from collections.abc import Iterator
import struct

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # EXIF's tag, and TIFF's
_BITS, _MOST, _MOST_OF_SAMPLES = 258, 281, 341  # TIFF's tags
# What Pillow keeps of metadata and looks into when it loads or turns an image.
_KEPT = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")

_SCAN = 0xDA  # JPEG's marker
_PNG = b"\x89PNG\r\n\x1a\n"


def orientation(image: Image.Image) -> int:
  """EXIF's of an opened image: 1 is upright; from 5 on the sides change."""
  try:
    if image.format == "TIFF":
      value = image.tag_v2.get(ORIENTATION, 1)
    else:
      value = image.getexif().get(ORIENTATION, 1)
  except Exception:  # of what is no EXIF, Pillow raises many types
    return 1
  return value if isinstance(value, int) and value in range(1, 9) else 1


def forget(image: Image.Image) -> None:
  """Keeps Pillow from looking into an opened image's metadata again.

  It turns a TIFF when it loads it, whatever is asked for, and sizes it so when
  it opens it; that is left as it is.
  """
  for name in _KEPT:
    image.info.pop(name, None)
  exif = Image.Exif()
  if image.format == "TIFF":
    exif[ORIENTATION] = image.tag_v2.get(ORIENTATION, 1)
  image.getexif = lambda: exif


def stripped(data: bytes) -> bytes | None:
  """The file without what is beside its pixels; None for other formats.

  Of JPEG, PNG and WebP: what else Pillow cannot read of them is damage.
  """
  try:
    if data.startswith(b"\xff\xd8"):
      return _jpeg(data)
    if data.startswith(_PNG):
      return _PNG + b"".join(
        data[at - 8 : end + 4]
        for name, at, end in png_chunks(data)
        # Critical ones have a capital letter.
        if name[:1].isupper() or name == b"tRNS"
      )
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
      return _webp(data)
  except (struct.error, IndexError):
    pass
  return None


def segments(data: bytes) -> Iterator[tuple[int, int]]:
  """A JPEG's (marker, place of the segment's length), up to the first scan."""
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


def _jpeg(data):
  parts = [data[:2]]
  for marker, at in segments(data):
    end = at + int.from_bytes(data[at : at + 2], "big")
    if marker == _SCAN:
      return b"".join(parts) + data[at - 2 :]
    # Adobe's segment, the 14th, says which colours the channels are.
    if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE:
      parts.append(data[at - 2 : end])
  return None


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
  """A PNG's (name, start, end) of each chunk's content."""
  at = len(_PNG)
  while at + 8 <= len(data):
    (size,) = struct.unpack_from(">I", data, at)
    yield data[at + 4 : at + 8], at + 8, at + 8 + size
    at += size + 12


def _webp(data):
  parts, at = [], 12
  while at + 8 <= len(data):
    name, size = struct.unpack_from("<4sI", data, at)
    end = at + 8 + size + size % 2
    part = data[at:end]
    if name == b"VP8X":  # whose flags announce the other chunks
      part = part[:8] + bytes([part[8] & ~0x2C]) + part[9:]
    if name not in (b"EXIF", b"XMP ", b"ICCP"):
      parts.append(part)
    at = end
  body = b"WEBP" + b"".join(parts)
  return b"RIFF" + struct.pack("<I", len(body)) + body


def depth(image: Image.Image, data: bytes, values: np.ndarray) -> int:
  """Bits of a grey image's samples, as far as its file says: at most 16.

  A camera's 10 or 12 bits in 16 are nearly black unless they are scaled by
  this. TIFF states them by BitsPerSample, or by a greatest sample value of a
  whole number of bits. PNG's sBIT does, too, but its samples ought to be
  scaled to 16 bits already, as those of PPM and JPEG 2000 come from Pillow:
  only such count as narrow that cannot have been.

  Args:
    image: opened; its format and tags are read.
    data: the file's bytes.
    values: its samples, unsigned whole numbers of up to 16 bits.
  """
  try:
    bits = _stated(image, data, values)
  except Exception:  # tags of any type
    return 16
  return bits if 8 <= bits < 16 and values.max() < 2**bits else 16


def _stated(image, data, values):
  if image.format == "TIFF":
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
