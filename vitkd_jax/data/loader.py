"""Batches of a source in an order that depends only on seed and step.

The order depends neither on the number of processes nor on the number of
workers, so the step is the whole state of the input: a run that restarts at
step n asks for `start_step=n`. An example's random crop is a function of the
seed, the epoch, the example's index and its repeat.

A record that cannot be read is replaced by the next good one (index + 1, and
so on), whichever process makes the batch. Bad records are counted and logged,
and too many of them end the run.
"""

from collections.abc import Callable, Sequence
import functools
import os
import sys
from typing import Any, Protocol

from absl import flags
import grain
import numpy as np

from vitkd_jax import check
from vitkd_jax.data import crop as crops
from vitkd_jax.data import datasets, decode, faults, order, workers

Crop = Callable[[crops.Source, np.random.Generator], np.ndarray]
Row = dict[str, Any]  # of one example, or of a batch

InputError = faults.InputError


class Batches(Protocol):
  """An iterator over {name: array of rows} that holds threads or processes."""

  def __iter__(self) -> "Batches":
    """Itself."""
    ...

  def __next__(self) -> dict[str, np.ndarray]:
    """The next batch."""
    ...

  def close(self) -> None:
    """Stops threads and worker processes."""
    ...


def train_batches(
  source: datasets.Source,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  crop: Crop | None = None,
  repeats: int = 1,
  max_bad_share: float = 0.001,
) -> Batches:
  """This process's rows of the global batches start_step, start_step + 1, ...

  Every epoch is a new permutation of the source. Epochs are concatenated: a
  batch may span two of them, and no example is dropped. With b = batch_size /
  process_count, the process gets rows process_index * b to (process_index + 1)
  * b - 1 of the global batch; concatenated, the processes' rows are the batch
  that a single process would get.

  Args:
    source: dataset to read; see `datasets.load`.
    batch_size: number of examples in the global batch, a multiple of
      process_count.
    seed: of the order and the crops, >= 0.
    start_step: index of the first global batch, >= 0.
    process_index: of this process, 0 <= process_index < process_count.
    process_count: number of processes that share a batch, >= 1.
    num_workers: worker processes that read and decode; 0 uses threads.
    crop: maps a file and a generator to an image, such as `crop.RandomCrop`;
      None reads the source's whole images.
    repeats: consecutive copies of each example, each with its own crop
      ("repeated augmentation", arXiv:1901.09335, as in DeiT's recipe), >= 1.
      An epoch keeps its number of rows, so it holds only the first
      ceil(n / repeats) examples of its permutation of n, the last of them
      possibly with fewer copies.
    max_bad_share: allowed share of bad records among those that this process
      read since it started, in [0, 1]. Up to ten distinct bad records are
      always allowed, however often they return.

  Returns:
    An endless iterator of {"image": uint8 [b, H, W, 3], "label": int32 [b]}.
    Its `close()` ends threads and workers. Its `next` raises InputError when
    there are too many bad records or a worker process died.

  Raises:
    ValueError: an argument is out of range.
  """
  local = _local_size(source, batch_size, process_index, process_count)
  check.integers(0, seed=seed, start_step=start_step, num_workers=num_workers)
  check.integers(1, repeats=repeats)
  reader = _Reader(source, crop)
  rows = grain.MapDataset.source(_TrainRows(reader, seed, repeats))
  batches = rows.batch(local, drop_remainder=True)
  # Batches before processes: [h::H] on rows would interleave them, and the
  # global batch would depend on the number of processes.
  batches = batches[process_index::process_count][start_step:]
  iterator = batches.to_iter_dataset(_read_options(crop, num_workers))
  if num_workers:
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
      flags.FLAGS.mark_as_parsed()
    iterator = iterator.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=num_workers),
      worker_init_fn=workers.start,
    )
  return _Checked(iter(iterator), reader, max_bad_share)


def eval_batches(
  source: datasets.Source,
  *,
  batch_size: int,
  start: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  crop: Crop | None = None,
  max_bad_share: float = 0.001,
) -> Batches:
  """This process's rows of global batches that hold every example once.

  Examples keep the source's order. The last batch is padded with black images
  of weight 0, so every process gets the same number of batches. A record that
  cannot be read also becomes a black image of weight 0.

  Args:
    source: dataset to read; see `datasets.load`.
    batch_size: number of examples in the global batch, a multiple of
      process_count.
    start: index of the first global batch, >= 0.
    process_index: of this process, 0 <= process_index < process_count.
    process_count: number of processes that share a batch, >= 1.
    crop: as for `train_batches`, such as `crop.CentreCrop`.
    max_bad_share: allowed share of bad records; see `train_batches`.

  Returns:
    An iterator of batches `start`, ... ceil(len(source) / batch_size) - 1:
    {"image": uint8 [b, H, W, 3], "label": int32 [b], "weight": float32 [b]}
    with b = batch_size / process_count, and "labels", bool [b, C], if the
    source has them. Its `close()` ends threads. Its `next` raises InputError
    when there are too many bad records.

  Raises:
    ValueError: an argument is out of range.
  """
  local = _local_size(source, batch_size, process_index, process_count)
  check.integers(0, start=start)
  reader = _Reader(source, crop)
  rows = grain.MapDataset.source(_EvalRows(reader, batch_size))
  batches = rows.batch(local)[process_index::process_count][start:]
  iterator = iter(batches.to_iter_dataset(_read_options(crop, 0)))
  return _Checked(iterator, reader, max_bad_share)


def _read_options(crop: Crop | None, num_workers: int) -> grain.ReadOptions:
  """Threads that read while the device computes.

  Two suffice for whole images in memory, and for each of many worker
  processes; without workers, cropping uses all cores.
  """
  threads = 2
  if crop and not num_workers and hasattr(os, "sched_getaffinity"):
    threads = min(16, max(2, len(os.sched_getaffinity(0))))
  return grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=2 * threads
  )


class _Reader:
  """Examples of a source by index, cropped if there is a crop."""

  def __init__(self, source: datasets.Source, crop: Crop | None):
    self._source: Any = source  # has `read` if there is a crop
    self._crop = crop

  def __len__(self) -> int:
    return len(self._source)

  def read(self, index: int, seeds: Sequence[int] = (0,)) -> Row:
    """{"image", "label"}; `seeds` seed the crop's generator."""
    crop = self._crop
    if crop is None:
      return self._source[index]
    rng = np.random.default_rng(seeds)
    return self._source.read(index, lambda file: crop(file, rng))

  def fault(self, index: int) -> str:
    """Why an example could not be read."""
    try:
      self.read(index)
    except decode.BadRecordError as error:
      return str(error)
    return f"record {index} failed to read once, but reads now"


class _TrainRows:
  """Row p of the training, p = 0, 1, ... through all epochs."""

  def __init__(self, reader: _Reader, seed: int, repeats: int):
    self._reader, self._seed = reader, seed
    self._order = order.Order(len(reader), seed, repeats)

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, position: int) -> Row:
    epoch, index, repeat = self._order.at(position)
    seeds = (self._seed, epoch, index, repeat)
    for skipped in range(faults.MOST_IN_A_ROW):
      try:
        at = (index + skipped) % len(self._reader)
        example = self._reader.read(at, seeds)
      except decode.BadRecordError as error:
        reason = error
      else:
        return {**example, **_note(index, skipped)}
    raise faults.damaged(reason)


class _EvalRows:
  """The source with weight 1, padded to a multiple with weight 0."""

  def __init__(self, reader: _Reader, multiple: int):
    self._reader = reader
    self._length = -(-len(reader) // multiple) * multiple

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Row:
    if index >= len(self._reader):
      return {**self._black, **_note(0, 0)}
    try:
      example = self._reader.read(index)
    except decode.BadRecordError:
      return {**self._black, **_note(index, 1)}
    return {**example, "weight": np.float32(1), **_note(index, 0)}

  @functools.cached_property
  def _black(self) -> Row:
    row = _TrainRows(self._reader, seed=0, repeats=1)[0]
    row = {name: np.zeros_like(value) for name, value in row.items()}
    return {**row, "weight": np.float32(0)}


def _note(index: int, skipped: int) -> Row:
  """For `_Checked`: `skipped` bad records, starting at `index`."""
  return {"index": np.int64(index), "skipped": np.int32(skipped)}


class _Checked:
  """An iterator's batches without `_note`s, whose bad records it counts."""

  def __init__(
    self,
    iterator: grain.DatasetIterator,
    reader: _Reader,
    max_bad_share: float,
  ):
    self._iterator, self._reader = iterator, reader
    self._tally = faults.Tally(max_bad_share, reader.fault)

  def __iter__(self) -> "_Checked":
    return self

  def __next__(self) -> Row:
    try:
      batch = next(self._iterator)
    except InputError:
      raise
    except RuntimeError as error:  # Grain's, when a worker process died
      raise InputError(
        f"the input stopped: {workers.explained(error)}"
      ) from error
    indices, skipped = batch.pop("index"), batch.pop("skipped")
    self._tally.read += len(skipped)
    for row in np.flatnonzero(skipped):
      for index in range(indices[row], indices[row] + skipped[row]):
        self._tally.count(index % len(self._reader))
    return batch

  def close(self) -> None:
    """Ends threads and worker processes."""
    self._iterator.close()


def _local_size(
  source: datasets.Source,
  batch_size: int,
  process_index: int,
  process_count: int,
) -> int:
  check.integers(1, batch_size=batch_size, process_count=process_count)
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"expected process_index in [0, {process_count}), the processes of this"
      f" run, got {process_index}."
    )
  if batch_size % process_count:
    raise ValueError(
      f"batch_size {batch_size} is not divisible by the {process_count}"
      " processes; choose a multiple."
    )
  if not len(source):
    raise ValueError("expected a source with examples, got an empty one.")
  return batch_size // process_count
