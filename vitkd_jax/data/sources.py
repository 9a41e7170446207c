"""Examples by index: of TFDS's records, or of pixels in memory."""

from collections.abc import Callable
from concurrent import futures
import os
from typing import Any

from etils import epath
import numpy as np

from vitkd_jax.data import crop as crops
from vitkd_jax.data import decode, memory

Crop = Callable[[decode.File | decode.Pixels], np.ndarray]

# Of the memory that is available, as much may be filled with images.
_MOST_OF_MEMORY = 0.75
_SAMPLE = 256  # images whose headers tell the size of all
_BLOCK = 4096  # images that threads are handed at once

# The feature of a record that lists every class which is right: ImageNet
# ReaL's, arXiv:2006.07159.
LABEL_SET = "real_label"


class Records:
  """Decodes a record each time it is asked for.

  Args:
    records: of TFDS, with encoded images.
    files: TFDS's instructions: which part of which file, in order.
    num_classes: labels are below it.
    label_sets: examples have "labels", too.
    upright: turn images as EXIF says, see `decode.File`.
  """

  def __init__(
    self, records, files, num_classes, label_sets=False, upright=False
  ):
    self._records, self._files = records, files
    self._num_classes, self._label_sets = num_classes, label_sets
    self._upright = upright

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    return self.read(index, lambda file: decode.to_rgb(file.pixels()))

  def read(self, index: int, crop: Crop) -> dict[str, Any]:
    """Example whose image is what `crop` makes of the file."""
    record = self._record(index)
    try:
      image = crop(self.open(record["image"]))
    except decode.BadRecordError as error:
      place = self._place(index, record)
      raise decode.BadRecordError(f"{place}: {error}") from error
    example = {"image": image, "label": np.int32(record["label"])}
    if self._label_sets:
      example["labels"] = np.zeros(self._num_classes, bool)
      example["labels"][record[LABEL_SET]] = True
    return example

  def open(self, data: bytes) -> decode.File:
    """An image file of these records."""
    return decode.File(data, self._upright)

  def encoded(self, index: int) -> tuple[bytes, np.int32]:
    """The file's bytes, and the label."""
    record = self._record(index)
    return record["image"], np.int32(record["label"])

  def _record(self, index):
    """The fields of a record: its image is bytes, its label a class."""
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
    label, image = record.get("label"), record.get("image")
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
        f"{self._place(index, record)}: it has no image"
      )
    return record

  def _place(self, index, record=None):
    """Where a record is, in words."""
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
  """What `records` hold, decoded once and kept in memory.

  Pixels and faults are those of `records`: of an image that a crop may have
  decoded shrunk, the file's bytes are kept, and of a bad one nothing.

  Args:
    records: what is read, by several threads.
    crop_size: pixels of a side that images are cropped to; 0 for whole ones.
  """

  def __init__(self, records: Records, crop_size: int = 0):
    self._records, self._crop_size = records, crop_size
    self._kept = []
    indices = range(len(records))
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for at in indices[::_BLOCK]:
        self._kept += pool.map(self._take, indices[at : at + _BLOCK])

  def __len__(self):
    return len(self._kept)

  def __getitem__(self, index):
    return self.read(index, lambda file: decode.to_rgb(file.pixels()))

  def read(self, index: int, crop: Crop) -> dict[str, Any]:
    """As `Records.read`."""
    if self._kept[index] is None:
      return self._records.read(index, crop)
    kept, label = self._kept[index]
    if isinstance(kept, bytes):
      return {"image": crop(self._records.open(kept)), "label": label}
    return {"image": crop(decode.Pixels(kept)), "label": label}

  def _take(self, index):
    try:
      data, label = self._records.encoded(index)
      file = self._records.open(data)
      if _stays_encoded(file, self._crop_size):
        return data, label
      return file.pixels(), label
    except decode.BadRecordError:  # `read` says it again, and why
      return None


def _stays_encoded(file, crop_size):
  return crop_size > 0 and crops.may_shrink(file, crop_size)


def cached(name: str, records: Records, crop_size: int = 0) -> Cached:
  """`records` in memory; see `Cached`.

  Raises:
    ValueError: they would not fit, by the headers of some of them.
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
      f"cache=True would keep some {needed / 1e9:.1f} GB of decoded images of"
      f" {name}, but {free / 1e9:.1f} GB of memory are available, of which at"
      f" most {_MOST_OF_MEMORY:.0%} are taken; set cache=False"
    )
  return Cached(records, crop_size)
