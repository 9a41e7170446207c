"""A workdir: which run it holds, and where its files are."""

from collections.abc import Mapping
import json
import os
from typing import Any

from etils import epath
import ml_collections

from vitkd_jax.runs import history, reading
from vitkd_jax.weights import resolve


def checkpoint_dir(workdir: str) -> str:
  """Where the checkpoints lie."""
  return os.path.join(workdir, "checkpoints")


def export_path(workdir: str) -> str:
  """The student's final weights."""
  return os.path.join(workdir, resolve.EXPORTED)


def claim(
  workdir: str,
  config: ml_collections.ConfigDict,
  teacher_sha256: str | None = None,
  command: str | None = None,
  *,
  default: history.Default,
  teacher_step: int | None = None,
  about: Mapping[str, Any] | None = None,
  write: bool = True,
) -> None:
  """Makes the workdir this run's, or refuses one that holds another.

  A run at a constant learning rate may grow: more epochs change nothing of
  those that are done.

  Args:
    workdir: a folder, made if it is not there.
    config: of the run; written to config.json.
    teacher_sha256: hash of the teacher's weights, if there is a teacher.
    command: the command line, for the record.
    default: of a key that one of the two configs lacks.
    teacher_step: of the checkpoint that they are, if they are one.
    about: what else is recorded of the run, by name; not compared.
    write: False only looks.

  Raises:
    ValueError: the workdir holds a run with another config or teacher, or
      files of something else; the message names what differs.
  """
  folder = epath.Path(workdir)
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"workdir {workdir} is a file, not a folder")
  # Through JSON, so that tuples and lists compare equal.
  record = json.loads(
    json.dumps(
      {
        "config": history.complete(config.to_dict(), default),
        "teacher_sha256": teacher_sha256,
        "teacher_step": teacher_step,
      },
      default=str,
    )
  )
  old, grown = reading.record(workdir), False
  if old is None:
    for name in ("checkpoints", "metrics.jsonl"):
      if (folder / name).exists():
        raise ValueError(
          f"workdir {workdir} holds {name} but no config.json, so the run that "
          "it belongs to is unknown; take an empty workdir"
        )
  else:
    if old.get("teacher_sha256") is None and "teacher_step" not in old:
      # Before checkpoints were pinned: it may be any teacher.
      old |= {name: record[name] for name in ("teacher_sha256", "teacher_step")}
    compared = {name: old.get(name) for name in record}
    differing = dict(sorted(_differences(compared, record, default)))
    grown = list(differing) == ["config.run.epochs"] and _longer(old, record)
    if grown and not _constant_rate(record):
      raise ValueError(
        f"workdir {workdir} holds a run whose learning rate falls over its "
        f"{old['config']['run']['epochs']} epochs: a longer one differs from "
        "the first step on and wants another workdir; only a run at a constant "
        "rate (config.schedule.end equal to config.schedule.peak) may grow"
      )
    if differing and not grown:
      some = [
        f"{name} was {was!r} and is {now!r}"
        for name, (was, now) in list(differing.items())[:4]
      ]
      raise ValueError(
        f"workdir {workdir} holds a different run: {'; '.join(some)}; "
        "take another workdir, or the config it was started with"
        + ("" if _saved(folder) else ", or delete it: it holds no results yet")
      )
  if not write:
    return
  record = {**(about or {}), **record, "command": command}
  folder.mkdir(parents=True, exist_ok=True)
  if grown:  # what is exported says that the run is done
    epath.Path(export_path(workdir)).unlink(missing_ok=True)
  temporary = folder / "config.json.tmp"
  temporary.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
  temporary.replace(folder / "config.json")


def _longer(old, new):
  return new["config"]["run"]["epochs"] > old["config"]["run"]["epochs"]


def _constant_rate(record):
  """Whether the learning rate does not depend on how long the run is."""
  schedule = record["config"].get("schedule") or {}
  return "end" in schedule and schedule["end"] == schedule.get("peak")


def _saved(folder):
  """Whether a run has left more than its config."""
  return (folder / "metrics.jsonl").exists() or any(
    folder.glob("checkpoints/[0-9]*")
  )


def _flatten(tree, prefix=""):
  if not isinstance(tree, dict):
    return {prefix: tree}
  flat = {}
  for name, value in tree.items():
    flat |= _flatten(value, f"{prefix}.{name}" if prefix else name)
  return flat


def _differences(old, new, default):
  old, new = _flatten(old), _flatten(new)
  for name in old.keys() | new.keys():
    # An older config.json lacks the keys that are new.
    was, now = (flat.get(name, default(name)) for flat in (old, new))
    if name not in history.FREE and was != now:
      yield name, (was, now)
