"""Examples by index: from TFDS's records, or from pixels in memory."""

from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
import os
from typing import Any

from etils import epath
import numpy as np

from vitkd_jax.data import crop as crops
from vitkd_jax.data import decode, memory

Crop = Callable[[decode.File | decode.Pixels], np.ndarray]

# Largest share of the available memory that cached images may take.
_MOST_OF_MEMORY = 0.75
_SAMPLE = 256  # images whose headers give an estimate of the total size
_BLOCK = 4096  # images handed to the threads at a time

# The feature that lists all correct classes: ImageNet ReaL's, arXiv:2006.07159.
LABEL_SET = "real_label"


class Records:
  """Decodes a record on every access.

  Args:
    records: TFDS's random-access records with encoded images.
    files: TFDS's read instructions: which part of which file, in order.
    num_classes: number of classes C.
    label_sets: examples have "labels", bool [C], too.
    upright: turn images by their EXIF orientation; see `decode.File`.
  """

  def __init__(
    self,
    records: Sequence[Mapping[str, Any]],
    files: Sequence[Any],
    num_classes: int,
    label_sets: bool = False,
    upright: bool = False,
  ):
    self._records, self._files = records, files
    self._num_classes, self._label_sets = num_classes, label_sets
    self._upright = upright

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.read(index, lambda file: decode.to_rgb(file.pixels()))

  def read(self, index: int, crop: Crop) -> dict[str, Any]:
    """One example, with the image that `crop` returns.

    Args:
      index: of the record, >= 0.
      crop: maps the image file to uint8 [H, W, 3].

    Returns:
      {"image": uint8 [H, W, 3], "label": int32 scalar}, and "labels", bool [C],
      with `label_sets`.

    Raises:
      decode.BadRecordError: the record is bad; the message names it.
    """
    record = self._record(index)
    try:
      image = crop(self.open(record["image"]))
    except decode.BadRecordError as error:
      place = self._place(index, record)
      raise decode.BadRecordError(f"{place}: {error}") from error
    example = {"image": image, "label": np.int32(record["label"])}
    if self._label_sets:
      labels = np.zeros(self._num_classes, bool)
      labels[record[LABEL_SET]] = True
      example["labels"] = labels
    return example

  def open(self, data: bytes) -> decode.File:
    """An image file of these records.

    Args:
      data: the file's bytes.
    """
    return decode.File(data, self._upright)

  def encoded(self, index: int) -> tuple[bytes, np.int32]:
    """The file's bytes, and the label.

    Args:
      index: of the record, >= 0.

    Raises:
      decode.BadRecordError: the record is bad; the message names it.
    """
    record = self._record(index)
    return record["image"], np.int32(record["label"])

  def _record(self, index: int) -> Mapping[str, Any]:
    """The fields of a record; checks that it has bytes and a valid label."""
    index = int(index)
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)}")
    try:
      record = self._records[index]
    except Exception as error:  # ArrayRecord's, protobuf's, TFDS's
      reason = str(error).strip().partition("\n")[0]
      place = self._place(index)
      raise decode.BadRecordError(
        f"{place}: {reason or type(error).__name__}"
      ) from error
    label: Any = record.get("label")
    image = record.get("image")
    if np.shape(label):
      label = None
    labels = list(record[LABEL_SET]) if self._label_sets else []
    for each in [label, *labels]:
      if each not in range(self._num_classes):
        raise decode.BadRecordError(
          f"{self._place(index, record)}: expected a label from 0 to"
          f" {self._num_classes - 1}, got {each}"
        )
    if not isinstance(image, bytes):
      raise decode.BadRecordError(
        f"{self._place(index, record)}: expected encoded bytes as 'image', got"
        f" {type(image).__name__}"
      )
    return record

  def _place(self, index: int, record: Mapping[str, Any] | None = None) -> str:
    """Describes where a record is."""
    words, at = f"record {index}", index
    for part in self._files:
      if at < part.take:
        name = epath.Path(part.filename).name
        words += f", number {part.skip + at} of {name}"
        break
      at -= part.take
    for key in ("file_name", "filename"):
      if record and isinstance(record.get(key), bytes):
        words += f", {record[key].decode(errors='replace')}"
    return words


class Cached:
  """Records that are decoded once and kept in memory.

  Pixels and errors are those of `records`: images that a crop may decode shrunk
  stay encoded, and bad records are read again.

  Args:
    records: to keep; several threads read them now.
    crop_size: side in pixels that images are cropped to; 0 for whole images.
  """

  def __init__(self, records: Records, crop_size: int = 0):
    self._records, self._crop_size = records, crop_size
    # (pixels or encoded bytes, label); None for a bad record.
    self._kept: list[tuple[np.ndarray | bytes, np.int32] | None] = []
    indices = range(len(records))
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for at in indices[::_BLOCK]:
        self._kept += pool.map(self._take, indices[at : at + _BLOCK])

  def __len__(self) -> int:
    return len(self._kept)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.read(index, lambda file: decode.to_rgb(file.pixels()))

  def read(self, index: int, crop: Crop) -> dict[str, Any]:
    """As `Records.read`, without "labels".

    Args:
      index: of the record, >= 0.
      crop: maps the image to uint8 [H, W, 3].

    Returns:
      {"image": uint8 [H, W, 3], "label": int32 scalar}.

    Raises:
      decode.BadRecordError: the record is bad; the message names it.
    """
    found = self._kept[index]
    if found is None:
      return self._records.read(index, crop)
    kept, label = found
    if isinstance(kept, bytes):
      return {"image": crop(self._records.open(kept)), "label": label}
    return {"image": crop(decode.Pixels(kept)), "label": label}

  def _take(self, index: int) -> tuple[np.ndarray | bytes, np.int32] | None:
    try:
      data, label = self._records.encoded(index)
      file = self._records.open(data)
      if _stays_encoded(file, self._crop_size):
        return data, label
      return file.pixels(), label
    except decode.BadRecordError:  # `read` raises it again
      return None


def _stays_encoded(file: decode.File, crop_size: int) -> bool:
  return crop_size > 0 and crops.may_shrink(file, crop_size)


def cached(name: str, records: Records, crop_size: int = 0) -> Cached:
  """Keeps `records` in memory, if they fit; see `Cached`.

  Args:
    name: of the dataset, for the message.
    records: to keep.
    crop_size: side in pixels that images are cropped to; 0 for whole images.

  Raises:
    ValueError: they would not fit, estimated from a sample of headers.
  """
  sizes = []
  number = len(records)
  for i in range(0, number, max(1, number // _SAMPLE)):
    try:
      data, _ = records.encoded(i)
      file = records.open(data)
    except decode.BadRecordError:
      continue
    if _stays_encoded(file, crop_size):
      sizes.append(len(data))
    else:
      sizes.append(file.height * file.width * file.channels)
  needed = number * float(np.mean(sizes)) if sizes else 0
  free = memory.available()
  if free is not None and needed > _MOST_OF_MEMORY * free:
    raise ValueError(
      f"expected cache=True to need at most {_MOST_OF_MEMORY:.0%} of the"
      f" {free / 1e9:.1f} GB of available memory, got about"
      f" {needed / 1e9:.1f} GB of images of {name}; set cache=False"
    )
  return Cached(records, crop_size)
