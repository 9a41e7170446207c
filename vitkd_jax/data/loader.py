"""Batches of a source in an order that only seed and step decide.

The order depends neither on the number of processes nor on that of worker
processes, so the step is the whole state of the input: a run that restarts at
step n asks for `start_step=n`.
"""

from collections.abc import Iterator
import ctypes
import numbers
import signal
import sys

from absl import flags
import grain
import numpy as np

from vitkd_jax.data import datasets

# Threads that read and decode while the device computes. More would only
# take cores from a small machine; big ones set `num_workers`.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def train_batches(
  source: datasets.Source,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
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
    seed: of the order, at least 0.
    start_step: number of the first global batch.
    process_index: of this process, 0 <= process_index < process_count.
    process_count: number of processes that share a batch.
    num_workers: worker processes that read and decode; 0 for threads.

  Returns:
    An endless iterator of {"image": uint8 [b, H, W, 3], "label": int32 [b]};
    its `close()` ends threads and workers.

  Raises:
    ValueError: an argument is out of range.
  """
  local = _local_size(source, batch_size, process_index, process_count)
  _check_at_least(0, seed=seed, start_step=start_step, num_workers=num_workers)
  rows = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  batches = rows.batch(local, drop_remainder=True)
  # Batches before processes: [h::H] on rows would interleave them, and the
  # global batch would depend on the number of processes.
  batches = batches[process_index::process_count][start_step:]
  iterator = batches.to_iter_dataset(_READ)
  if num_workers:
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
      flags.FLAGS.mark_as_parsed()
    iterator = iterator.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=num_workers),
      worker_init_fn=_start_worker,
    )
  return iter(iterator)


def eval_batches(
  source: datasets.Source,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """This process's rows of the batches that hold every example once.

  The order is the source's. The last batch is filled with black images of
  weight 0, so every process gets as many batches as any other.

  Args:
    source: see `datasets.load`.
    batch_size: examples of the global batch.
    process_index: of this process.
    process_count: number of processes that share a batch.

  Returns:
    ceil(len(source) / batch_size) times {"image": uint8 [b, H, W, 3],
    "label": int32 [b], "weight": float32 [b]}, b = batch_size /
    process_count; the iterator has `close()`.

  Raises:
    ValueError: an argument is out of range.
  """
  local = _local_size(source, batch_size, process_index, process_count)
  rows = grain.MapDataset.source(_Padded(source, batch_size))
  batches = rows.batch(local)[process_index::process_count]
  return iter(batches.to_iter_dataset(_READ))


class _Padded:
  """`source` with weight 1, then weight 0 up to a multiple of `multiple`."""

  def __init__(self, source, multiple):
    self._source = source
    self._length = -(-len(source) // multiple) * multiple

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    if index < len(self._source):
      return {**self._source[index], "weight": np.float32(1)}
    example = self._source[0]
    return {
      "image": np.zeros_like(example["image"]),
      "label": np.int32(0),
      "weight": np.float32(0),
    }


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


def _start_worker(index, count):
  """Ties a worker process to its trainer."""
  del index, count
  _ignore_sigterm()
  if sys.platform == "linux":  # else a killed trainer leaves it for ever
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _ignore_sigterm():
  # A scheduler sends it to the whole process group; the trainer then saves a
  # last checkpoint, which it cannot when its workers die under it.
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
