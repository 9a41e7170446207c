"""The methods of a run as it trained them, read from its workdir."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import ml_collections

from vitkd_jax.cluster import sharding
from vitkd_jax.data import datasets
from vitkd_jax.diagnostics import generation
from vitkd_jax.runs import students
from vitkd_jax.training import (
  assembly,
  lengths,
  method_sections,
  sections,
  teachers,
)


def maps(
  workdir: str,
  record: Mapping[str, Any],
  info: datasets.Info,
  image_size: tuple[int, int],
) -> generation.Trained | None:
  """The methods that make maps; None where the run has none.

  Args:
    workdir: of the run, with a checkpoint.
    record: from `reading.record`.
    info: of the dataset.
    image_size: (H, W) of its images, in pixels.

  Raises:
    ValueError: the teacher or the checkpoint cannot be read.
  """
  section = sections.split(ml_collections.ConfigDict(record["config"]))
  kept = {
    name: values
    for name, values in section["methods"].items()
    if _makes_maps(method_sections.kind_of(name, values))
    and any(method_sections.weights(name, values).values())
  }
  named = section["teachers"]
  taught = {
    method_sections.teacher_of(name, values, named)
    for name, values in kept.items()
  }
  section["methods"] = kept
  section["teachers"] = {name: named[name] for name in named if name in taught}
  section["task"] = {**section["task"], "teacher_drop": 0.0}
  if not kept:
    return None
  run = sections.make(sections.Run, "run", section["run"])
  objective, loaded = assembly.make_objective(
    section,
    info,
    image_size,
    # As the device here can.
    dataclasses.replace(run, attention="auto", fsdp_teacher=False),
    sharding.make_mesh(1, jax.local_devices()[:1]),
    length=lengths.Length(1, 1.0, run.batch_size, 1),
    from_file=True,
    pinned={
      name: teachers.Pin(**pin)
      for name, pin in (record.get("teachers") or {}).items()
    },
  )
  found = generation.Trained(
    objective,
    students.trained(workdir),
    {name: each.params for name, each in loaded.items()},
  )
  return found if found.made() else None


def _makes_maps(kind: type) -> bool:
  return any(hasattr(kind, name) for name in generation.KINDS)
