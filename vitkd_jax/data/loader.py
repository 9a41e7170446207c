"""Batches of a source in an order that only seed and step decide.

The order depends neither on the number of processes nor on that of worker
processes, so the step is the whole state of the input: a run that restarts at
step n asks for `start_step=n`. What is random about an example, its crop, is a
function of the seed, the epoch, the example's index and its repeat.

A record that cannot be read is replaced by the next good one (index + 1, and
so on), which is the same one wherever and whenever the batch is made; it is
counted and named in the log, and too many of them end the run.
"""

from collections.abc import Callable, Iterator
import functools
import numbers
import os
import sys

from absl import flags, logging
import grain
import numpy as np

from vitkd_jax.data import crop as crops
from vitkd_jax.data import datasets, decode, workers

Crop = Callable[[crops.Source, np.random.Generator], np.ndarray]

# Different bad records that pass before the share of them is looked at: one
# bad file of a small set comes again in every epoch.
_FEW = 10
# As many bad records in a row are a bad file, not bad luck.
_MOST_IN_A_ROW = 20


class InputError(RuntimeError):
  """The input cannot go on; the message says why in one sentence."""


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
) -> Iterator[dict[str, np.ndarray]]:
  """This process's rows of the global batches start_step, start_step+1, ...

  Every epoch is a new permutation of the source. Epochs follow each other
  without a seam: a batch may hold the end of one and the start of the next,
  and no example is dropped. Rows process_index * b to (process_index + 1) * b
  of the global batch come, b = batch_size / process_count, so the processes'
  parts in their order are the batch that one process would see.

  Args:
    source: see `datasets.load`.
    batch_size: examples of the global batch.
    seed: of the order and the crops, at least 0.
    start_step: number of the first global batch.
    process_index: of this process, 0 <= process_index < process_count.
    process_count: number of processes that share a batch.
    num_workers: worker processes that read and decode; 0 for threads.
    crop: from a file and a generator to the image, such as
      `crop.RandomCrop`; None takes the source's whole images.
    repeats: how often an example comes, one right after the other and each
      time cropped anew ("repeated augmentation", arXiv:1901.09335, as DeiT's
      recipe has it). An epoch has as many rows as ever, so it holds only the
      first ceil(n / repeats) examples of its permutation of n, the last one
      of them perhaps not as often.
    max_bad_share: part of the examples read by this process since it started
      that may be bad; up to ten different ones always may, however often.

  Returns:
    An endless iterator of {"image": uint8 [b, H, W, 3], "label": int32 [b]};
    its `close()` ends threads and workers. Its `next` raises InputError when
    there are too many bad records, or a worker process died.

  Raises:
    ValueError: an argument is out of range.
  """
  local = _local_size(source, batch_size, process_index, process_count)
  _check_at_least(0, seed=seed, start_step=start_step, num_workers=num_workers)
  _check_at_least(1, repeats=repeats)
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
  process_index: int = 0,
  process_count: int = 1,
  crop: Crop | None = None,
  max_bad_share: float = 0.001,
) -> Iterator[dict[str, np.ndarray]]:
  """This process's rows of the batches that hold every example once.

  The order is the source's. The last batch is filled with black images of
  weight 0, so every process gets as many batches as any other. A record that
  cannot be read is left out: its image is black and its weight 0, too.

  Args:
    source: see `datasets.load`.
    batch_size: examples of the global batch.
    process_index: of this process.
    process_count: number of processes that share a batch.
    crop: as for `train_batches`, such as `crop.CentreCrop`.
    max_bad_share: see `train_batches`.

  Returns:
    ceil(len(source) / batch_size) times {"image": uint8 [b, H, W, 3],
    "label": int32 [b], "weight": float32 [b]}, and "labels", bool [b, C],
    where the source has them; b = batch_size / process_count; the iterator
    has `close()`, and its `next` raises InputError when there are too many bad
    records.

  Raises:
    ValueError: an argument is out of range.
  """
  local = _local_size(source, batch_size, process_index, process_count)
  reader = _Reader(source, crop)
  rows = grain.MapDataset.source(_EvalRows(reader, batch_size))
  batches = rows.batch(local)[process_index::process_count]
  iterator = iter(batches.to_iter_dataset(_read_options(crop, 0)))
  return _Checked(iterator, reader, max_bad_share)


def _read_options(crop, num_workers):
  """Threads that read while the device computes.

  Two suffice for whole images in memory, and for a worker process, which is
  one of many; without workers, cropping takes what cores there are.
  """
  threads = 2
  if crop and not num_workers and hasattr(os, "sched_getaffinity"):
    threads = min(16, max(2, len(os.sched_getaffinity(0))))
  return grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=2 * threads
  )


class _Reader:
  """Examples of a source by index, cropped where there is a crop."""

  def __init__(self, source, crop):
    self._source, self._crop = source, crop

  def __len__(self):
    return len(self._source)

  def read(self, index, seeds=(0,)):
    """{"image", "label"}; the crop's generator comes from `seeds`."""
    if self._crop is None:
      return self._source[index]
    rng = np.random.default_rng(seeds)
    return self._source.read(index, lambda file: self._crop(file, rng))

  def fault(self, index):
    """Why an example could not be read."""
    try:
      self.read(index)
    except decode.BadRecordError as error:
      return str(error)
    return f"record {index} could not be read, but now it can"


class _TrainRows:
  """Row p of the training, p = 0, 1, ... through all epochs."""

  def __init__(self, reader, seed, repeats):
    self._reader, self._seed, self._repeats = reader, seed, repeats
    # Entry e * n + i is number i of epoch e's permutation of n indices.
    indices = grain.MapDataset.range(len(reader))
    self._order = indices.seed(seed).shuffle().repeat()

  def __len__(self):
    return sys.maxsize

  def __getitem__(self, position):
    number = len(self._reader)
    epoch, place = divmod(position, number)
    place, repeat = divmod(place, self._repeats)
    index = self._order[epoch * number + place] % number
    seeds = (self._seed, epoch, index, repeat)
    for skipped in range(_MOST_IN_A_ROW):
      try:
        example = self._reader.read((index + skipped) % number, seeds)
      except decode.BadRecordError as error:
        reason = error
      else:
        return {**example, **_note(index, skipped)}
    raise InputError(
      f"{_MOST_IN_A_ROW} records in a row are bad, so a file of the data set is"
      f" damaged or missing; the last of them: {reason}"
    )


class _EvalRows:
  """The source with weight 1, then weight 0 up to a multiple of `multiple`."""

  def __init__(self, reader, multiple):
    self._reader = reader
    self._length = -(-len(reader) // multiple) * multiple

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    if index >= len(self._reader):
      return {**self._black, **_note(0, 0)}
    try:
      example = self._reader.read(index)
    except decode.BadRecordError:
      return {**self._black, **_note(index, 1)}
    return {**example, "weight": np.float32(1), **_note(index, 0)}

  @functools.cached_property
  def _black(self):
    row = _TrainRows(self._reader, seed=0, repeats=1)[0]
    row = {name: np.zeros_like(value) for name, value in row.items()}
    return {**row, "weight": np.float32(0)}


def _note(index, skipped):
  """What travels with an example to `_Checked`: `skipped` bad ones from it."""
  return {"index": np.int64(index), "skipped": np.int32(skipped)}


class _Checked:
  """An iterator's batches, less the notes, which are looked at."""

  def __init__(self, iterator, reader, max_bad_share):
    self._iterator, self._reader = iterator, reader
    self._max_bad_share = max_bad_share
    self._read, self._bad, self._named = 0, 0, set()

  def __iter__(self):
    return self

  def __next__(self):
    try:
      batch = next(self._iterator)
    except InputError:
      raise
    except RuntimeError as error:  # Grain's, when a worker process is gone
      raise InputError(
        f"the input stopped: {workers.explained(error)}"
      ) from error
    indices, skipped = batch.pop("index"), batch.pop("skipped")
    self._read += len(skipped)
    for row in np.flatnonzero(skipped):
      for index in range(indices[row], indices[row] + skipped[row]):
        self._count(index % len(self._reader))
    return batch

  def close(self):
    """Ends threads and worker processes."""
    self._iterator.close()

  def _count(self, index):
    self._bad += 1
    if index not in self._named:
      self._named.add(index)
      reason = self._reader.fault(index)
      logging.warning("bad record %d of this run: %s", self._bad, reason)
    allowed = self._max_bad_share * self._read
    if len(self._named) > _FEW and self._bad > allowed:
      raise InputError(
        f"{self._bad} of {self._read:,} records read are bad, more than"
        f" max_bad_share={self._max_bad_share:g} allows; the last of them:"
        f" {self._reader.fault(index)}"
      )


def _local_size(source, batch_size, process_index, process_count):
  _check_at_least(1, batch_size=batch_size, process_count=process_count)
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index is {process_index}, but must be in"
      f" [0, {process_count}), the processes of this run."
    )
  if batch_size % process_count:
    raise ValueError(
      f"batch_size {batch_size} is not divisible by the {process_count}"
      " processes; take a multiple of them."
    )
  if not len(source):
    raise ValueError("the source holds no example.")
  return batch_size // process_count


def _check_at_least(least, **values):
  for name, value in values.items():
    if not isinstance(value, numbers.Integral) or value < least:
      raise ValueError(
        f"{name} is {value!r}, but must be a whole number, at least {least}."
      )
