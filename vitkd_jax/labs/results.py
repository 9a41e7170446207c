"""What a lab's finished runs show, as rows, differences and tables."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
from typing import Any

from vitkd_jax.labs import plan, records, statistics
from vitkd_jax.labs.description import Claim, Lab
from vitkd_jax.reporting import summary
from vitkd_jax.runs import reading


@dataclasses.dataclass(frozen=True)
class Compared:
  """An arm beside the one that it is compared with, in points of top-1.

  Attributes:
    arm: name of the arm.
    against: name of the other arm.
    difference: of the two over the common seeds.
    p: of the difference, corrected for the other arms; None for one seed.
    said: the verdict, a clause.
    by_seed: {seed: difference}.
  """

  arm: str
  against: str
  difference: statistics.Difference
  p: float | None
  said: str
  by_seed: dict[int, float]


@dataclasses.dataclass(frozen=True)
class Tested:
  """A claim and what became of it.

  Attributes:
    claim: the claim.
    difference: of its arms, better minus worse, in points of top-1.
    p: of the difference, corrected for the other claims; None for one seed.
    said: the verdict, a clause.
  """

  claim: Claim
  difference: statistics.Difference
  p: float | None
  said: str


@dataclasses.dataclass(frozen=True)
class Results:
  """What is known of a lab.

  Attributes:
    lab: the lab.
    runs: {arm: {seed: finished run}}.
    compared: every arm but those that are compared with none.
    tested: every claim.
    wanted: difference in points for which numbers of seeds are stated.
  """

  lab: Lab
  runs: dict[str, dict[int, reading.Run]]
  compared: tuple[Compared, ...]
  tested: tuple[Tested, ...]
  wanted: float

  @property
  def finished(self) -> list[reading.Run]:
    """The finished runs, arm by arm."""
    return [run for by_seed in self.runs.values() for run in by_seed.values()]

  @property
  def groups(self) -> list[summary.Group]:
    """The arms that have a finished run, as a report groups runs."""
    return [
      summary.Group(arm, tuple(by_seed.values()))
      for arm, by_seed in self.runs.items()
      if by_seed
    ]


def read(lab: Lab, runs: Iterable[plan.Run], wanted: float) -> Results:
  """Reads what the finished runs of a lab logged, and compares the arms.

  Args:
    lab: the lab.
    runs: its runs.
    wanted: difference in points for which numbers of seeds are stated.
  """
  found: dict[str, dict[int, reading.Run]] = {arm: {} for arm in lab.arms}
  for run in runs:
    if not plan.finished(run):
      continue
    try:
      read_ = reading.read(run.workdir, str(run))
    except reading.NotARunError:
      continue  # its files went away
    if summary.final_top1(read_) is not None:
      found[run.arm][run.seed] = read_
  scores = {arm: points(by_seed) for arm, by_seed in found.items()}
  pairs = [(arm.name, arm.against) for arm in lab.arms.values() if arm.against]
  of_arms = _differences(scores, pairs)
  of_claims = _differences(scores, [(c.better, c.worse) for c in lab.claims])
  compared = tuple(
    Compared(
      arm,
      against,
      difference,
      p,
      statistics.verdict(difference, p),
      statistics.by_seed(scores[arm], scores[against]),
    )
    for (arm, against), (difference, p) in zip(pairs, of_arms, strict=True)
  )
  tested = tuple(
    Tested(claim, difference, p, _judged(difference, p))
    for claim, (difference, p) in zip(lab.claims, of_claims, strict=True)
  )
  return Results(lab, found, compared, tested, wanted)


def points(by_seed: Mapping[int, reading.Run]) -> dict[int, float]:
  """{seed: final top-1 in percent} of an arm's runs.

  Args:
    by_seed: its finished runs.
  """
  scores = {seed: summary.final_top1(run) for seed, run in by_seed.items()}
  return {seed: 100 * x for seed, x in scores.items() if x is not None}


def _differences(
  scores: Mapping[str, Mapping[int, float]],
  pairs: Sequence[tuple[str, str]],
) -> list[tuple[statistics.Difference, float | None]]:
  """Each pair's difference, and its p-value corrected for the others."""
  found = [statistics.paired(scores[a], scores[b]) for a, b in pairs]
  tested = [x.p for x in found if x.p is not None]
  adjusted = iter(statistics.holm(tested))
  return [(x, None if x.p is None else next(adjusted)) for x in found]


def _judged(difference: statistics.Difference, p: float | None) -> str:
  said = statistics.verdict(difference, p)
  if p is None or p >= statistics.ALPHA:
    return f"not decidable: {said}"
  kind = "confirmed" if difference.mean > 0 else "refuted"
  return f"{kind}: the first {said}"


def rows(
  results: Results, runs: Iterable[plan.Run], configs: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """One record a finished run, for results/LAB.jsonl.

  Args:
    results: of the lab.
    runs: of the lab.
    configs: of the arms, completed.

  Returns:
    Dicts with "lab", "dataset", "arm", "seed", "config_sha256" (of the arm's
    config without its seed), "metrics" (the last evaluation; shares in [0, 1]),
    "steps", "seconds" and "host".
  """
  found = []
  for run in runs:
    done = results.runs[run.arm].get(run.seed)
    if done is None:
      continue
    known = records.record(run)
    scores = {
      name.removeprefix("eval_"): series.final
      for name, series in sorted(done.series.items())
      if name.startswith("eval_")
    }
    config = configs[run.arm]
    found.append(
      {
        "lab": results.lab.name,
        "dataset": config["data"]["name"],
        "arm": run.arm,
        "seed": run.seed,
        "config_sha256": plan.digest(config),
        "metrics": scores,
        "steps": done.step,
        "seconds": known.get("seconds"),
        "host": known.get("host"),
      }
    )
  return found


def jsonl(records: Iterable[Mapping[str, Any]]) -> str:
  """Records as lines of JSON.

  Args:
    records: from `rows`.
  """
  return "".join(json.dumps(record) + "\n" for record in records)
