"""A whole dataset as arrays, for training from a device's memory."""

from concurrent import futures
import os
from typing import NamedTuple

import numpy as np

from vitkd_jax.data import datasets, decode, faults

_BLOCK = 4096  # images handed to the threads at a time


class Arrays(NamedTuple):
  """The examples of a split.

  Attributes:
    image: uint8 [n, H * W * 3], rows of pixels, which a TPU does not pad as it
      pads channels; black where a record is bad.
    label: int32 [n].
    stand_in: int32 [n], the index of the example to use in each one's place:
      its own, or the next good one's where its record is bad.
  """

  image: np.ndarray
  label: np.ndarray
  stand_in: np.ndarray


def read(
  source: datasets.Source,
  image_size: tuple[int, int],
  max_bad_share: float = 0.001,
) -> Arrays:
  """Reads every example once; several threads decode.

  A bad record is replaced by the same one as in `loader.train_batches`. The
  share of bad ones is that of the whole split, however much of it is used.

  Args:
    source: with whole images of one size; see `datasets.load`.
    image_size: (H, W) in pixels.
    max_bad_share: allowed share of bad records, in [0, 1]; up to ten are always
      allowed.

  Raises:
    faults.InputError: too many records are bad, or an image has another size.
  """
  number, shape = len(source), (*image_size, 3)
  image = np.zeros((number, *shape), np.uint8)
  label = np.zeros(number, np.int32)
  bad: dict[int, decode.BadRecordError] = {}

  def take(index: int) -> None:
    try:
      example = source[index]
    except decode.BadRecordError as error:
      bad[index] = error
      return
    if example["image"].shape != shape:
      raise faults.InputError(
        f"expected images of shape {shape}, as the dataset's metadata say, got"
        f" {example['image'].shape} in record {index}; prepare it again"
      )
    image[index], label[index] = example["image"], example["label"]

  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for at in range(0, number, _BLOCK):
      block = range(number)[at : at + _BLOCK]
      list(pool.map(take, block))  # raises what a thread raised
  stand_in = _stand_ins(number, bad)
  tally = faults.Tally(max_bad_share, bad.__getitem__)
  tally.read = number
  for index in sorted(bad):
    tally.count(index)
  return Arrays(image.reshape(number, -1), label, stand_in)


def _stand_ins(
  number: int, bad: dict[int, decode.BadRecordError]
) -> np.ndarray:
  found = np.arange(number, dtype=np.int32)
  for index in bad:
    for trial in range(index, index + faults.MOST_IN_A_ROW):
      if trial % number not in bad:
        found[index] = trial % number
        break
    else:
      raise faults.damaged(bad[trial % number])
  return found
