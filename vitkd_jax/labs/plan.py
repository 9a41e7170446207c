"""The runs of a lab: each arm's config, and a run for each of its seeds.

A lab's file is a config with an argument `arm`. With it, `get_config` returns
the config of that arm's training, which `vitkd_jax.train` takes as any other;
without it, the lab's own, see `description.make`.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import os
import re
import sys
from typing import Any

import ml_collections

from vitkd_jax.labs.description import Lab
from vitkd_jax.runs import history, reading, workdir
from vitkd_jax.training import defaults


@dataclasses.dataclass(frozen=True)
class Run:
  """One training of a lab.

  Attributes:
    arm: name of its arm.
    seed: its seed.
    workdir: its folder.
    options: of `vitkd_jax.train`.
  """

  arm: str
  seed: int
  workdir: str
  options: tuple[str, ...]

  def __str__(self) -> str:
    return f"{self.arm} seed {self.seed}"

  @property
  def command(self) -> list[str]:
    """The command that trains it."""
    return [sys.executable, "-m", "vitkd_jax.train", *self.options]


def command(runs: Sequence[Run]) -> list[str]:
  """The command that trains runs, several of them side by side.

  Args:
    runs: at least one.
  """
  if len(runs) == 1:
    return runs[0].command
  options = [x for run in runs for x in ("--", *run.options)]
  # The lab's jobs are processes that know nothing of each other.
  program = [sys.executable, "-m", "vitkd_jax.pack", "--num-processes=1"]
  return [*program, *options]


def completed(
  lab: Lab, configs: Mapping[str, ml_collections.ConfigDict]
) -> dict[str, dict[str, Any]]:
  """Each arm's config with every key, once they are known to go together.

  Args:
    lab: the lab.
    configs: of the arms' trainings, by name.

  Raises:
    ValueError: an arm's config is wrong, two arms are the same, or they differ
      in what the lab does not vary.
  """
  found = {}
  for name in lab.arms:
    try:
      plain = defaults.completed(configs[name]).to_dict()
    except ValueError as error:
      raise ValueError(f"arm {name}: {error}") from None
    found[name] = history.complete(plain, defaults.default)
  flat = {name: _flat(config) for name, config in found.items()}
  reference = flat[lab.reference]
  same: dict[str, str] = {}
  for name, own in flat.items():
    differing = [
      key
      for key in sorted(own.keys() | reference.keys())
      if own.get(key) != reference.get(key) and not _varies(lab, key)
    ]
    if differing:
      key = differing[0]
      more = f" and {len(differing) - 1} more keys" if differing[1:] else ""
      raise ValueError(
        f"arm {name} differs from {lab.reference} in config.{key} "
        f"({own.get(key)} for {reference.get(key)}){more}, which this lab does "
        f"not vary: it varies {', '.join(lab.varies)} (config.varies)"
      )
    text = json.dumps(own, sort_keys=True)
    if text in same:
      raise ValueError(f"arms {same[text]} and {name} are the same training")
    same[text] = name
  return found


def _flat(config: Mapping[str, Any]) -> dict[str, str]:
  """What makes a training, without its seed; equal values as equal text."""
  plain = json.loads(json.dumps(config, default=str))
  return {
    key: repr(value)
    for key, value in history.flatten(plain).items()
    if key != "run.seed"
    and not history.free(f"config.{key}")
    # An empty section, or a key that is not set.
    and value not in (None, {})
  }


def _varies(lab: Lab, key: str) -> bool:
  return any(key == name or key.startswith(f"{name}.") for name in lab.varies)


def digest(config: Mapping[str, Any]) -> str:
  """SHA-256, in hexadecimal, of what makes a training, without its seed.

  Args:
    config: a completed config.
  """
  run = {key: x for key, x in config["run"].items() if key != "seed"}
  return history.identity({"config": {**config, "run": run}})


def with_arm(file: str, arm: str) -> str:
  """The config of an arm's training, as --config names it.

  Args:
    file: of the lab, with its arguments after a colon.
    arm: name of the arm.
  """
  path, _, argument = file.partition(":")
  return f"{path}:{','.join(filter(None, (argument, f'arm={arm}')))}"


def runs(
  lab: Lab, file: str, folder: str, overrides: Sequence[str] = ()
) -> list[Run]:
  """The runs of a lab, all arms of a seed before the next seed.

  Args:
    lab: the lab.
    file: its file, with its arguments after a colon.
    folder: of the lab.
    overrides: further options of every training.
  """
  found = []
  for seed in range(lab.seeds):
    for arm in lab.arms:
      place = os.path.join(folder, arm, f"seed_{seed}")
      options = (
        f"--config={with_arm(file, arm)}",
        f"--config.run.seed={seed}",
        *overrides,
        f"--workdir={place}",
      )
      found.append(Run(arm, seed, place, options))
  return found


def finished(run: Run) -> bool:
  """Whether a run has been trained to its end.

  Args:
    run: the run.
  """
  return workdir.is_finished(run.workdir)


def check_holds(run: Run, config: Mapping[str, Any]) -> None:
  """Refuses a folder that holds another training than the lab's.

  Args:
    run: the run.
    config: of its arm, completed.

  Raises:
    ValueError: it does; the message says what differs.
  """
  found = reading.record(run.workdir)
  if found is None:
    return
  mine = json.loads(json.dumps(config, default=str))
  mine["run"]["seed"] = run.seed
  workdir.claim(
    run.workdir,
    ml_collections.ConfigDict(mine),
    found.get("teachers"),
    init=found.get("init"),
    default=defaults.default,
    write=False,
  )


def share(found: Sequence[Run], only: str) -> list[Run]:
  """The share of one of several machines, such as "2/4".

  Args:
    found: the runs.
    only: "i/n": every n-th, from the i-th, which counts from 1; empty for all.

  Raises:
    ValueError: it is of another form.
  """
  if not only:
    return list(found)
  match = re.fullmatch(r"(\d+)/(\d+)", only)
  if not match or not 1 <= int(match[1]) <= int(match[2]):
    raise ValueError(
      f"expected --only=i/n with i from 1 to n, such as 2/4, got {only!r}"
    )
  return list(found[int(match[1]) - 1 :: int(match[2])])


def teachers_differ(found: Sequence[reading.Run]) -> Iterator[str]:
  """A sentence for each teacher whose weights changed among the runs.

  Args:
    found: runs of a lab whose teachers are the same.
  """
  hashes: dict[str, dict[str, str]] = {}
  for run in found:
    for name, pin in run.teachers.items():
      path = (run.config.get("teachers") or {}).get(name, {}).get("weights")
      if pin.get("sha256"):
        hashes.setdefault(f"{path}", {}).setdefault(pin["sha256"], run.name)
  for path, by_hash in hashes.items():
    if len(by_hash) > 1:
      first, second, *_ = by_hash.values()
      yield (
        f"the teacher {path} changed between runs ({first} and {second}): "
        "their difference is not the arms' alone"
      )
