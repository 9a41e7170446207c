"""From a config to the parts of a training, each section to one callable.

All checks happen here, before anything compiles: what a user got wrong is a
ValueError of one sentence.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from vitkd_jax.cluster import compiler, sharding
from vitkd_jax.data import augment as augmentation
from vitkd_jax.data import datasets
from vitkd_jax.evaluation import classification, running
from vitkd_jax.training import (
  assembly,
  inputs,
  optim,
  sections,
  steps,
  teachers,
)
from vitkd_jax.training import objective as objectives
from vitkd_jax.training import state as states

# Of the training's own evaluations.
_EVALUATORS = {"student": classification.Classification()}


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
  teacher_pin: teachers.Pin
  teacher_notes: tuple[str, ...]

  # Each is one object, so that what was traced at the build, to see whether it
  # can be, is not traced again by who compiles it.

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

  def state_shapes(self) -> states.TrainState:
    """The state of the run as sharded shapes."""
    return self._state_shapes

  def state_shardings(self):
    """The shardings of `make_init`'s state on the mesh."""
    return jax.tree.map(lambda leaf: leaf.sharding, self._state_shapes)

  def step_shapes(self) -> tuple[Any, Any, dict[str, jax.ShapeDtypeStruct]]:
    """State, teacher's parameters and batch of a step, as sharded shapes."""
    return self._state_shapes, self.teacher_params, self._batch_shapes()

  def make_train_step(self):
    """The train step, jitted: (state, teacher_params, batch) -> both."""
    return self._train_step

  def make_eval_step(self):
    """See `running.make_step`; jitted, of the model "student"."""
    return self._eval_step

  def zero_sums(self) -> running.Sums:
    """What an evaluation starts from."""
    return running.zero_sums(_EVALUATORS)

  def scores(self, sums: running.Sums) -> dict[str, float]:
    """Shares "top1" and "top5", and "loss" in nats, of sums on the host."""
    found = _EVALUATORS["student"].compute(sums["student"])
    return {name: found[name] for name in ("top1", "top5", "loss")}

  def check(self) -> None:
    """Traces both steps; what the compilation would refuse is refused here.

    Raises:
      ValueError: parts of the config that do not go together.
    """
    try:
      jax.eval_shape(self._train_step, *self.step_shapes())
      batch = self._batch_shapes(weight=((), jnp.float32))
      sums = sharding.place(
        jax.eval_shape(self.zero_sums), sharding.replicated(self.mesh)
      )
      params = {"student": self._state_shapes.params["student"]}
      jax.eval_shape(self._eval_step, sums, params, batch)
    except Exception as error:  # models and losses raise what they like
      text = f"{error}".strip().partition("\n")[0]
      if not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text}"
      raise ValueError(f"the training step cannot be built: {text}") from error

  def _batch_shapes(self, **more):
    split, size = sharding.batch(self.mesh), self.run.batch_size
    leaves = {"image": (self.image_shape, jnp.uint8), "label": ((), jnp.int32)}
    return {
      name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=split)
      for name, (shape, dtype) in (leaves | more).items()
    }

  @functools.cached_property
  def _state_shapes(self):
    shapes = jax.eval_shape(self.make_init(), jax.random.key(0))
    where = sharding.tree(shapes, self.mesh, split=self.run.fsdp > 1)
    return sharding.place(shapes, where)

  @functools.cached_property
  def _train_step(self):
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

  @functools.cached_property
  def _eval_step(self):
    step = running.make_step(
      {"student": self.objective.student_logits}, _EVALUATORS
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
  pinned: teachers.Pin | None = None,
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
    pinned: the teacher's weights that an earlier start of the run took.

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

  objective, teacher = assembly.make_objective(
    section,
    info,
    images.image_size,
    run,
    mesh,
    from_file=planned is None,
    pinned=pinned,
  )
  total_steps = max(1, round(run.epochs * num_train / run.batch_size))
  if run.profile_at > total_steps:
    raise ValueError(
      f"config.run.profile_at={run.profile_at}: the run has {total_steps} steps"
    )
  schedule = _schedule(section["schedule"], num_train, run, total_steps)
  parts = Experiment(
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
    teacher_params=teacher and teacher.params,
    teacher_pin=teacher.pin if teacher else teachers.Pin(),
    teacher_notes=teacher.notes if teacher else (),
  )
  parts.check()
  return parts


def _schedule(values, num_train, run, total_steps):
  config = sections.make(sections.Schedule, "schedule", values)
  values = dataclasses.asdict(config)
  warmup = values.pop("warmup_epochs") * num_train / run.batch_size
  return optim.make_schedule(
    total_steps=total_steps, warmup_steps=round(warmup), **values
  )
