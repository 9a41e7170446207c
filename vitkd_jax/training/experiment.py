"""From a config to the parts of a training, each section to one callable.

All checks happen here, before anything compiles: what a user got wrong is a
ValueError of one sentence.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from vitkd_jax import weights
from vitkd_jax.data import augment as augmentation
from vitkd_jax.data import datasets
from vitkd_jax.distill import heads, tokens
from vitkd_jax.models import variants, vit
from vitkd_jax.training import objective as objectives
from vitkd_jax.training import optim, sections, sharding, steps
from vitkd_jax.training import state as states
from vitkd_jax.weights import loading


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A training, ready to start."""

  run: sections.Run
  data: sections.Data
  info: datasets.Info
  objective: objectives.Objective
  augment: Any
  optimizer: optax.GradientTransformation
  schedule: optim.Schedule
  mesh: Any
  image_shape: tuple[int, int, int]
  steps_per_epoch: float
  total_steps: int
  teacher_params: Any
  teacher_sha256: str | None

  def make_init(self):
    """PRNG key -> the first TrainState."""
    return states.make_init(
      init_params=lambda key: self.objective.init_params(
        key, (1, *self.image_shape)
      ),
      optimizer=self.optimizer,
      metric_names=self.objective.metric_names,
      num_terms=len(self.objective.terms),
      with_ema=bool(self.run.ema_decay),
    )

  def state_shardings(self):
    """The shardings of `make_init`'s state on the mesh."""
    rules = sharding.FSDP if self.run.fsdp > 1 else sharding.REPLICATE
    return states.shardings(self.make_init(), self.mesh, rules)

  def make_train_step(self):
    """The train step, jitted: (state, teacher_params, batch) -> both."""
    replicated = sharding.replicated(self.mesh)
    step = steps.make_train_step(
      self.objective,
      augment=self.augment,
      optimizer=self.optimizer,
      schedule=self.schedule,
      seed=self.run.seed,
      log_every=self.run.log_every,
      ema_decay=self.run.ema_decay or None,
      accumulate=self.run.accumulate,
    )
    return jax.jit(
      step,
      donate_argnums=0,
      out_shardings=(self.state_shardings(), replicated),
    )

  def make_eval_step(self):
    """The student's eval step, jitted: (sums, params, batch) -> sums."""
    step = steps.make_eval_step(
      self.objective.student, self.objective.student_stats
    )
    return jax.jit(step, out_shardings=sharding.replicated(self.mesh))


def build(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> Experiment:
  """The parts of a training; all that can be wrong is refused here.

  Args:
    config: with the sections in `SECTIONS`; `teacher`, `head`, `select` and
      `logits` may be empty or missing.
    devices: to train on; all by default.

  Raises:
    ValueError: anything that does not fit, in one sentence.
  """
  section = sections.split(config)
  run = sections.make(sections.Run, "run", section["run"])
  sections.check_run(run)
  mesh = sharding.make_mesh(run.fsdp, devices)
  sharding.check_batch_size(run.batch_size, mesh, run.accumulate)
  data = sections.make(sections.Data, "data", section["data"])
  info = datasets.info(data.name, data.data_dir)
  height, width = _image_size(info)

  student_fields = dict(section["student"])
  student = vit.Model(info.num_classes, **student_fields)
  _check_patches("student", student, height, width)
  weights_by_term = _loss_weights(section["weights"], info.num_classes)
  taught = [t for t in weights_by_term if t != "task"]
  if taught and not section["teacher"]:
    raise ValueError(
      f"the loss terms {', '.join(taught)} need a teacher: fill in "
      "config.teacher, or set their weights to 0"
    )
  objective = objectives.Objective(
    student=student,
    student_stats=_stats(student_fields.get("variant")),
    weights=weights_by_term,
    student_grid=student.grid(height, width),
  )
  teacher_params = sha256 = None
  if taught:
    teacher = sections.make(sections.Teacher, "teacher", section["teacher"])
    teacher_params, sha256, parts = _teacher(
      teacher, info, (height, width), objective, section
    )
    objective = dataclasses.replace(
      objective,
      **parts,
      **sections.known("logits", section["logits"], ("temperature", "gamma")),
    )
  num_train = _split_size(info, data)
  total_steps = max(1, round(run.epochs * num_train / run.batch_size))
  schedule = _schedule(section["schedule"], num_train, run, total_steps)
  return Experiment(
    run=run,
    data=data,
    info=info,
    objective=objective,
    augment=sections.call(
      augmentation.make_augment,
      "augment",
      section["augment"],
      num_classes=info.num_classes,
    ),
    optimizer=sections.call(
      optim.make_optimizer, "optimizer", section["optimizer"], schedule
    ),
    schedule=schedule,
    mesh=mesh,
    image_shape=(height, width, 3),
    steps_per_epoch=num_train / run.batch_size,
    total_steps=total_steps,
    teacher_params=teacher_params,
    teacher_sha256=sha256,
  )


def _image_size(info) -> tuple[int, int]:
  if info.image_size is None:
    raise ValueError(
      f"the images of {info.name} differ in size; prepare the data set with "
      "images of one size"
    )
  return info.image_size


def _check_patches(who, model, height, width) -> None:
  if height % model.patch_size[0] or width % model.patch_size[1]:
    raise ValueError(
      f"images of {height}x{width} pixels are no whole number of the {who}'s "
      f"{model.patch_size[0]}x{model.patch_size[1]} patches; choose another "
      "patch_size or image size"
    )


def _stats(variant) -> objectives.Stats:
  known = variants.get(variant) if variant else variants.Variant
  return known.mean, known.std


def _loss_weights(values, num_classes) -> dict[str, float]:
  sections.known("weights", values, objectives.TERMS)
  for term, weight in values.items():
    if not (math.isfinite(weight) and weight >= 0):
      raise ValueError(
        f"config.weights.{term}={weight}: wanted a finite number of at least 0"
      )
  weights_by_term = {term: w for term, w in values.items() if w}
  if not weights_by_term:
    raise ValueError("every weight in config.weights is 0: nothing to learn")
  if "nkd" in weights_by_term and num_classes < 3:
    raise ValueError(
      f"nkd needs at least 3 classes, the data set has {num_classes}: its "
      "softmax over the other classes is constant; use config.weights.kl"
    )
  return weights_by_term


def _teacher(config, info, image_size, objective, section):
  """The teacher's parameters, their hash, and the objective's fields."""
  fields = variants.get(config.variant).fields
  model = vit.Model(info.num_classes, variant=config.variant)
  _check_patches("teacher", model, *image_size)
  loaded = loading.load_with_notes(
    config.weights,
    variant=config.variant,
    num_classes=info.num_classes,
    image_size=image_size,
  )
  _check_resolution(config, loaded.notes, image_size)
  params = loaded.params
  grid = model.grid(*image_size)
  if fields.get("layerscale_init") is not None:
    # Exact for a frozen model, and one product less per branch.
    params = weights.fold_layerscale(params)
  dtype = jnp.dtype(config.dtype)
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
  model = model.clone(layerscale_init=None, dtype_mm=config.dtype)
  if grid != objective.student_grid and not config.resample:
    raise ValueError(
      f"the teacher's token grid is {grid[0]}x{grid[1]}, the student's "
      f"{objective.student_grid[0]}x{objective.student_grid[1]}; set "
      "config.teacher.resample=True to bring its maps to the student's grid"
    )
  head = _head(objective, model, section)
  parts = dict(
    teacher=model,
    teacher_stats=_stats(config.variant),
    teacher_grid=grid,
    head=head,
    select=_select(section["select"], model, objective.student),
  )
  return params, loaded.file and weights.sha256(loaded.file), parts


def _check_resolution(config, notes, image_size) -> None:
  """Refuses a teacher of another resolution unless that is asked for."""
  resized = [note for note in notes if "position embedding" in note]
  if resized and not config.resize_posemb:
    raise ValueError(
      f"the teacher {config.weights} was not trained on images of "
      f"{image_size[0]}x{image_size[1]} ({resized[0]}): use a teacher of this "
      "resolution, or set config.teacher.resize_posemb=True (the one published "
      "trial of that ended below its baseline)"
    )


def _head(objective, teacher, section):
  terms = tuple(t for t in objectives.FEATURE_TERMS if t in objective.weights)
  if not terms:
    return None
  names = ("mask_ratio", "reduction", "always_align")
  return heads.ViTKD(
    teacher.width,
    terms=terms,
    grid=objective.student_grid,
    dtype_mm=objective.student.dtype_mm,
    **sections.known("head", section["head"], names),
  )


def _select(values, teacher, student) -> Mapping[str, Any]:
  names = ("low_blocks", "low_place", "high_block", "high_place")
  sections.known("select", values, names)
  for name in ("low_place", "high_place"):
    tokens.check_place(values.get(name, "+mlp"))
  blocks = (*values.get("low_blocks", ()), values.get("high_block", -1))
  depth = min(teacher.depth, student.depth)
  for block in blocks:
    if not -depth <= block < depth:
      raise ValueError(
        f"config.select names block {block}, but the shallower model has "
        f"{depth} blocks"
      )
  return values


def _split_size(info, data) -> int:
  source = datasets.load(data.name, data.train_split, data_dir=data.data_dir)
  if not len(source):
    raise ValueError(f"split {data.train_split!r} of {info.name} is empty")
  return len(source)


def _schedule(values, num_train, run, total_steps):
  names = ("kind", "peak", "warmup_epochs", "warmup_start", "end")
  values = dict(sections.known("schedule", values, names))
  for name in names:
    if values.get(name) is None:
      raise ValueError(f"config.schedule.{name} is missing")
  warmup = values.pop("warmup_epochs") * num_train / run.batch_size
  return optim.make_schedule(
    total_steps=total_steps, warmup_steps=round(warmup), **values
  )
