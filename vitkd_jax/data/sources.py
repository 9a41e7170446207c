"""Examples by index: of TFDS's records, or of pixels in memory."""

from collections.abc import Callable
from typing import Any

from etils import epath
import numpy as np

from vitkd_jax.data import decode

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
  """

  def __init__(self, records, files, num_classes, label_sets=False):
    self._records, self._files = records, files
    self._num_classes, self._label_sets = num_classes, label_sets

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    return self.read(index, lambda data: decode.to_rgb(decode.decode(data)))

  def read(
    self, index: int, crop: Callable[[bytes], np.ndarray]
  ) -> dict[str, Any]:
    """Example whose image is what `crop` makes of the file's bytes."""
    record = self._record(index)
    try:
      image = crop(record["image"])
    except decode.BadRecordError as error:
      place = self._place(index, record)
      raise decode.BadRecordError(f"{place}: {error}") from error
    example = {"image": image, "label": np.int32(record["label"])}
    if self._label_sets:
      example["labels"] = np.zeros(self._num_classes, bool)
      example["labels"][record[LABEL_SET]] = True
    return example

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


class Arrays:
  """Holds decoded pixels: images uint8 [n, H, W, 1 or 3], labels int32 [n]."""

  def __init__(self, images, labels):
    self._images, self._labels = images, labels

  def __len__(self):
    return len(self._labels)

  def __getitem__(self, index):
    image, label = self._images[index], self._labels[index]
    return {"image": decode.to_rgb(image), "label": label}


def cached(name: str, records: Records) -> Arrays:
  """The decoded images of `records`, all of one size, in memory.

  Raises:
    ValueError: they differ in size.
  """
  images, labels = None, np.empty(len(records), np.int32)
  for i in range(len(records)):
    data, labels[i] = records.encoded(i)
    image = decode.decode(data)
    if images is None:
      images = np.empty((len(records), *image.shape), np.uint8)
    if image.shape != images.shape[1:]:
      raise ValueError(
        f"cache=True needs images of one size, but {name} holds"
        f" {images.shape[1:]} and {image.shape}; set cache=False."
      )
    images[i] = image
  return Arrays(images, labels)
