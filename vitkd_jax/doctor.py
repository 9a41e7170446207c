r"""Examines a training before it starts: config, data, teacher, gradients.

  python -m vitkd_jax.doctor --config configs/quickstart.py:method=both
  python -m vitkd_jax.doctor --config configs/vitkd_i1k.py:pair=l3-b \
      --topology v5e-256 --json l3-b.json

With --topology the step is compiled for a TPU slice instead, on any machine:
what it takes of each chip's memory, what the chips send each other, how many
cycles it lasts by the compiler's estimate. Neither the data set nor the
teacher's weights need to be there.

Nothing is written but the file after --json. Exit status 0 if all is well, 1
if a check failed, 2 for a config that cannot be built.
"""

import collections
import contextlib
import dataclasses
import json
import pathlib
import sys

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from vitkd_jax import command
from vitkd_jax.data import augment
from vitkd_jax.training import experiment, sharding, topology
from vitkd_jax.training import objective as objectives


@dataclasses.dataclass(frozen=True)
class Finding:
  """One line of the examination; `good` is None for mere information."""

  what: str
  found: str
  good: bool | None = None


def examine(config) -> list[Finding]:
  """All findings about a config.

  Raises:
    ValueError: the config cannot be built.
  """
  parts = experiment.build(config)
  batch = _first_batch(parts)
  state = parts.create_state()
  findings = [*_plan(parts), *_data(parts, batch)]
  findings += _compiled(parts, state, batch)
  # What follows needs no more memory than the step: one micro-batch, split
  # over the devices as in training.
  batch = {name: x[:: parts.run.accumulate] for name, x in batch.items()}
  batch = sharding.global_batch(batch, parts.mesh)
  if parts.objective.teacher is not None:
    findings += _teacher(parts, batch)
  findings += _gradients(parts, state, batch)
  return findings


def _first_batch(parts):
  with contextlib.closing(parts.inputs.train(0)) as batches:
    return next(batches)


def _plan(parts):
  run, mesh = parts.run, dict(parts.mesh.shape)
  yield Finding(
    "run",
    f"{parts.total_steps} steps of {run.batch_size} images "
    f"({run.epochs:g} epochs of {parts.steps_per_epoch:.1f} steps), seed "
    f"{run.seed}, mesh {mesh} of {jax.devices()[0].platform}",
  )
  weights = parts.objective.weights
  yield Finding("loss", ", ".join(f"{t} x {w:g}" for t, w in weights.items()))
  rates = parts.schedule(jnp.arange(parts.total_steps + 1))
  yield Finding(
    "learning rate",
    f"{rates[0]:.1e} at first, {rates.max():.1e} at most, {rates[-1]:.1e} at "
    "last",
  )


def _data(parts, batch):
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


def _teacher(parts, batch):
  objective, teacher = parts.objective, parts.objective.teacher
  yield Finding(
    "teacher",
    f"{sum(x.size for x in jax.tree.leaves(parts.teacher_params)):,} "
    f"parameters in {teacher.dtype_mm}, {parts.teacher_pin}",
  )
  for note in parts.teacher_notes:
    yield Finding("teacher's weights", note)
  for who, stats in (
    ("student", objective.student_stats),
    ("teacher", objective.teacher_stats),
  ):
    image = augment.normalize(jnp.float32(batch["image"]) / 255, *stats)
    yield Finding(
      f"{who}'s images",
      f"mean {stats[0]} and std {stats[1]} of the variant give mean "
      f"{image.mean():+.2f}, std {image.std():.2f} here",
    )
  image = jnp.float32(batch["image"]) / 255
  view = jax.jit(objective.teacher_view)(parts.teacher_params, image)
  yield _teacher_accuracy(parts, view[0], batch["label"])
  if objective.head is not None:
    yield Finding(
      "token maps",
      f"low {view[1].shape[1:]}, high {view[2].shape[1:]} of the teacher; "
      f"student grid {objective.student_grid}, teacher grid "
      f"{objective.teacher_grid}"
      + (
        ", resampled"
        if objective.teacher_grid != objective.student_grid
        else ""
      ),
    )


def _teacher_accuracy(parts, logits, label):
  what, chance = "teacher's accuracy", 1 / parts.info.num_classes
  if parts.objective.teacher.num_classes != parts.info.num_classes:
    return Finding(what, "unknown, since its classes are not the data set's")
  hits = float(jnp.mean(jnp.argmax(logits, -1) == label))
  # A wrong normalisation or a wrong class order shows here.
  return Finding(
    what,
    f"{hits:.1%} on the first training batch, unaugmented, where chance is "
    f"{chance:.1%}",
    hits > chance + (1 - chance) / 4,
  )


def _gradients(parts, state, batch):
  """One batch's terms, and whether every auxiliary parameter learns."""
  objective = parts.objective

  @jax.jit
  def compute(params, teacher_params, image, label):
    keys = jax.random.split(jax.random.key(parts.run.seed), 3)
    image, target = parts.augment(keys[0], image, label)
    mask = objectives.draw_mask(objective, keys[1], image.shape[0])
    micro = dict(image=image, target=target, mask=mask, key=keys[2])
    grads, means = objectives.gradients(
      objective, params, teacher_params, micro
    )
    return jax.tree.map(lambda g: jnp.sqrt(jnp.sum(g * g)), grads), means

  norms, means = jax.device_get(
    compute(state.params, parts.teacher_params, batch["image"], batch["label"])
  )
  for term in objective.terms:
    raw, weighted = means[term], objective.weights[term] * means[term]
    yield Finding(
      f"{term} loss",
      f"{raw:.4g} raw, {weighted:.4g} weighted ({weighted / means['loss']:.0%} "
      "of the total) before the first step",
      bool(np.isfinite(raw)),
    )
  for part in ("student", "head"):
    flat, _ = jax.tree_util.tree_flatten_with_path(norms[part])
    if not flat:
      continue
    dead = [
      jax.tree_util.keystr(path, simple=True, separator="/")
      for path, norm in flat
      if not (np.isfinite(norm) and norm > 0)
    ]
    yield Finding(
      f"{part}'s gradients",
      f"{len(flat) - len(dead)} of {len(flat)} parameters have one"
      + (f"; not {', '.join(dead[:4])}" if dead else ""),
      # A head that starts at zero leaves the student's body without one.
      not dead or (False if part == "head" else None),
    )


def _compiled(parts, state, batch):
  batch = sharding.global_batch(batch, parts.mesh)
  teacher_params = parts.teacher_params
  compiled = (
    parts.make_train_step().lower(state, teacher_params, batch).compile()
  )
  memory = compiled.memory_analysis()
  yield Finding(
    "memory per device",
    f"{_mebibytes(memory.argument_size_in_bytes)} arguments and "
    f"{_mebibytes(memory.temp_size_in_bytes)} for the step itself",
  )
  held = {
    "parameters": state.params,
    "optimiser": state.opt_state,
    "moving average": state.ema,
    "teacher": teacher_params,
  }
  yield Finding(
    "arrays, whole",
    ", ".join(
      f"{name} {_mebibytes(sum(x.nbytes for x in jax.tree.leaves(tree)))}"
      for name, tree in held.items()
    ),
  )
  flops = objectives.flops_per_image(parts.objective)["total"]
  flops *= parts.run.batch_size / parts.mesh.size
  yield Finding(
    "work",
    f"{flops / 1e9:.1f} GFLOP a step and device, in matrix products",
  )


def _mebibytes(size):
  return f"{size / 2**20:.1f} MiB"


def examine_slice(config, name: str) -> tuple[list[Finding], dict]:
  """What the TPU's compiler says of the step on a slice.

  Args:
    config: of a training.
    name: of the slice, see `topology.find`.

  Returns:
    The findings, and the same as JSON's types: see `topology.examine`.

  Raises:
    ValueError: the config cannot be built, or there is no such slice.
  """
  report = topology.examine(config, name)
  return list(_slice(report)), report


def _slice(report):
  chip = topology.CHIPS[report["slice"].partition(":")[0]]
  yield Finding(
    "slice",
    f"{report['slice']}: {report['chips']} chips of {chip.hbm_gb} GB",
  )
  yield Finding(
    "batch",
    f"{report['batch_size']} images, {report['images_per_device']} a chip; "
    f"loss of {', '.join(report['terms'])}; fsdp={report['fsdp']}",
  )
  for name, size in report["memory"].items():
    yield Finding(f"  {name}", f"{_mebibytes(size):>12}")
  if not report["fits"]:
    yield Finding("memory of a chip", report["refusal"], False)
    return
  total = report["memory_total"] / topology.GIB
  yield Finding(
    "memory of a chip", f"{total:.2f} GiB of {chip.hbm_gb} GB", True
  )
  yield from _collectives(report["collectives"])
  yield Finding(
    "work",
    f"{report['flops'] / 1e9:.1f} GFLOP a step and chip in products: "
    f"{report['flops'] / chip.peak * 1e3:.1f} ms at the peak of "
    f"{chip.peak / 1e12:.0f} TFLOP/s",
  )
  once = report["loops_counted_once"]
  yield Finding(
    "cycles",
    f"{report['cycles'] / 1e6:.1f} million by the compiler's estimate, without "
    f"collectives: {report['cycles'] / chip.clock * 1e3:.1f} ms at "
    f"{chip.clock / 1e9:.2f} GHz"
    + (f"; {once} loops of unknown length count once" if once else ""),
  )
  yield Finding("compiled in", f"{report['compile_seconds']:.0f} s")


def _collectives(found):
  kinds = collections.defaultdict(list)
  for one in found:
    kinds[one["kind"]].append(one)
  if not kinds:
    yield Finding("collectives", "none")
  for kind, ones in kinds.items():
    # Less than that is a flag or a counter.
    large = [one for one in ones if one["bytes"] >= 2**10]
    size = sum(one["bytes"] * one["times"] for one in ones)
    yield Finding(
      kind,
      f"{sum(one['times'] for one in large)} of "
      f"{sum(one['arrays'] for one in large)} arrays, {_mebibytes(size)} a "
      f"step, and {len(ones) - len(large)} of less than 1 KiB",
    )


def main(argv):
  """The command line."""
  del argv
  name, path = flags.FLAGS.topology, flags.FLAGS.json
  with command.refusing():
    if path and not name:
      raise ValueError("--json goes with --topology")
    if name:
      jax.config.update("jax_platforms", "cpu")
      findings, report = examine_slice(command.config(), name)
      if path:
        pathlib.Path(path).write_text(json.dumps(report, indent=2) + "\n")
    else:
      findings = examine(command.config())
  table = rich.table.Table(box=None, pad_edge=False, show_header=False)
  marks = {None: "", True: "[green]ok[/green]", False: "[red]WRONG[/red]"}
  for finding in findings:
    table.add_row(marks[finding.good], finding.what, finding.found)
  rich.console.Console(highlight=False).print(table)
  wrong = [f.what for f in findings if f.good is False]
  if wrong:
    raise command.FailedError(f"something is wrong with: {', '.join(wrong)}")
  print("all is well")
  sys.stdout.flush()


if __name__ == "__main__":
  flags.DEFINE_string(
    "topology", None, "TPU slice to compile for: v5e-256, v4-32, v5p:2x2x4, ..."
  )
  command.define_path("json", None, "file for what --topology found")
  command.run(main, with_config=True)
