"""A workdir: the run it belongs to, and the paths of its files."""

from collections.abc import Iterator, Mapping
import fnmatch
import json
import os
from typing import Any

from etils import epath
import ml_collections

from vitkd_jax import remote
from vitkd_jax.runs import history, legacy, reading
from vitkd_jax.weights import resolve


def checkpoint_dir(workdir: str) -> str:
  """The folder of a run's checkpoints.

  Args:
    workdir: a folder or a URL.
  """
  return os.path.join(workdir, "checkpoints")


def export_path(workdir: str) -> str:
  """The file of the student that a run exports.

  Args:
    workdir: a folder or a URL.
  """
  return os.path.join(workdir, resolve.EXPORTED)


def is_finished(workdir: str) -> bool:
  """Whether the run of a workdir was trained to its end.

  Args:
    workdir: a folder or a URL.
  """
  return epath.Path(export_path(workdir)).exists()


def has_checkpoint(workdir: str) -> bool:
  """Whether a run has saved a checkpoint, intact or not.

  Args:
    workdir: a folder or a URL.
  """
  folder = epath.Path(checkpoint_dir(workdir))
  # Those that are being written have longer names.
  return folder.is_dir() and any(x.name.isdecimal() for x in folder.iterdir())


# What a run and `report` write into a workdir.
_WRITTEN = (
  "checkpoints",
  "compilation_cache",
  "config.json",
  "events.out.tfevents.*",
  "lock",
  "metrics.jsonl",
  "plugins",
  "report",
  "stacks-process-*.txt",
  resolve.EXPORTED,
  "train.log",
  "wandb",
)


def delete(workdir: str) -> list[str]:
  """Deletes what a run has written, and the workdir if nothing else is in it.

  Args:
    workdir: a folder or a URL, whose run has ended.

  Returns:
    Names of the files and folders of others, which stay.

  Raises:
    OSError: something cannot be deleted.
  """
  folder, left = epath.Path(workdir), []
  for path in sorted(folder.iterdir()):
    if not any(fnmatch.fnmatchcase(path.name, name) for name in _WRITTEN):
      left.append(path.name)
    elif path.is_dir():
      path.rmtree()
    else:
      path.unlink()
  if not left and not remote.is_remote(workdir):  # buckets have no folders
    folder.rmdir()
  return left


def claim(
  workdir: str,
  config: ml_collections.ConfigDict,
  teachers: Mapping[str, Mapping[str, Any]] | None = None,
  command: str | None = None,
  *,
  init: Mapping[str, Any] | None = None,
  default: history.Default,
  about: Mapping[str, Any] | None = None,
  write: bool = True,
) -> None:
  """Makes a workdir this run's, or refuses one that holds another run.

  A run with a constant learning rate may be extended: more epochs do not change
  those already done.

  Args:
    workdir: a folder, created if missing, or a URL.
    config: of the run; written to config.json.
    teachers: {name: {"sha256": hash of a teacher's weights, "step": of its
      checkpoint, None for a file}}.
    command: the command line, to be recorded.
    init: as for a teacher, of the weights that the student started from; None
      for random ones.
    default: of a key that one of the two configs lacks.
    about: further entries of config.json by name, not compared.
    write: False to compare only.

  Raises:
    ValueError: the workdir holds a run with another config, teacher or first
      weights, or files of an unknown run; the message names what differs.
  """
  folder = epath.Path(workdir)
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"expected workdir {workdir} to be a folder, got a file")
  # Through JSON, so that tuples and lists compare equal.
  record = json.loads(
    json.dumps(
      {
        "config": history.complete(legacy.modern(config.to_dict()), default),
        "teachers": teachers or {},
        "init": init,
      },
      default=str,
    )
  )
  old, grown = reading.record(workdir), False
  if old is None:
    for name in ("checkpoints", "metrics.jsonl"):
      if (folder / name).exists():
        raise ValueError(
          f"workdir {workdir} holds {name} of an unknown run, as it has no "
          "config.json; use an empty workdir"
        )
  else:
    # Older runs did not pin the teacher: it may be any.
    old = {"teachers": record["teachers"], **old}
    compared = {name: old.get(name) for name in record}
    differing = dict(sorted(_differences(compared, record, default)))
    grown = list(differing) == ["config.run.epochs"] and _longer(old, record)
    if grown and not _constant_rate(record):
      raise ValueError(
        f"workdir {workdir} holds a run whose learning rate falls over its "
        f"{old['config']['run']['epochs']} epochs, so a longer run differs "
        "from the first step on: use another workdir; only a run with a "
        "constant rate (config.schedule.end equal to config.schedule.peak) can "
        "be extended"
      )
    if differing and not grown:
      some = [
        f"{name} was {was!r} and is {now!r}"
        for name, (was, now) in list(differing.items())[:4]
      ]
      raise ValueError(
        f"workdir {workdir} holds a different run: {'; '.join(some)}; "
        "use another workdir, or the config it was started with"
        + ("" if _saved(folder) else ", or delete it: it holds no results yet")
      )
  if not write:
    return
  record = {**(about or {}), **record, "command": command}
  folder.mkdir(parents=True, exist_ok=True)
  if grown:  # the exported student marks a run as finished
    epath.Path(export_path(workdir)).unlink(missing_ok=True)
  temporary = folder / "config.json.tmp"
  temporary.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
  temporary.replace(folder / "config.json")


def _longer(old: dict[str, Any], new: dict[str, Any]) -> bool:
  return new["config"]["run"]["epochs"] > old["config"]["run"]["epochs"]


def _constant_rate(record: dict[str, Any]) -> bool:
  """Whether the learning rate is the same for any number of epochs."""
  schedule = record["config"].get("schedule") or {}
  return "end" in schedule and schedule["end"] == schedule.get("peak")


def _saved(folder: epath.Path) -> bool:
  """Whether a run has written more than its config."""
  return (folder / "metrics.jsonl").exists() or any(
    folder.glob("checkpoints/[0-9]*")
  )


def _differences(
  old: dict[str, Any], new: dict[str, Any], default: history.Default
) -> Iterator[tuple[str, tuple[Any, Any]]]:
  old, new = history.flatten(old), history.flatten(new)
  for name in old.keys() | new.keys():
    # An older config.json lacks newer keys.
    was, now = (flat.get(name, default(name)) for flat in (old, new))
    if not history.free(name) and was != now:
      yield name, (was, now)
