"""One image of a source: where its bytes are, and whether they are an image."""

from collections.abc import Sequence
import dataclasses
import errno
import os
import stat

from PIL import features

# Offset, magic bytes and, if Pillow needs a library for the format, its name.
_MAGIC = (
  (0, b"\xff\xd8\xff", None),  # JPEG
  (0, b"\x89PNG\r\n\x1a\n", None),
  (8, b"WEBP", "webp"),
  (0, b"BM", None),
  (0, b"II*\0", None),  # TIFF
  (0, b"MM\0*", None),
  (0, b"GIF87a", None),
  (0, b"GIF89a", None),
  (4, b"ftypavif", "avif"),
  (4, b"ftypavis", "avif"),
  (0, b"\0\0\0\x0cjP  \r\n\x87\n", "jpg_2000"),
  (0, b"\xff\x4f\xff\x51", "jpg_2000"),
  *((0, b"P%d" % n, None) for n in (2, 3, 5, 6)),  # PGM and PPM
)
HEAD = 18  # bytes that `problem` reads

SUFFIXES = (
  *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
  *(".gif", ".avif", ".jp2", ".ppm", ".pgm", ".tga"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """One image of a split.

  Attributes:
    name: unique in its split, such as "class/file.jpg"; its hash decides the
      order of the records.
    path: file that holds the encoded image.
    offset: of the image's first byte in that file.
    size: of the encoded image in bytes.
    label: index of its class.
  """

  name: str
  path: str
  offset: int
  size: int
  label: int


@dataclasses.dataclass(frozen=True, slots=True)
class Bad:
  """A file that cannot become an example: its name, and the reason."""

  name: str
  reason: str


def read(example: Example) -> bytes:
  """Reads the encoded image.

  Args:
    example: to read.

  Raises:
    OSError: the file cannot be read, or has become shorter.
  """
  with open(example.path, "rb") as file:
    file.seek(example.offset)
    data = file.read(example.size)
  if len(data) != example.size:
    raise OSError(
      f"{example.path} changed while it was read: {example.name} has"
      f" {len(data):,} of {example.size:,} bytes."
    )
  return data


def head(path: str) -> tuple[int, bytes]:
  """Reads the size of a file and its first bytes.

  Args:
    path: of the file.

  Returns:
    The size in bytes, and at most `HEAD` bytes.

  Raises:
    OSError: it cannot be read, or is a pipe or a device.
  """
  # Otherwise opening a pipe would wait for a writer.
  at_once = lambda path, flags: os.open(path, flags | os.O_NONBLOCK)  # noqa: E731
  with open(path, "rb", opener=at_once) as file:
    about = os.fstat(file.fileno())
    if not stat.S_ISREG(about.st_mode):
      raise OSError(errno.EINVAL, "expected a regular file")
    return about.st_size, file.read(HEAD)


def problem(name: str, size: int, first: bytes) -> str | None:
  """What is wrong with an image file.

  Args:
    name: of the file.
    size: of the file in bytes.
    first: its first `HEAD` bytes, or all of a shorter file.

  Returns:
    The rest of a sentence that begins with the name; None if all is well.
  """
  try:
    name.encode()
  except UnicodeEncodeError:
    return "has a name that is not UTF-8"
  if not size:
    return "is empty"
  for at, magic, needed in _MAGIC:
    if first[at : at + len(magic)] == magic:
      if needed and not features.check(needed):
        return f"needs a Pillow with {needed}, which this one lacks"
      return None
  if name.lower().endswith(".tga") and _may_be_tga(first):
    return None
  return (
    "is not JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000, PPM, PGM or TGA"
    f" (begins with {first[:4]!r})"
  )


def _may_be_tga(first: bytes) -> bool:
  """Whether the header could be TGA's, which has no magic bytes."""
  return (
    len(first) >= HEAD
    and first[1] in (0, 1)  # colour map
    and first[2] in (1, 2, 3, 9, 10, 11)  # indexed, colour, grey; run-length
    and first[16] in (8, 15, 16, 24, 32)  # bits per pixel
  )


def refusal(bad: Sequence[Bad], total: int) -> str:
  """The message that names the first ten bad files.

  Args:
    bad: all bad files.
    total: number of files, good ones included.
  """
  named = "; ".join(f"{b.name} {b.reason}" for b in bad[:10])
  more = f"; and {len(bad) - 10:,} more" if len(bad) > 10 else ""
  return (
    f"{len(bad):,} of {total:,} images cannot be used: {named}{more}; repair"
    " them, or skip them with --skip-bad."
  )
