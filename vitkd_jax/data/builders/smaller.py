"""Images made smaller once, so that a core decodes several times as many."""

import dataclasses
import io

import numpy as np
from PIL import Image

from vitkd_jax import check
from vitkd_jax.data import decode, metadata


@dataclasses.dataclass(frozen=True)
class Smaller:
  """Encodes large images anew, as JPEGs of a given short side.

  Attributes:
    short_side: in pixels, at least 32.
    quality: of the JPEGs, from 1 to 100.

  Raises:
    ValueError: one is out of range.
  """

  short_side: int
  quality: int = 95

  def __post_init__(self) -> None:
    check.integers(32, **{"--short-side": self.short_side})
    check.integers(1, **{"--quality": self.quality})
    if self.quality > 100:
      raise ValueError(f"expected --quality <= 100, got {self.quality}")

  def __call__(self, data: bytes) -> bytes:
    """The image of an encoded one; the same bytes if it is no larger, or bad.

    The colours have half the resolution (4:2:0), as in most photographs; the
    EXIF orientation is kept, other metadata are not.

    Args:
      data: bytes of an image file.
    """
    try:
      file = decode.File(data)
      scale = self.short_side / min(file.height, file.width)
      if scale >= 1:
        return data
      pixels, orientation = file.pixels(), file.orientation()
    except decode.BadRecordError:
      return data  # training replaces it, and says so
    size = [max(1, round(side * scale)) for side in (file.width, file.height)]
    image = Image.fromarray(
      np.squeeze(pixels, 2) if file.channels == 1 else pixels
    )
    image = image.resize(size, Image.Resampling.LANCZOS)
    exif = Image.Exif()
    if orientation != 1:
      exif[metadata.ORIENTATION] = orientation
    encoded = io.BytesIO()
    image.save(
      encoded, "JPEG", quality=self.quality, subsampling="4:2:0", exif=exif
    )
    return encoded.getvalue()
