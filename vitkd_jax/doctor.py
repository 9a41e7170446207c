r"""Checks a training before it starts: config, data, teacher, gradients.

  python -m vitkd_jax.doctor --config configs/quickstart.py:method=both
  python -m vitkd_jax.doctor --config configs/vitkd_i1k.py:pair=l3-b \
      --topology v5e-256 --json l3-b.json

With --topology it compiles the step for a TPU slice instead, on any machine,
and prints the memory it takes of each chip, what the chips send each other and
how many cycles it takes by the compiler's estimate. This needs neither the
dataset nor the teacher's weights.

It writes only the file of --json. Exit status: 0 if all is well, 1 if a check
failed, 2 for a config that cannot be built.
"""

from collections.abc import Collection, Iterator, Sequence
import contextlib
import json
import pathlib
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from vitkd_jax.cluster import sharding
from vitkd_jax.commandline import command
from vitkd_jax.data import augment
from vitkd_jax.distill import frozen as frozen_leaves
from vitkd_jax.distill import objective as objectives
from vitkd_jax.estimate import findings, flops, gradients
from vitkd_jax.training import experiment, inputs, teacher_check
from vitkd_jax.training import state as states

Finding = findings.Finding
examine_slice = findings.examine_slice
# "image" uint8 [B, H, W, 3] and "label" int32 [B].
Batch = dict[str, Any]


def examine(config: ml_collections.ConfigDict) -> list[Finding]:
  """All findings about a config, see `findings_of`.

  Args:
    config: a training's config.

  Raises:
    ValueError: the config cannot be built.
  """
  return [x for x in findings_of(config) if isinstance(x, Finding)]


def findings_of(
  config: ml_collections.ConfigDict,
) -> Iterator[Finding | str]:
  """The findings about a config, each as soon as it is known.

  A string announces what takes a while.

  Args:
    config: a training's config.

  Raises:
    ValueError: the config cannot be built.
  """
  yield "reading the dataset's description, and the teacher"
  parts = experiment.build(config)
  yield from _plan(parts)
  yield "reading a batch of images"
  batch = _first_batch(parts)
  yield from _data(parts, batch)
  yield "compiling the train step, which takes the longest"
  state = parts.create_state()
  yield from _compiled(parts, state)
  # What follows needs no more memory than the step: one gradient-accumulation
  # step's images, split over the devices as in training.
  batch = {name: x[:: parts.run.accumulate] for name, x in batch.items()}
  batch = sharding.global_batch(batch, parts.mesh)
  yield _normalised("student", parts.objective.student_stats, batch)
  for name in parts.objective.teachers:
    yield f"running {name} on the batch"
    yield from _teacher(parts, name, batch)
  yield "computing the gradient of each parameter"
  yield from _gradients(parts, state, batch)


def _first_batch(parts: experiment.Experiment) -> Batch:
  assert isinstance(parts.inputs, inputs.Inputs)  # nothing is planned here
  with contextlib.closing(parts.inputs.train(0)) as batches:
    return next(batches)


def _plan(parts: experiment.Experiment) -> Iterator[Finding]:
  run, mesh = parts.run, dict(parts.mesh.shape)
  yield Finding(
    "run",
    f"{parts.total_steps} steps of {run.batch_size} images "
    f"({run.epochs:g} epochs of {parts.steps_per_epoch:.1f} steps), seed "
    f"{run.seed}, mesh {mesh} of {jax.devices()[0].platform}",
  )
  terms = (f"{t} x {w}" for t, w in parts.objective.described().items())
  yield Finding("losses", ", ".join(terms))
  if parts.start is not None:
    begun = parts.start
    for note in (f"{begun.keys.init}, {begun.pin}", *begun.notes):
      yield Finding("first weights", note)
  rates = parts.schedule(jnp.arange(parts.total_steps + 1))
  yield Finding(
    "learning rate",
    f"{rates[0]:.1e} at the start, {rates.max():.1e} at most, "
    f"{rates[-1]:.1e} at the end",
  )


def _data(parts: experiment.Experiment, batch: Batch) -> Iterator[Finding]:
  info = parts.info
  yield Finding(
    "data",
    f"{info.name}: train {parts.data.train_split!r}, evaluation "
    f"{parts.data.eval_split!r}, {info.num_classes} classes, images "
    f"{batch['image'].shape[1:]} {batch['image'].dtype}",
  )
  low, high = int(batch["label"].min()), int(batch["label"].max())
  yield Finding(
    "labels",
    f"{low} to {high} in the first batch",
    low >= 0 and high < info.num_classes,
  )
  spread = float(np.std(batch["image"]))
  yield Finding("pixels", f"standard deviation {spread:.1f} of 255", spread > 1)


def _normalised(who: str, stats: objectives.Stats, batch: Batch) -> Finding:
  image = augment.normalize(jnp.float32(batch["image"]) / 255, *stats)
  return Finding(
    f"{who}'s images",
    f"normalised by mean {stats[0]} and std {stats[1]} they have mean "
    f"{image.mean():+.2f} and std {image.std():.2f}",
  )


def _teacher(
  parts: experiment.Experiment, name: str, batch: Batch
) -> Iterator[Finding]:
  objective = parts.objective
  teacher, params = objective.teachers[name], parts.teacher_params[name]
  yield Finding(
    name,
    f"{sum(x.size for x in jax.tree.leaves(params)):,} "
    f"parameters in {teacher.model.dtype_mm}, {parts.teacher_pins[name]}",
  )
  for note in parts.teacher_notes[name]:
    yield Finding(f"{name}'s weights", note)
  yield _normalised(name, teacher.stats, batch)
  yield _accuracy(parts, name, batch)
  if maps := objective.learned_from(name).maps:
    grid, own = teacher.side.grid, objective.student_side.grid
    yield Finding(
      "token maps",
      f"{len(maps)} of {name} on a grid of {grid[0]}x{grid[1]} and "
      f"{teacher.side.width} channels; the student's are of {own[0]}x{own[1]} "
      f"and {objective.student_side.width}"
      + (", those of the teacher resampled" if grid != own else ""),
    )
  if len(objective.teachers) > 1:
    for (block, place), scale in teacher_check.scales(
      parts, name, batch
    ).items():
      yield Finding(
        f"{name}'s scale",
        f"PHI-S multiplies the map {place} of block {block} by {scale:.4g} "
        f"(config.teachers.{name}.scale is {teacher.scale:g})",
      )


def _accuracy(parts: experiment.Experiment, name: str, batch: Batch) -> Finding:
  what = f"{name}'s accuracy"
  model = parts.objective.teachers[name].model
  if model.num_classes != parts.info.num_classes:
    return Finding(what, "unknown: its classes are not the dataset's")
  score = teacher_check.score(parts, name, batch)
  return Finding(what, str(score), score.good)


def _gradients(
  parts: experiment.Experiment, state: states.TrainState, batch: Batch
) -> Iterator[Finding]:
  """One batch's loss terms, and whether every parameter gets a gradient."""
  compute = gradients.make(parts)
  found = compute(state.params, batch)
  loss, norm = (
    sum(each.values()) for each in (found.weighted, found.student_norms)
  )
  for term, raw in found.means.items():
    weighted, own = found.weighted[term], found.student_norms[term]
    yield Finding(
      f"{term} loss",
      f"{raw:.4g} raw, {weighted:.4g} weighted, {weighted / loss:.0%} of the "
      f"total and {own / norm:.0%} of the student's gradient norms, before the "
      "first step",
      bool(np.isfinite(raw)),
    )
  frozen = parts.objective.frozen
  norms = found.leaf_norms
  dead = _without_gradient(norms, frozen)
  opened = _opened(state.params)
  waiting = opened is not None and dead["student"]
  if waiting:  # do they get one once the head is no longer zero?
    norms = compute(opened, batch).leaf_norms
    dead = _without_gradient(norms, frozen)
  for part in objectives.PARTS:
    total = len(jax.tree.leaves(norms[part]))
    total -= len(frozen) if part == "student" else 0
    if not total:
      continue
    said = f"{total - len(dead[part])} of {total} parameters get one"
    if dead[part]:
      said += f"; none for {', '.join(dead[part][:4])}"
    if part == "student" and waiting:
      said += (
        f"; {len(waiting)} of them from the second step on, as expected: the "
        "classification head starts at zero and passes none before"
      )
    if part == "student" and frozen:
      said += f"; {len(frozen)} are frozen"
    yield Finding(f"gradients of the {part}", said, not dead[part])


def _without_gradient(
  norms: Any, frozen: Collection[str] = ()
) -> dict[str, list[str]]:
  """{part: names of parameters whose gradient is zero or not finite}."""
  return {
    part: [
      jax.tree_util.keystr(path, simple=True, separator="/")
      for path, norm in jax.tree_util.tree_flatten_with_path(tree)[0]
      if not (np.isfinite(norm) and norm > 0)
      and not (part == "student" and frozen_leaves.name_of(path) in frozen)
    ]
    for part, tree in norms.items()
  }


def _opened(params: Any) -> Any:
  """The parameters with zero student heads made random; None without any."""
  student, key = dict(params["student"]), jax.random.key(0)
  closed = [
    name
    for name in ("head", "head_dist")
    if name in student and not jnp.any(student[name]["kernel"])
  ]
  for name in closed:
    kernel = student[name]["kernel"]
    noise = 0.02 * jax.random.normal(key, kernel.shape, kernel.dtype)
    noise = jax.device_put(noise, kernel.sharding)
    student[name] = student[name] | {"kernel": noise}
  return {**params, "student": student} if closed else None


def _compiled(
  parts: experiment.Experiment, state: states.TrainState
) -> Iterator[Finding]:
  _, teacher_params, given = parts.step_shapes()
  compiled = (
    parts.make_train_step().lower(state, teacher_params, given).compile()
  )
  memory = compiled.memory_analysis()
  yield Finding(
    "memory per device",
    f"{findings.mebibytes(memory.argument_size_in_bytes)} for arguments and "
    f"{findings.mebibytes(memory.temp_size_in_bytes)} for the step itself",
  )
  held = {
    "parameters": state.params,
    "optimiser": state.opt_state,
    "moving average": state.ema,
    "teachers": teacher_params,
    **({"images": given} if parts.data.placement == "device" else {}),
  }
  yield Finding(
    "arrays, unsharded",
    ", ".join(
      f"{name} "
      + findings.mebibytes(
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
      )
      for name, tree in held.items()
    ),
  )
  work = flops.per_image(parts.objective)["total"]
  work *= parts.run.batch_size / parts.mesh.size
  yield Finding(
    "work",
    f"{work / 1e9:.1f} GFLOP per step and device, in matrix products",
  )


def main(argv: Sequence[str]) -> None:
  """The command line.

  Args:
    argv: the program's name.
  """
  del argv
  name, path = flags.FLAGS.topology, flags.FLAGS.json
  if path and not name:
    raise command.RefusedError("--json needs --topology")
  if name:
    jax.config.update("jax_platforms", "cpu")
    found = _of_slice(command.config(), name, path)
  else:
    found = findings_of(command.config())
  shown = findings.Shown()
  while True:
    with command.refusing():
      finding = next(found, None)
    if finding is None:
      break
    shown.show(finding)
  if shown.wrong:
    raise command.FailedError(
      f"something is wrong with: {', '.join(shown.wrong)}"
    )
  print("all is well", flush=True)


def _of_slice(
  config: ml_collections.ConfigDict, name: str, path: str | None
) -> Iterator[Finding | str]:
  """The findings of the TPU's compiler, which are also written to a file."""
  yield f"compiling the train step for {name}, which takes minutes"
  found, report = examine_slice(config, name)
  if path:
    pathlib.Path(path).write_text(json.dumps(report, indent=2) + "\n")
  yield from found


if __name__ == "__main__":
  flags.DEFINE_string(
    "topology", None, "TPU slice to compile for: v5e-256, v4-32, v5p:2x2x4, ..."
  )
  command.define_path("json", None, "file for the report of --topology")
  command.run(main, with_config=True)
