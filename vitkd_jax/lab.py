r"""Compares arms over seeds: trains what is missing, then says what it shows.

  python -m vitkd_jax.lab --config configs/labs/guidelines.py --workdir DIR
  python -m vitkd_jax.lab --config configs/labs/methods.py:epochs=4 \
      --workdir DIR --jobs 2 --config.seeds=5 -- --config.run.batch_size=128
  python -m vitkd_jax.lab --config configs/labs/methods.py:data=imagenet \
      --workdir DIR --dry-run

Each arm and seed is a training of its own, in DIR/ARM/seed_K; the same command
goes on with a stopped lab, and passes over what is finished. What follows "--"
goes to every training. DIR gets results.jsonl, table.md and
report/index.html.

Exit status: 0 if all runs are finished, or the budget or the share was, or
after SIGTERM; 1 if a run failed; 2 for a wrong command line; 130 after Ctrl-C.
"""

from collections.abc import Mapping, Sequence
import contextlib
import datetime
import functools
import math
import shlex
import signal
import sys
import time
from typing import Any

from absl import flags
from etils import epath
import jax
from ml_collections import config_flags
import rich.console

from vitkd_jax import errors
from vitkd_jax.commandline import arguments, command
from vitkd_jax.data import printable
from vitkd_jax.labs import (
  description,
  estimates,
  figures,
  launching,
  plan,
  records,
  results,
  shown,
)
from vitkd_jax.reporting import page, pictures
from vitkd_jax.runs import lock
from vitkd_jax.training import packing

# Seconds between lines in a log while no run ends.
_PAUSE = 60.0


def main(argv: Sequence[str]) -> None:
  """The command line.

  Args:
    argv: the program's name and the options of every training.
  """
  # The accelerators are the trainings'.
  jax.config.update("jax_platforms", "cpu")
  given: Any = flags.FLAGS
  folder = given.workdir
  command.require("workdir", folder)
  file = config_flags.get_config_filename(given["config"])
  overrides = list(argv[1:])
  for option in overrides:
    if not option.startswith("--config."):
      raise command.RefusedError(
        "expected what follows -- to be --config.SECTION.KEY=VALUE, got "
        f"{option!r}"
      )
  with command.refusing():
    lab = description.make(command.config().to_dict())
    configs = plan.completed(
      lab,
      {
        arm: arguments.load(plan.with_arm(file, arm), overrides)
        for arm in lab.arms
      },
    )
    every = plan.runs(lab, file, folder, overrides)
    runs = plan.share(every, given.only)
    for run in every:
      plan.check_holds(run, configs[run.arm])
    if given.jobs < 1:
      raise ValueError(f"expected --jobs >= 1, got {given.jobs}")
    if given.pack < 1:
      raise ValueError(f"expected --pack >= 1, got {given.pack}")
    if given.budget is not None and not 0 < given.budget < math.inf:
      raise ValueError(f"expected --budget > 0, got {given.budget}")
    if not 0 < given.difference < math.inf:
      raise ValueError(f"expected --difference > 0, got {given.difference}")
    costs = {arm: estimates.of(lab, configs[arm]) for arm in lab.arms}
  if given["dry-run"].value:
    _dry_run(lab, costs, runs)
    return
  held = epath.Path(folder)
  if given.only:
    held = held / "shares" / given.only.replace("/", "_of_")
  with contextlib.ExitStack() as stack:
    with command.refusing():
      stack.enter_context(lock.hold(str(held)))
    outcome = _train(lab, runs, configs, given)
    report(lab, every, configs, folder, given.difference)
  _conclude(outcome)


def _dry_run(
  lab: description.Lab,
  costs: Mapping[str, estimates.Cost],
  runs: Sequence[plan.Run],
) -> None:
  """Prints each run's command and what it will take."""
  total = hours = 0.0
  times = {run: records.seconds(run) for run in runs if plan.finished(run)}
  for run in runs:
    done, needed = run in times, records.expected(run, times)
    cost = costs[run.arm]
    said = [f"{cost.images:,} images", estimates.in_words(cost.flops)]
    if cost.chip_hours is not None:
      said.append(f"{cost.chip_hours:.3g} chip-hours of {lab.chip}")
    if done:
      said = ["finished"]
    elif needed is not None:
      said.append(f"about {datetime.timedelta(seconds=round(needed))} here")
    print(f"# {run}: {', '.join(said)}")
    print("python", shlex.join(run.command[1:]))
    if not done:
      total += needed or 0.0
      hours += cost.chip_hours or 0.0
  ahead = len(runs) - len(times)
  said = [f"{ahead} of {len(runs)} runs to train"]
  if hours:
    said.append(f"{hours:,.4g} chip-hours of {lab.chip} by the estimate of "
                "docs/clusters.md")  # fmt: skip
  if total:
    said.append(f"about {datetime.timedelta(seconds=round(total))} here, by "
                "the runs that have ended")  # fmt: skip
  elif ahead:
    said.append("how long they take here is known once one has ended")
  print(f"# {', '.join(said)}", flush=True)


def _train(
  lab: description.Lab,
  runs: Sequence[plan.Run],
  configs: Mapping[str, Mapping[str, Any]],
  given: Any,
) -> launching.Outcome:
  """Trains what is missing, with one line of progress."""

  def together(one: plan.Run, other: plan.Run) -> bool:
    own, theirs = configs[one.arm], configs[other.arm]
    return one.seed == other.seed and not packing.differ(own, theirs)

  train = functools.partial(
    launching.train,
    runs,
    jobs=given.jobs,
    budget=None if given.budget is None else given.budget * 60,
    pack=given.pack,
    together=together,
  )
  stderr = rich.console.Console(stderr=True, highlight=False, markup=False)
  if stderr.is_terminal:
    with stderr.status(lab.name) as status:
      return train(say=lambda line, _: status.update(f"{lab.name}: {line}"))
  printed = -_PAUSE

  def say(line: str, ended: bool) -> None:
    nonlocal printed
    if ended or time.monotonic() - printed >= _PAUSE:
      printed = time.monotonic()
      print(f"{lab.name}: {line}", file=sys.stderr, flush=True)

  return train(say=say)


def report(
  lab: description.Lab,
  runs: Sequence[plan.Run],
  configs: Mapping[str, Mapping[str, Any]],
  folder: str,
  difference: float,
) -> None:
  """Writes and prints what the finished runs show.

  Args:
    lab: the lab.
    runs: its runs.
    configs: of the arms, completed.
    folder: where to write, local or gs://.
    difference: in points, for which numbers of seeds are stated.

  Raises:
    command.FailedError: it cannot be written.
  """
  found = results.read(lab, runs, difference)
  if not found.finished:
    return
  made = shown.make_tables(found)
  title, lead = shown.headline(found)
  markdown = "\n".join(
    [f"# {title}", "", lead, "", *(table.markdown() for table in made)]
  )
  drawn = pictures.each(
    [
      ("gains", "Gains", functools.partial(figures.gains, found)),
      pictures.accuracy(found.groups),
      ("costs", "Gain against cost", functools.partial(figures.costs, found)),
    ]
  )
  html = page.render(
    found.groups,
    [*made[:1], *drawn, *made[1:], shown.costs(found, runs)],
    command.line(),
    said=(title, lead),
  )
  target = epath.Path(folder)
  lines = results.jsonl(results.rows(found, runs, configs))
  try:
    pictures.write(target / "report", {"index.html": html}, drawn)
    pictures.write(target, {"table.md": markdown, "results.jsonl": lines})
  except OSError as error:
    raise command.FailedError(
      f"cannot write to {folder}: {error.strerror}"
    ) from error
  print(markdown)
  print(f"report: {target}/report/index.html", flush=True)


def _conclude(outcome: launching.Outcome) -> None:
  """Says which runs are missing."""
  if outcome.failed:
    by_reason: dict[str, list[plan.Run]] = {}
    for run, why in outcome.failed.items():
      by_reason.setdefault(why, []).append(run)
    listed = "; ".join(
      f"{_some(found)}: {printable.printable(why)}"
      for why, found in by_reason.items()
    )
    raise command.FailedError(f"{len(outcome.failed)} failed: {listed}")
  if outcome.stopped is not None:
    interrupted = outcome.stopped == signal.SIGINT
    raise errors.PreemptedError(
      "stopped; the same command goes on",
      errors.INTERRUPTED if interrupted else 0,
    )
  if outcome.left:
    print(
      f"{len(outcome.left)} runs are left, as the budget is over or they were "
      "told to stop; the same command goes on",
      flush=True,
    )


def _some(runs: Sequence[plan.Run]) -> str:
  more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
  return ", ".join(map(str, runs[:3])) + more


def _define_flags() -> None:
  command.define_path("workdir", None, "folder of the lab, local or gs://")
  flags.DEFINE_integer(
    "jobs", 1, "trainings at a time, which share the cores or the GPUs"
  )
  flags.DEFINE_integer(
    "pack",
    1,
    "trainings of a seed in one process, side by side, with one pass of the "
    "teacher for all of them",
  )
  flags.DEFINE_string(
    "only",
    "",
    "i/n: train the i-th of n shares of the runs, for several machines that "
    "share the folder",
  )
  flags.DEFINE_float(
    "budget",
    None,
    "minutes; a seed that does not fit is left out for all arms, and then "
    "single runs",
  )
  flags.DEFINE_float(
    "difference",
    0.5,
    "points of top-1 for which the number of seeds that shows them is stated",
  )
  flags.DEFINE_boolean(
    "dry-run", False, "print the trainings' commands and what they take"
  )


if __name__ == "__main__":
  _define_flags()
  command.run(main, with_config=True, allow_positional=True)
