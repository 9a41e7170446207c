"""The report's tables, as rows of strings and as Markdown."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import datetime
import functools
import math
import statistics

import numpy as np

from vitkd_jax.data import printable
from vitkd_jax.reporting import summary
from vitkd_jax.runs import reading

NONE = "-"


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of text columns, which are aligned left, and numbers.

  Attributes:
    title: heading.
    head: column names.
    rows: cells, each row as long as `head`.
    notes: sentences below the table.
    texts: names of the text columns besides the first.
  """

  title: str
  head: tuple[str, ...]
  rows: Sequence[tuple[str, ...]]
  notes: tuple[str, ...] = ()
  texts: tuple[str, ...] = ()

  def is_text(self, column: int) -> bool:
    """Whether a column is aligned left.

    Args:
      column: its index.
    """
    return column == 0 or self.head[column] in self.texts

  def markdown(self) -> str:
    """The table as Markdown, its columns aligned for a terminal."""
    # A bar inside a cell would end it.
    rows = [
      [printable.printable(cell).replace("|", "\\|") for cell in row]
      for row in (self.head, *self.rows)
    ]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]

    left = [self.is_text(column) for column in range(len(self.head))]

    def line(cells: Sequence[str]) -> str:
      padded = [
        cell.ljust(width) if text else cell.rjust(width)
        for cell, width, text in zip(cells, widths, left, strict=True)
      ]
      return f"| {' | '.join(padded)} |"

    rule = [
      "-" * width if text else "-" * (width - 1) + ":"
      for width, text in zip(widths, left, strict=True)
    ]
    body = [line(rows[0]), f"| {' | '.join(rule)} |", *map(line, rows[1:])]
    notes = ["", *map(printable.printable, self.notes)] if self.notes else []
    return "\n".join([f"## {self.title}", "", *body, *notes, ""])


def make(groups: Sequence[summary.Group]) -> list[Table]:
  """The tables of a report: methods, final losses, single runs.

  Args:
    groups: the runs by method.
  """
  found = [methods(groups), losses(groups), runs(groups)]
  return [table for table in found if table.rows]


def percent(values: np.ndarray) -> str:
  """Mean ± sample standard deviation, in percent.

  Args:
    values: float64 [n] in [0, 1].
  """
  mean, deviation = summary.mean_std(100 * values)
  if math.isnan(mean):
    return NONE
  return f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def number(value: float | None, digits: str = ".4g") -> str:
  """A formatted number; a dash for None.

  Args:
    value: the number.
    digits: format specification.
  """
  return NONE if value is None else format(value, digits)


def duration(seconds: float | None) -> str:
  """A duration as h:mm:ss without leading zeros; a dash for None.

  Args:
    seconds: the duration.
  """
  if seconds is None or not math.isfinite(seconds):
    return NONE
  text = str(datetime.timedelta(seconds=round(seconds)))
  return text.removeprefix("0:").removeprefix("0")


def methods(groups: Sequence[summary.Group]) -> Table:
  """What the methods reach, and what they cost.

  Args:
    groups: the runs by method.
  """
  base = summary.baseline(groups)
  with_ema = any("eval_ema_top1" in r.series for g in groups for r in g.runs)
  head = ["method", "runs", "steps", "final top-1", "best"]
  head += ["final without EMA"] if with_ema else []
  head += ["gain (s.e.)"] if base else []
  head += ["images/s", "time", "loss terms"]
  rows = []
  for group in groups:
    row = [
      group.name,
      str(len(group.settled)),
      _joined(run.step for run in group.settled),
      percent(group.values(summary.final_top1)),
      percent(group.values(_best_top1)),
    ]
    if with_ema:
      row.append(percent(group.values(_plain_top1)))
    if base:
      row.append(_gain(group, base))
    row += [
      number(_median(group.values(lambda r: r.images_per_second)), ".0f"),
      duration(_median(group.values(lambda r: r.seconds))),
      " + ".join(f"{w:g} {t}" for t, w in group.loss_weights.items()),
    ]
    rows.append(tuple(row))
  notes = tuple(_notes(groups, base))
  return Table("Methods", tuple(head), rows, notes, texts=("loss terms",))


def _best_top1(run: reading.Run) -> float | None:
  return run.accuracy.best if run.accuracy else None


def _plain_top1(run: reading.Run) -> float | None:
  return _final(run, "eval_top1")


def _joined(values: Iterable[int]) -> str:
  return ", ".join(map(str, sorted(set(values))))


def _median(values: np.ndarray) -> float | None:
  return statistics.median(values) if len(values) else None


def _gain(group: summary.Group, base: summary.Group) -> str:
  if group is base:
    return NONE
  difference, error = summary.gain(group, base)
  if math.isnan(difference):
    return NONE
  text = f"{100 * difference:+.2f}"
  return text if error is None else f"{text} ({100 * error:.2f})"


def _notes(
  groups: Sequence[summary.Group], base: summary.Group | None
) -> Iterator[str]:
  yield (
    "Top-1 in percent; best is the highest of all evaluations. "
    "± is the sample standard deviation over seeds. Speed and time are medians "
    "and exclude compilation, evaluations and saves."
  )
  if base:
    yield (
      "Gain: final top-1 minus the baseline's, in points, and the standard "
      "error of the difference where both have several seeds."
    )
  if len(groups) > 1:
    changes = summary.differing(groups)
    if changes:
      keys = list(changes)
      yield (
        "Warning: the methods also differ in "
        + ", ".join(keys[:6])
        + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
        + "."
      )
    else:
      yield "Data, student, augmentation, steps and optimiser are the same."
  for group in groups:
    for seed, same in summary.repeated(group).items():
      yield (
        f"Warning: {', '.join(same[:4])}{', ...' if same[4:] else ''} are "
        f"{len(same)} runs of {group.name} with the seed {seed}: ± and the "
        "standard error count them as seeds of their own."
      )
  going = [run for g in groups for run in g.runs if not run.finished]
  if going:
    names = ", ".join(
      f"{run.name} ({run.step} of {run.total_steps} steps)" for run in going[:8]
    )
    more = f" and {len(going) - 8} more" if len(going) > 8 else ""
    yield f"Still running, or stopped early: {names}{more}."


def losses(groups: Sequence[summary.Group]) -> Table:
  """The loss terms at the end of the training.

  Args:
    groups: the runs by method.
  """
  terms = list(
    dict.fromkeys(term for group in groups for term in group.loss_weights)
  )
  rows = []
  for group in groups:
    total = group.values(lambda run: _final(run, "loss"))
    if not len(total):
      continue
    row = [group.name, f"{np.mean(total):.4f}"]
    for term in terms:
      raw, weighted = (
        group.values(functools.partial(_final, name=f"{kind}{term}"))
        for kind in ("", "weighted/")
      )
      row.append(
        f"{np.mean(raw):.4g} → {np.mean(weighted):.4g}"
        if len(raw) and len(weighted)
        else NONE
      )
    rows.append(tuple(row))
  note = (
    "Means over the last logged steps: raw term → term times its weight, as "
    "summed."
  )
  return Table(
    "Final training losses", ("method", "total", *terms), rows, (note,)
  )


def _final(run: reading.Run, name: str) -> float | None:
  series = run.series.get(name)
  return series.final if series else None


def runs(groups: Sequence[summary.Group]) -> Table:
  """Every run by itself.

  Args:
    groups: the runs by method.
  """
  rows = []
  for group, run in ((g, run) for g in groups for run in g.runs):
    accuracy = run.accuracy
    best = NONE
    if accuracy and not math.isnan(accuracy.best):
      at = accuracy.steps[int(np.nanargmax(accuracy.values))]
      best = f"{100 * accuracy.best:.2f} at {at}"
    rows.append(
      (
        run.name,
        group.name,
        number(run.seed, ""),
        str(run.step) + ("" if run.finished else f" of {run.total_steps}"),
        f"{100 * accuracy.final:.2f}" if accuracy else NONE,
        best,
        number(_final(run, "loss")),
        number(run.images_per_second, ".0f"),
        duration(run.seconds),
      )
    )
  head = (
    *("run", "method", "seed", "steps", "final top-1", "best"),
    *("loss", "images/s", "time"),
  )
  return Table("Runs", head, rows, texts=("method",))


def settings(
  groups: Sequence[summary.Group], shown: Sequence[int] | None = None
) -> Table:
  """The settings in which methods differ, side by side.

  Args:
    groups: the runs by method.
    shown: indices of the groups to show; None for all.
  """
  shown = range(len(groups)) if shown is None else shown
  rows = []
  if len(groups) > 1:
    sections = {key for group in groups for key in group.runs[0].config}
    for key, values in summary.differing(groups, sections).items():
      width = 12 if key.endswith(".sha256") else 40
      texts = summary.told_apart(
        [NONE if x is None else x for x in values], width
      )
      rows.append((key, *(texts[index] for index in shown)))
  names = tuple(groups[index].name for index in shown)
  title = "Settings that differ"
  return Table(title, ("config", *names), rows, texts=names)
