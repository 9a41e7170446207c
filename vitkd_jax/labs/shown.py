"""A lab's results in words: tables, costs and a headline."""

from collections.abc import Iterable, Sequence
import statistics as medians

import numpy as np

from vitkd_jax.labs import plan, records, statistics
from vitkd_jax.labs import results as labs
from vitkd_jax.reporting import tables


def make_tables(results: labs.Results) -> list[tables.Table]:
  """What depends on the trainings' results alone, not on the machine.

  Args:
    results: of the lab.
  """
  found = [_arms(results), _claims(results)]
  return [table for table in found if table.rows]


def _arms(results: labs.Results) -> tables.Table:
  by_arm = {x.arm: x for x in results.compared}
  with_claims = any(arm.claim for arm in results.lab.arms.values())
  needed = f"seeds for {results.wanted:g}"
  head = ["arm", "what", "seeds", "top-1", "gain", "p", "verdict", needed]
  head += ["published"] if with_claims else []
  listed = []
  for name in _by_gain(results):
    arm, by_seed = results.lab.arms[name], results.runs[name]
    row = [name, arm.says, str(len(by_seed))]
    row.append(
      tables.percent(np.array(list(labs.points(by_seed).values())) / 100)
    )
    compared = by_arm.get(name)
    if compared is None:
      row += [tables.NONE] * 2 + ["reference", tables.NONE]
    else:
      row.append(margin(compared.difference))
      row.append(tables.number(compared.p, ".3f"))
      other = compared.against
      beside = "" if other == results.lab.reference else f" (against {other})"
      row.append(compared.said + beside)
      row.append(_needed(compared.difference, results.wanted))
    row += [arm.claim or tables.NONE] if with_claims else []
    listed.append(tuple(row))
  texts = ("what", "verdict", "published")
  notes = tuple(_notes(results))
  return tables.Table("Arms", tuple(head), listed, notes, texts)


def _needed(difference: statistics.Difference, wanted: float) -> str:
  if difference.deviation is None:
    return tables.NONE
  seeds = statistics.seeds_needed(difference.deviation, wanted)
  return f"> {statistics.MOST_SEEDS:,}" if seeds is None else str(seeds)


def _by_gain(results: labs.Results) -> list[str]:
  """Names of the arms: the reference, then from the largest gain down."""
  gains = {x.arm: x.difference.mean for x in results.compared}
  known = [name for name in gains if gains[name] == gains[name]]
  known.sort(key=lambda name: -gains[name])
  free = [name for name in results.lab.arms if name not in gains]
  return [*free, *known, *(name for name in gains if name not in known)]


def margin(difference: statistics.Difference) -> str:
  """A difference with half its interval, such as "+2.90 ± 0.40".

  Args:
    difference: in points.
  """
  if not difference.seeds:
    return tables.NONE
  text = f"{difference.mean:+.2f}"
  half = difference.margin
  return text if half is None else f"{text} ± {half:.2f}"


def _notes(results: labs.Results) -> Iterable[str]:
  count = sum(x.p is not None for x in results.compared)
  yield (
    "Top-1 in percent, mean ± sample standard deviation over seeds. Gain: "
    f"difference from {results.lab.reference} in points, paired by seed, ± "
    "half the width of its 95 % t interval."
  )
  if count:
    yield (
      "p is of the paired t test, corrected by Holm's procedure for "
      f"{count} comparison{'s' * (count > 1)}. The last number of seeds would "
      f"show {results.wanted:g} points with a chance of "
      f"{statistics.POWER:.0%}, at the deviation seen and without the "
      "correction."
    )
  missing = {
    name: results.lab.seeds - len(by_seed)
    for name, by_seed in results.runs.items()
    if len(by_seed) < results.lab.seeds
  }
  if missing:
    listed = ", ".join(f"{name} ({n})" for name, n in list(missing.items())[:8])
    more = f" and {len(missing) - 8} more arms" if len(missing) > 8 else ""
    yield f"Not finished, with the number of seeds: {listed}{more}."
  yield from plan.teachers_differ(results.finished)


def _claims(results: labs.Results) -> tables.Table:
  listed = [
    (
      x.claim.says,
      f"{x.claim.better} - {x.claim.worse}",
      margin(x.difference),
      tables.number(x.p, ".3f"),
      x.said,
    )
    for x in results.tested
  ]
  head = ("claim", "arms", "difference", "p", "verdict")
  return tables.Table("Claims", head, listed, texts=("arms", "verdict"))


def costs(results: labs.Results, runs: Sequence[plan.Run]) -> tables.Table:
  """What the arms cost on the machine that trained them.

  Args:
    results: of the lab.
    runs: of the lab.
  """
  by_arm = relative_costs(results)
  times = {run: records.seconds(run) for run in runs}
  listed = []
  for group in results.groups:
    known = [
      x for run, x in times.items() if run.arm == group.name and x is not None
    ]
    speed = [x for r in group.runs if (x := r.images_per_second) is not None]
    listed.append(
      (
        group.name,
        tables.number(medians.median(speed) if speed else None, ".0f"),
        tables.number(by_arm.get(group.name), ".2f"),
        tables.duration(medians.median(known) if known else None),
      )
    )
  head = ("arm", "images/s", "time of a step", "time of a run")
  note = (
    "Medians over seeds. The time of a step is relative to "
    f"{results.lab.reference}'s; a run's includes start, compilation, "
    "evaluations and saves, of all its starts."
  )
  return tables.Table("Costs", head, listed, (note,))


def relative_costs(results: labs.Results) -> dict[str, float]:
  """{arm: time of a step, relative to the reference's}, medians over seeds.

  Args:
    results: of the lab.
  """
  speeds = {
    group.name: [x for r in group.runs if (x := r.images_per_second)]
    for group in results.groups
  }
  reference = speeds.get(results.lab.reference)
  if not reference:
    return {}
  return {
    arm: medians.median(reference) / medians.median(found)
    for arm, found in speeds.items()
    if found
  }


def headline(results: labs.Results) -> tuple[str, str]:
  """The lab's question, and how far it is answered.

  Args:
    results: of the lab.
  """
  lab = results.lab
  done, total = len(results.finished), lab.seeds * len(lab.arms)
  better = [x for x in results.compared if x.said.startswith("gains")]
  worse = [x for x in results.compared if x.said.startswith("loses")]
  so_far = "" if done == total else f" so far ({done} of {total} runs)"
  text = (
    f"{len(lab.arms)} arms, {lab.seeds} seeds: {len(better)} better than "
    f"{lab.reference}, {len(worse)} worse{so_far}."
  )
  if better:
    best = max(better, key=lambda x: x.difference.mean)
    text += f" {best.arm} {best.said} points."
  return lab.question, text
