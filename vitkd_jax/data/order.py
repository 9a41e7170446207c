"""Which example is at which row of a training."""

import grain
import numpy as np


class Order:
  """A new permutation of the examples in every epoch, without end.

  Row p = 0, 1, ... runs through all epochs, and the rows of batch k follow
  those of batch k - 1. Workers may unpickle it.

  Args:
    number: of examples, >= 1.
    seed: of the permutations, >= 0.
    repeats: consecutive rows of each example, >= 1. An epoch keeps its number
      of rows, so it holds only the first ceil(number / repeats) examples of its
      permutation, the last of them possibly with fewer rows.
  """

  def __init__(self, number: int, seed: int, repeats: int = 1):
    self._number, self._repeats = number, repeats
    # Entry e * n + i is number i of epoch e's permutation of n indices.
    self._entries = grain.MapDataset.range(number).seed(seed).shuffle().repeat()

  def at(self, row: int) -> tuple[int, int, int]:
    """(epoch, index of the example, its repeat) of one row.

    Args:
      row: >= 0.
    """
    epoch, place = divmod(row, self._number)
    place, repeat = divmod(place, self._repeats)
    index = self._entries[epoch * self._number + place] % self._number
    return epoch, index, repeat

  def between(self, start: int, stop: int) -> np.ndarray:
    """The examples' indices of many rows, int64 [stop - start].

    Args:
      start: first row, >= 0.
      stop: row after the last, > start.
    """
    epochs, places = np.divmod(
      np.arange(start, stop, dtype=np.int64), self._number
    )
    wanted = epochs * self._number + places // self._repeats
    first, end = int(wanted[0]), int(wanted[-1]) + 1
    # A batch of a dataset takes far less time than its elements one by one.
    found = self._entries[first:end].batch(end - first)[0]
    return np.asarray(found)[wanted - first] % self._number
