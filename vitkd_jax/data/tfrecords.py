"""TFRecord files, read by index and written without TensorFlow.

A file is a sequence of: length (8 bytes, little-endian), CRC of the length (4),
the record, CRC of the record (4). It has no index: `Source` finds the records
by their lengths when it is made.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import dataclasses
import os
import struct
from typing import Any

import google_crc32c
import numpy as np
from tensorflow_datasets.core.data_sources import base

FORMAT = "tfrecord"

_HEAD, _TAIL = 12, 4  # bytes before and after a record


def checksum(data: bytes) -> bytes:
  """TFRecord's masked CRC-32C.

  Args:
    data: any.
  """
  crc = google_crc32c.value(data)
  return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write(path: str, records: Iterable[bytes]) -> None:
  """Writes a file.

  Args:
    path: of the file; local.
    records: serialized examples.
  """
  with open(path, "wb") as file:
    for record in records:
      length = len(record).to_bytes(8, "little")
      file.write(length + checksum(length) + record + checksum(record))


def places(path: str) -> Iterator[tuple[int, int]]:
  """The first byte and the length of each record; reads the lengths alone.

  Args:
    path: of a local file.

  Raises:
    OSError: the file is truncated or corrupt.
  """
  with open(path, "rb", buffering=0) as file:
    at, size, found = 0, os.fstat(file.fileno()).st_size, 0
    while at < size:
      head = os.pread(file.fileno(), _HEAD, at)
      length = int.from_bytes(head[:8], "little")
      end = at + _HEAD + length + _TAIL
      if len(head) < _HEAD or head[8:] != checksum(head[:8]) or end > size:
        raise OSError(f"{path} is truncated or corrupt after {found:,} records")
      yield at + _HEAD, length
      at, found = end, found + 1


def read(path: str, start: int, length: int) -> bytes:
  """One record.

  Args:
    path: of a local file.
    start: first byte of the record.
    length: in bytes.

  Raises:
    ValueError: the record is corrupt.
  """
  with open(path, "rb", buffering=0) as file:
    data = os.pread(file.fileno(), length + _TAIL, start)
  record = data[:length]
  if data[length:] != checksum(record):
    raise ValueError("its checksum differs")
  return record


class Records(Sequence):
  """Records of several files by index.

  Args:
    files: TFDS's read instructions: which part of which file, in order.

  Raises:
    OSError: a file is missing, truncated or corrupt.
  """

  def __init__(self, files: Sequence[Any]):
    self._paths = [os.fspath(part.filename) for part in files]
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      self._places = list(pool.map(_places_in, files))  # [n, 2] int64 each
    self._ends = np.cumsum([len(each) for each in self._places])

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, index: Any) -> Any:
    file = int(np.searchsorted(self._ends, index, side="right"))
    first = self._ends[file] - len(self._places[file])
    start, length = self._places[file][index - first].tolist()
    return read(self._paths[file], start, length)


def _places_in(part: Any) -> np.ndarray:
  found = np.array(list(places(os.fspath(part.filename))), np.int64)
  found = found.reshape(-1, 2)
  if len(found) != part.examples_in_shard:
    raise OSError(
      f"expected {part.examples_in_shard:,} records in {part.filename}, got "
      f"{len(found):,}"
    )
  return found[part.skip : part.skip + part.take]


@dataclasses.dataclass(repr=False)
class Source(base.BaseDataSource):
  """As TFDS's source of array_record files, of TFRecord files."""

  def __post_init__(self) -> None:
    files = base.file_instructions(self.dataset_info, self.split)
    self.data_source = Records(files)
