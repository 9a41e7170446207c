"""One image of a source: where its bytes lie, and whether they are an image."""

from collections.abc import Sequence
import dataclasses
import errno
import os
import stat

# OpenCV reads these. What a file is, its first bytes tell.
_MAGIC = (
  (0, b"\xff\xd8\xff"),  # JPEG
  (0, b"\x89PNG\r\n\x1a\n"),
  (8, b"WEBP"),
  (0, b"BM"),
  (0, b"II*\0"),  # TIFF
  (0, b"MM\0*"),
)
HEAD = 12  # bytes that `problem` looks at

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """One image of a split.

  Attributes:
    name: unique in its split, as "class/file.jpg"; its hash is its place.
    path: file that holds the encoded image.
    offset: first byte of the image in that file.
    size: bytes of the image.
    label: index of its class.
  """

  name: str
  path: str
  offset: int
  size: int
  label: int


@dataclasses.dataclass(frozen=True, slots=True)
class Bad:
  """A file that cannot become an example: its name, and what ails it."""

  name: str
  reason: str


def read(example: Example) -> bytes:
  """The encoded image.

  Raises:
    OSError: the file cannot be read, or is shorter than it was.
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
  """Size of a file and its first bytes.

  Raises:
    OSError: it cannot be read, or is a pipe or a device.
  """
  # To open a pipe waits for its writer, who may never come.
  at_once = lambda path, flags: os.open(path, flags | os.O_NONBLOCK)  # noqa: E731
  with open(path, "rb", opener=at_once) as file:
    about = os.fstat(file.fileno())
    if not stat.S_ISREG(about.st_mode):
      raise OSError(errno.EINVAL, "it is no ordinary file")
    return about.st_size, file.read(HEAD)


def problem(size: int, first: bytes) -> str | None:
  """What is wrong with an image of `size` bytes that begins with `first`."""
  if not size:
    return "is empty"
  if any(first[at : at + len(magic)] == magic for at, magic in _MAGIC):
    return None
  return f"is no JPEG, PNG, WebP, BMP or TIFF (begins with {first[:4]!r})"


def refusal(bad: Sequence[Bad], total: int) -> str:
  """The sentence that names the first ten bad files."""
  named = "; ".join(f"{b.name} {b.reason}" for b in bad[:10])
  more = f"; and {len(bad) - 10:,} more" if len(bad) > 10 else ""
  return (
    f"{len(bad):,} of {total:,} images cannot be used: {named}{more}. Repair"
    " them, or leave them out with --skip-bad."
  )
