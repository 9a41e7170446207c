"""What is noted of a data set's images while their bytes pass by."""

import dataclasses
from typing import Any
import warnings

from vitkd_jax.data import decode


@dataclasses.dataclass
class Census:
  """The common size of images, and how many of them are not upright.

  Attributes:
    size: (H, W) in pixels of all images with a readable header, as stored;
      None where there is none, or where they differ.
    mixed: sizes differ, be it after images are turned upright.
    turned: images whose EXIF orientation is not the upright one.
  """

  size: tuple[int, int] | None = None
  mixed: bool = False
  turned: int = 0

  def add(self, data: bytes) -> None:
    """Takes in one encoded image."""
    found = _header(data)
    if found is None:  # the reader leaves it out as well
      return
    (width, height), orientation = found
    self.turned += orientation != 1
    self._take((height, width), orientation > 4 and height != width)

  def join(self, other: "Census") -> None:
    """Takes in another part of the data set."""
    self.turned += other.turned
    if other.size or other.mixed:
      self._take(other.size, other.mixed)

  def _take(self, size, mixed):
    self.mixed |= mixed or self.size not in (None, size)
    self.size = None if self.mixed else size

  def to_json(self) -> dict[str, Any]:
    """As `from_json` takes it."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, found: dict[str, Any] | None) -> "Census":
    """A part's census; of a part that none was made of, nothing is known."""
    if found is None:
      return cls(mixed=True)
    size = found["size"] and tuple(found["size"])
    return cls(size, found["mixed"], found["turned"])


def _header(data):
  """(W, H) and EXIF's orientation, or None for what is no image."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      file = decode.File(data)
    except decode.BadRecordError:
      return None
    return (file.width, file.height), file.orientation()
