"""From a config to the parts of a training, each section to one callable.

All checks happen here, before anything compiles: what a user got wrong is a
ValueError of one sentence.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import ml_collections
import optax

from vitkd_jax.data import augment as augmentation
from vitkd_jax.data import datasets
from vitkd_jax.distill import heads, losses, tokens
from vitkd_jax.models import checks, variants, vit
from vitkd_jax.training import (
  compiler,
  inputs,
  optim,
  sections,
  sharding,
  steps,
  teachers,
)
from vitkd_jax.training import objective as objectives
from vitkd_jax.training import state as states


@dataclasses.dataclass(frozen=True)
class Planned:
  """Images that a training would read, where no data set is at hand.

  Attributes:
    info: of the data set.
    image_size: (H, W) of a batch, in pixels.
    num_train: examples of the training split.
  """

  info: datasets.Info
  image_size: tuple[int, int]
  num_train: int


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A training, ready to start."""

  run: sections.Run
  data: sections.Data
  inputs: inputs.Inputs | Planned
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
      with_ema=bool(self.run.ema_decay),
    )

  def create_state(self) -> states.TrainState:
    """The first TrainState of the run's seed, each leaf born on its devices."""
    init = jax.jit(self.make_init(), out_shardings=self.state_shardings())
    return init(jax.random.key(self.run.seed))

  def state_shardings(self):
    """The shardings of `make_init`'s state on the mesh."""
    rules = sharding.FSDP if self.run.fsdp > 1 else sharding.REPLICATE
    return states.shardings(self.make_init(), self.mesh, rules)

  def make_train_step(self):
    """The train step, jitted: (state, teacher_params, batch) -> both."""
    replicated = sharding.replicated(self.mesh)

    def gather(params):
      # Left to itself the compiler splits some products as their parameters
      # are split, and gathers the activations for them.
      return jax.lax.with_sharding_constraint(params, replicated)

    step = steps.make_train_step(
      self.objective,
      augment=self.augment,
      optimizer=self.optimizer,
      schedule=self.schedule,
      seed=self.run.seed,
      log_every=self.run.log_every,
      ema_decay=self.run.ema_decay or None,
      accumulate=self.run.accumulate,
      gather=gather,
    )
    return jax.jit(
      step,
      donate_argnums=0,
      out_shardings=(self.state_shardings(), replicated),
      compiler_options=compiler.options(self.mesh),
    )

  def make_eval_step(self):
    """The student's eval step, jitted: (sums, params, batch) -> sums."""
    step = steps.make_eval_step(
      self.objective.student, self.objective.student_stats
    )
    return jax.jit(
      step,
      out_shardings=sharding.replicated(self.mesh),
      compiler_options=compiler.options(self.mesh),
    )


def build(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
  planned: Planned | None = None,
) -> Experiment:
  """The parts of a training; all that can be wrong is refused here.

  Args:
    config: with the sections in `SECTIONS`; `teacher`, `head`, `select` and
      `logits` may be empty or missing.
    devices: to train on; all by default.
    planned: images that are not there yet. Nothing is read then, the
      teacher's file neither, and the step can be compiled but not run:
      `teacher_params` are ShapeDtypeStructs, and `devices` may be described
      ones.

  Raises:
    ValueError: anything that does not fit, in one sentence.
  """
  section = sections.split(config)
  run = sections.make(sections.Run, "run", section["run"])
  sections.check_run(run)
  mesh = sharding.make_mesh(run.fsdp, devices)
  sharding.check_batch_size(run.batch_size, mesh, run.accumulate)
  mixes = ("mixup_alpha", "cutmix_alpha")
  if run.batch_size % 2 and any(map(section["augment"].get, mixes)):
    raise ValueError(
      f"config.run.batch_size={run.batch_size}: Mixup and CutMix mix pairs and "
      "want an even batch size"
    )
  data = sections.make(sections.Data, "data", section["data"])
  images = planned or inputs.Inputs(
    data, batch_size=run.batch_size, seed=run.seed
  )
  info, num_train = images.info, images.num_train
  if run.batch_size > num_train:
    raise ValueError(
      f"config.run.batch_size={run.batch_size}, but {data.train_split!r} of "
      f"{data.name} has {num_train} images: a batch would hold some twice; "
      "take a smaller one"
    )

  objective, teacher_params, sha256 = _objective(
    section, info, images.image_size, run, mesh, from_file=planned is None
  )
  total_steps = max(1, round(run.epochs * num_train / run.batch_size))
  if run.profile_at > total_steps:
    raise ValueError(
      f"config.run.profile_at={run.profile_at}: the run has {total_steps} steps"
    )
  schedule = _schedule(section["schedule"], num_train, run, total_steps)
  return Experiment(
    run=run,
    data=data,
    inputs=images,
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
    image_shape=(*images.image_size, 3),
    steps_per_epoch=num_train / run.batch_size,
    total_steps=total_steps,
    teacher_params=teacher_params,
    teacher_sha256=sha256,
  )


def _stats(variant) -> objectives.Stats:
  known = variants.get(variant)
  return known.mean, known.std


def _loss_weights(values, num_classes) -> dict[str, float]:
  sections.known("weights", values, objectives.TERMS)
  sections.check_types(
    "weights", values, dict.fromkeys(objectives.TERMS, float)
  )
  for term, weight in values.items():
    if weight < 0:
      raise ValueError(f"config.weights.{term}={weight}: wanted at least 0")
  weights_by_term = {term: w for term, w in values.items() if w}
  if not weights_by_term:
    raise ValueError("every weight in config.weights is 0: nothing to learn")
  if "nkd" in weights_by_term and num_classes < 3:
    raise ValueError(
      f"nkd needs at least 3 classes, the data set has {num_classes}: its "
      "softmax over the other classes is constant; use config.weights.kl"
    )
  return weights_by_term


def _objective(section, info, image_size, run, mesh, from_file):
  """The objective, the teacher's parameters on the mesh, and their hash."""
  student = _student(section["student"], info.num_classes)
  teachers.check_patches("student", student, *image_size)
  objective = objectives.Objective(
    student=student,
    student_stats=_stats(section["student"]["variant"]),
    weights=_loss_weights(section["weights"], info.num_classes),
    student_grid=student.grid(*image_size),
  )
  taught = [term for term in objective.terms if term != "task"]
  if not taught:
    return objective, None, None
  if not section["teacher"]:
    raise ValueError(
      f"the loss terms {', '.join(taught)} need a teacher: fill in "
      "config.teacher, or set their weights to 0"
    )
  config = sections.make(sections.Teacher, "teacher", section["teacher"])
  _check_dtype("teacher.dtype", config.dtype)
  load = teachers.load if from_file else teachers.plan
  logit_terms = [t for t in objective.terms if t in objectives.LOGIT_TERMS]
  teacher, params, sha256 = load(config, info, image_size, logit_terms)
  grid = teacher.grid(*image_size)
  if grid != objective.student_grid and not config.resample:
    raise ValueError(
      f"the teacher's token grid is {grid[0]}x{grid[1]}, the student's "
      f"{objective.student_grid[0]}x{objective.student_grid[1]}; set "
      "config.teacher.resample=True to bring its maps to the student's grid"
    )
  objective = dataclasses.replace(
    objective,
    teacher=teacher,
    teacher_stats=_stats(config.variant),
    teacher_grid=grid,
    head=_head(objective, teacher, section["head"]),
    select=_select(section["select"], teacher, student),
    **_logits(section["logits"]),
  )
  rules = sharding.FSDP if run.fsdp_teacher else sharding.REPLICATE
  where = sharding.tree(params, mesh, rules)
  return objective, sharding.place(params, where), sha256


def _student(fields, num_classes) -> vit.ViT:
  if not fields.get("variant"):
    raise ValueError("config.student.variant is missing")
  if "num_classes" in fields:
    raise ValueError("config.student.num_classes comes from the data set")
  types = {"variant": str} | vit.ViT.__annotations__
  known = {name: value for name, value in fields.items() if name in types}
  sections.check_types("student", known, types)
  _check_dtype("student.dtype_mm", fields.get("dtype_mm", "float32"))
  return vit.Model(num_classes, **fields)


def _check_dtype(name, dtype) -> None:
  if dtype not in checks.DTYPES:
    raise ValueError(
      f"config.{name}={dtype!r}: wanted one of " + ", ".join(checks.DTYPES)
    )


def _head(objective, teacher, values):
  config = sections.make(sections.Head, "head", values)
  if not 0 <= config.mask_ratio < 1:
    raise ValueError(
      f"config.head.mask_ratio={config.mask_ratio}: not in [0, 1)"
    )
  if config.reduction not in losses.REDUCTIONS:
    raise ValueError(
      f"config.head.reduction={config.reduction!r}: wanted one of "
      + ", ".join(losses.REDUCTIONS)
    )
  terms = tuple(t for t in heads.TERMS if t in objective.weights)
  if not terms:
    return None
  return heads.ViTKD(
    teacher.width,
    terms=terms,
    grid=objective.student_grid,
    dtype_mm=objective.student.dtype_mm,
    **dataclasses.asdict(config),
  )


def _logits(values) -> dict[str, float]:
  config = sections.make(sections.Logits, "logits", values)
  if config.temperature <= 0 or config.gamma < 0:
    raise ValueError(
      f"config.logits.temperature={config.temperature} and gamma="
      f"{config.gamma}: wanted a positive and no negative number"
    )
  return dataclasses.asdict(config)


def _select(values, teacher, student) -> Mapping[str, Any]:
  sections.check_keywords(
    tokens.select, "select", values, given=("num_prefix_tokens",)
  )
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


def _schedule(values, num_train, run, total_steps):
  config = sections.make(sections.Schedule, "schedule", values)
  values = dataclasses.asdict(config)
  warmup = values.pop("warmup_epochs") * num_train / run.batch_size
  return optim.make_schedule(
    total_steps=total_steps, warmup_steps=round(warmup), **values
  )
