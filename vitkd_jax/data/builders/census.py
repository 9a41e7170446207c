"""Sizes and orientations of a dataset's images, noted while writing them."""

import dataclasses
from typing import Any
import warnings

from vitkd_jax.data import decode


@dataclasses.dataclass
class Census:
  """The common size of images, and how many are not upright.

  Attributes:
    size: (H, W) in pixels of all images with a readable header, as stored;
      None if there is none or sizes differ.
    mixed: sizes differ, or would differ after turning images upright.
    turned: number of images whose EXIF orientation is not upright.
  """

  size: tuple[int, int] | None = None
  mixed: bool = False
  turned: int = 0

  def add(self, data: bytes) -> None:
    """Adds an image.

    Args:
      data: bytes of its file.
    """
    found = _header(data)
    if found is None:  # the reader skips it, too
      return
    (width, height), orientation = found
    self.turned += orientation != 1
    self._take((height, width), orientation > 4 and height != width)

  def join(self, other: "Census") -> None:
    """Adds another part of the dataset.

    Args:
      other: census of that part.
    """
    self.turned += other.turned
    if other.size or other.mixed:
      self._take(other.size, other.mixed)

  def _take(self, size: tuple[int, int] | None, mixed: bool) -> None:
    self.mixed |= mixed or self.size not in (None, size)
    self.size = None if self.mixed else size

  def to_json(self) -> dict[str, Any]:
    """The argument of `from_json`."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, found: dict[str, Any] | None) -> "Census":
    """The census of a part.

    Args:
      found: result of `to_json`; None if the part had none, so its images may
        have any size.
    """
    if found is None:
      return cls(mixed=True)
    size = found["size"] and tuple(found["size"])
    return cls(size, found["mixed"], found["turned"])


def _header(data: bytes) -> tuple[tuple[int, int], int] | None:
  """(W, H) and the EXIF orientation; None for what is not an image."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      file = decode.File(data)
    except decode.BadRecordError:
      return None
    return (file.width, file.height), file.orientation()
