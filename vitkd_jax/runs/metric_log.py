"""A run's metrics.jsonl: its series, and its end, without holding its text."""

import array
from collections.abc import Iterable, Iterator
import dataclasses
import io
import json
import math
import os
import struct
from typing import Any, BinaryIO

from etils import epath
import numpy as np

from vitkd_jax import remote
from vitkd_jax.runs import legacy

_BLOCK = 1 << 16  # bytes, of a file that is read from its end


@dataclasses.dataclass(frozen=True)
class Series:
  """One metric by step.

  Attributes:
    steps: int64 [T], ascending.
    values: float64 [T], NaN and infinities included.
  """

  steps: np.ndarray
  values: np.ndarray

  @property
  def final(self) -> float:
    """The last value."""
    return float(self.values[-1])

  @property
  def best(self) -> float:
    """The highest finite value; NaN if there is none."""
    finite = self.values[np.isfinite(self.values)]
    return float(finite.max()) if finite.size else math.nan


def intact(line: bytes) -> dict[str, Any] | None:
  """The values of a line by name, with "step", an int; None if it is damaged.

  A killed run may leave its last line truncated, a full disk any line.

  Args:
    line: with or without its end.
  """
  try:
    values = json.loads(line)
    values["step"] = int(values["step"])
  except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
    return None
  return values if -(2**63) <= values["step"] < 2**63 else None


def series(lines: Iterable[bytes]) -> dict[str, Series]:
  """Every metric by name; of several values at one step the last counts.

  Holds eight bytes a value, and the text of no more than one line.

  Args:
    lines: of the file, in its order.
  """
  tables: dict[tuple[str, ...], _Table] = {}
  for order, line in enumerate(lines):
    values = intact(line)
    if values is None:
      continue
    step = values.pop("step")
    if not _added(tables, order, step, values):
      numbers = {k: v for k, v in values.items() if _is_number(v)}
      _added(tables, order, step, numbers)
  columns: dict[str, list[tuple[_Table, int]]] = {}
  for table in tables.values():
    for index, name in enumerate(table.names):
      columns.setdefault(legacy.metric(name), []).append((table, index))
  arrays = {id(table): table.arrays() for table in tables.values()}
  return {
    name: _merged([(*arrays[id(t)][:2], arrays[id(t)][2][:, i]) for t, i in of])
    for name, of in columns.items()
  }


class _Table:
  """The lines that have the same names."""

  def __init__(self, names: tuple[str, ...]):
    self.names = names
    self._packed = struct.Struct(f"{len(names)}d")
    self._orders, self._steps = array.array("q"), array.array("q")
    self._rows = bytearray()

  def add(self, order: int, step: int, values: Iterable[Any]) -> None:
    """Adds a line; raises before anything is added if one is no float."""
    self._rows += self._packed.pack(*values)
    self._orders.append(order)
    self._steps.append(step)

  def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places in the file and steps, int64 [n], and values, float64 [n, k]."""
    rows = np.frombuffer(self._rows).reshape(-1, len(self.names))
    return np.array(self._orders), np.array(self._steps), rows


def _added(
  tables: dict[tuple[str, ...], _Table],
  order: int,
  step: int,
  values: dict[str, Any],
) -> bool:
  names = tuple(values)
  if not names:
    return True
  table = tables.get(names) or _Table(names)
  try:
    table.add(order, step, values.values())
  except (struct.error, OverflowError):
    return False
  tables[names] = table
  return True


def _is_number(value: Any) -> bool:
  try:
    return isinstance(value, int | float) and float(value) is not None
  except OverflowError:  # an integer of 309 digits or more
    return False


def _merged(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Series:
  orders, steps, values = (
    parts[0]
    if len(parts) == 1
    else map(np.concatenate, zip(*parts, strict=True))
  )
  if np.all(np.diff(steps) > 0):
    return Series(steps, values)
  sort = np.lexsort((orders, steps))
  steps, values = steps[sort], values[sort]
  last = np.append(steps[1:] != steps[:-1], True)
  return Series(steps[last], values[last])


def keep_until(path: epath.Path, step: int) -> set[tuple[int, frozenset[str]]]:
  """Drops the lines beyond a step, and truncated ones behind the last kept.

  Reads the file from its end to the last line before the step. As the steps of
  a log ascend, none beyond is left; a damaged line further up stays, which
  every reader passes over.

  Args:
    path: of metrics.jsonl.
    step: updates done.

  Returns:
    (step, names) of the lines of this very step; `names` has "step".
  """
  if not path.exists():
    return set()
  kept: set[tuple[int, frozenset[str]]] = set()
  end, terminated, between = 0, True, False
  with path.open("rb") as file:
    size = file.seek(0, os.SEEK_END)
    for start, line in _backwards(file, size):
      values = intact(line)
      if values is None or values["step"] > step:
        between = between or end > 0
        continue
      if not end:
        end, terminated = start + len(line), line.endswith(b"\n")
      if values["step"] < step:
        break
      kept.add((step, frozenset(values)))
  if end == size and terminated and not between:
    return kept
  if between or remote.is_remote(path):
    _rewrite(path, step)
  elif end < size:  # at once, so that a kill loses nothing
    os.truncate(path, end)
  else:
    with path.open("ab") as file:
      file.write(b"\n")
  return kept


def _backwards(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
  """(place, line) from the last line to the first."""
  begin, rest, block = size, b"", _BLOCK
  while begin:
    start = max(0, begin - block)
    file.seek(start)
    text = file.read(begin - start) + rest
    begin = start
    # The first of these lines may have begun earlier.
    rest, newline, text = text.partition(b"\n") if begin else (b"", b"", text)
    rest += newline
    # One long line is not read again and again.
    block = _BLOCK if text else 2 * block
    place = begin + len(rest) + len(text)
    for line in reversed(io.BytesIO(text).readlines()):
      place -= len(line)
      yield place, line


def _rewrite(path: epath.Path, step: int) -> None:
  """Keeps the intact lines up to a step; renames, so a kill loses nothing."""
  temporary = path.with_suffix(".tmp")
  with path.open("rb") as old, temporary.open("wb") as new:
    for line in old:
      values = intact(line)
      if values is not None and values["step"] <= step:
        new.write(line.rstrip(b"\r\n") + b"\n")
  temporary.replace(path)
