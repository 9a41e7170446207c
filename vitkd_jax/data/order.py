"""Which example is at which row of a training."""

from absl import logging
import grain
import numpy as np

from vitkd_jax.data import permutation

_CHECKED = 16  # of many rows, that are compared with Grain's own


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
    shuffled = grain.MapDataset.range(number).seed(seed).shuffle()
    self._entries = shuffled.repeat()
    # Grain adds the epoch to it. A version without it is only slower.
    self._seed: int | None = getattr(shuffled, "_seed", None)

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
    entries = epochs * self._number + places // self._repeats
    found = None if self._seed is None else self._at_once(entries, self._seed)
    some = np.linspace(0, len(entries) - 1, _CHECKED, dtype=np.int64)
    if found is None or (found[some] != self._one_by_one(entries[some])).any():
      logging.log_first_n(
        logging.WARNING,
        "this version of Grain shuffles in a way of its own, so the order of"
        " the batches takes long to find",
        1,
      )
      found = self._one_by_one(entries)
    return found

  def _at_once(self, entries: np.ndarray, seed: int) -> np.ndarray:
    epochs, places = np.divmod(entries, self._number)
    parts = np.split(places, np.flatnonzero(np.diff(epochs)) + 1)
    return np.concatenate(
      [
        permutation.permuted(part, self._number, (seed + epoch) % 2**32)
        for epoch, part in zip(np.unique(epochs).tolist(), parts, strict=True)
      ]
    )

  def _one_by_one(self, entries: np.ndarray) -> np.ndarray:
    return np.array([self._entries[i] % self._number for i in entries.tolist()])
