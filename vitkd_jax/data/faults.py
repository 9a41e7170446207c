"""Bad records: how many are allowed, and how they end a run."""

from collections.abc import Callable

from absl import logging

# Distinct bad records allowed before their share counts: a bad file of a small
# dataset returns in every epoch.
_FEW = 10
# This many consecutive bad records mean a bad file, not bad luck.
MOST_IN_A_ROW = 20


class InputError(RuntimeError):
  """The input failed; the message says why in one sentence."""


def damaged(last: object) -> InputError:
  """What ends a run at `MOST_IN_A_ROW` consecutive bad records.

  Args:
    last: why the last of them is bad.
  """
  return InputError(
    f"{MOST_IN_A_ROW} consecutive records are bad, so a file of the dataset is"
    f" damaged or missing; the last of them: {last}"
  )


class Tally:
  """Counts bad records, names each in the log, and ends a run at too many.

  Args:
    max_bad_share: allowed share of bad records among those read, in [0, 1]. Up
      to ten distinct bad records are always allowed.
    fault: why the record of an index is bad.

  Attributes:
    read: number of records that have been read.
  """

  def __init__(self, max_bad_share: float, fault: Callable[[int], object]):
    self._max_bad_share, self._fault = max_bad_share, fault
    self.read, self._bad = 0, 0
    self._named: set[int] = set()

  def count(self, index: int) -> None:
    """Counts one of the records read as bad.

    Args:
      index: of the record.

    Raises:
      InputError: these are too many.
    """
    self._bad += 1
    if index not in self._named:
      self._named.add(index)
      reason = self._fault(index)
      logging.warning("bad record %d of this run: %s", self._bad, reason)
    allowed = self._max_bad_share * self.read
    if len(self._named) > _FEW and self._bad > allowed:
      raise InputError(
        f"expected at most max_bad_share={self._max_bad_share:g} bad records,"
        f" got {self._bad} of {self.read:,} read; the last of them:"
        f" {self._fault(index)}"
      )
