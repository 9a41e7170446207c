"""How well each class is recognised, run beside run."""

from collections.abc import Iterator, Sequence

from vitkd_jax.reporting import beside, evaluated, tables

# More columns would not be read.
_RUNS = 12
_TAKEN_FOR = "most often taken for"


def make_tables(evaluations: Sequence[beside.Left]) -> list[tables.Table]:
  """A table for each split, with a column for each run scored on it.

  Args:
    evaluations: of runs.
  """
  splits: dict[tuple[str, ...], list[beside.Left]] = {}
  for left in evaluations:
    names = tuple(each["name"] for each in left.found["classes"])
    key = (str(left.found["data"]), str(left.found["split"]), *names)
    splits.setdefault(key, []).append(left)
  return [
    _table(f"Accuracy by class on {data}, {split}", found)
    for (data, split, *_), found in splits.items()
  ]


def _table(title: str, every: Sequence[beside.Left]) -> tables.Table:
  lefts = every[:_RUNS]
  names = [left.run.name for left in lefts]
  if len(set(names)) < len(names):
    names = [f"{left.run.name}/{left.folder.name}" for left in lefts]
  head: tuple[str, ...] = ("class", "images", *names)
  alone = len(lefts) == 1
  head += (_TAKEN_FOR,) if alone else ("range",)
  rows = []
  for index, each in enumerate(lefts[0].found["classes"]):
    scores = [left.found["classes"][index]["accuracy"] for left in lefts]
    known = [score for score in scores if score is not None]
    row = [each["name"], f"{each['count']:,}"]
    row += [tables.NONE if x is None else f"{x:.1%}" for x in scores]
    if alone:
      row.append(_taken_for(lefts[0], index))
    else:
      span = 100 * (max(known) - min(known)) if known else None
      row.append(tables.number(span, ".1f"))
    rows.append(tuple(row))
  notes = tuple(_notes(every))
  return tables.Table(title, head, rows, notes, texts=(_TAKEN_FOR,))


def _taken_for(left: beside.Left, index: int) -> str:
  wrong, count = evaluated.confused_with(left.found, index)
  if not count:
    return tables.NONE
  return f"{left.found['classes'][wrong]['name']} ({count:,})"


def _notes(every: Sequence[beside.Left]) -> Iterator[str]:
  if len(every) > 1:
    yield "Range: the highest accuracy minus the lowest, in points."
  if len(every) > _RUNS:
    yield f"The first {_RUNS} of {len(every)} evaluations."
