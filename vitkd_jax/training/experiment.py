"""From a config to the parts of a training, each section to one callable.

Every check happens here, before anything compiles: a user's mistake is a
ValueError of one sentence.
"""

from collections.abc import Callable, Mapping, Sequence
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
from vitkd_jax.distill import objective as objectives
from vitkd_jax.evaluation import classification, running
from vitkd_jax.training import (
  assembly,
  durations,
  inputs,
  lengths,
  optim,
  optimizer_section,
  placement,
  programs,
  ranges,
  sections,
  teachers,
)
from vitkd_jax.training import start as starts
from vitkd_jax.training import state as states

# Evaluators that run during training.
_EVALUATORS = {"student": classification.Classification()}


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A training, ready to start.

  Attributes:
    run: section `run`.
    data: section `data`.
    inputs: the batches, or what is planned in their place.
    objective: models, methods and loss weights.
    augment: see `augment.make_augment`.
    optimizer: updates {"student", "methods"}.
    schedule: learning rate by step.
    mesh: mesh of the devices.
    total_steps: number of updates in the run.
    teacher_params: {name: parameters on the mesh} of the frozen teachers.
    teacher_pins: {name: which weights a teacher has}.
    teacher_notes: {name: how a teacher was loaded, in sentences}.
    start: the weights that the student starts from; None for random ones.
  """

  run: sections.Run
  data: sections.Data
  inputs: inputs.Inputs | inputs.Planned
  objective: objectives.Objective
  augment: Callable
  optimizer: optax.GradientTransformation
  schedule: optim.Schedule
  mesh: jax.sharding.Mesh
  total_steps: int
  teacher_params: dict[str, Any]
  teacher_pins: dict[str, teachers.Pin]
  teacher_notes: dict[str, tuple[str, ...]]
  start: starts.Start | None = None

  @property
  def info(self) -> datasets.Info:
    """Description of the dataset."""
    return self.inputs.info

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, 3) of a batch's images, in pixels."""
    return (*self.inputs.image_size, 3)

  @property
  def steps_per_epoch(self) -> float:
    """Updates per pass over the training split; fractional."""
    return self.inputs.num_train / self.run.batch_size

  # Each step is one object, so that the trace made by `check` also serves the
  # compilation.

  def make_init(self) -> Callable[..., states.TrainState]:
    """A function to the initial TrainState, see `state.make_init`."""
    return states.make_init(
      init_params=lambda key: self.objective.init_params(
        key, (1, *self.image_shape)
      ),
      optimizer=self.optimizer,
      metric_names=self.objective.metric_names,
      with_ema=bool(self.run.ema_decay),
    )

  def create_state(self) -> states.TrainState:
    """The initial TrainState, each leaf created on its devices."""
    where = self.state_shardings()
    init = jax.jit(self.make_init(), out_shardings=where)
    key = jax.random.key(self.run.seed)
    if self.start is None:
      return init(key)
    params = self.start.params()
    shardings = {name: where.params["student"][name] for name in params}
    return init(key, sharding.place(params, shardings))

  def state_shapes(self) -> states.TrainState:
    """The run's state as sharded ShapeDtypeStructs."""
    return self._state_shapes

  def state_shardings(self) -> Any:
    """The sharding of each leaf of the state."""
    return jax.tree.map(lambda leaf: leaf.sharding, self._state_shapes)

  def step_shapes(self) -> tuple[Any, Any, dict[str, jax.ShapeDtypeStruct]]:
    """A step's state, teacher parameters and batch, as sharded shapes.

    In the place of a batch, `placement.Held` for images on the devices.
    """
    given = self._batch_shapes()
    if self.data.placement == "device":
      given = placement.shapes(
        self.mesh,
        self.image_shape,
        self.inputs.num_train,
        self.run.batch_size,
        self.total_steps,
      )
    return self._state_shapes, self.teacher_params, given

  def make_train_step(self) -> Any:
    """The jitted train step, see `steps.make_train_step`."""
    return self._train_step

  def make_eval_step(self) -> Any:
    """The jitted evaluation step of the student, see `running.make_step`."""
    return self._eval_step

  def zero_sums(self) -> running.Sums:
    """The sums that an evaluation starts from."""
    return running.zero_sums(_EVALUATORS)

  def scores(self, sums: running.Sums) -> dict[str, float]:
    """An evaluation's scores.

    Args:
      sums: of every batch, on the host.

    Returns:
      "top1" and "top5" in [0, 1], and "loss" in nats.
    """
    found = _EVALUATORS["student"].compute(sums["student"])
    return {name: found[name] for name in ("top1", "top5", "loss")}

  def check(self) -> None:
    """Traces both steps, so that what cannot compile is refused now.

    Raises:
      ValueError: parts of the config do not go together.
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

  def _batch_shapes(self, **more: Any) -> dict[str, jax.ShapeDtypeStruct]:
    split, size = sharding.batch(self.mesh), self.run.batch_size
    leaves = {"image": (self.image_shape, jnp.uint8), "label": ((), jnp.int32)}
    return {
      name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=split)
      for name, (shape, dtype) in (leaves | more).items()
    }

  @functools.cached_property
  def _state_shapes(self) -> states.TrainState:
    shapes = jax.eval_shape(self.make_init(), jax.random.key(0))
    where = sharding.tree(shapes, self.mesh, split=self.run.fsdp > 1)
    return sharding.place(shapes, where)

  @functools.cached_property
  def _train_step(self) -> Any:
    return programs.alone(self)

  @functools.cached_property
  def _eval_step(self) -> Any:
    student, stats = self.objective.student, self.objective.student_stats
    logits = functools.partial(running.logits, student, *stats)
    step = running.make_step({"student": logits}, _EVALUATORS)
    return jax.jit(
      step,
      out_shardings=sharding.replicated(self.mesh),
      compiler_options=compiler.options(self.mesh),
    )


def build(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
  planned: inputs.Planned | None = None,
  pinned: Mapping[str, teachers.Pin] | None = None,
  started: teachers.Pin | None = None,
  resumes: bool = False,
  trace: bool = True,
) -> Experiment:
  """The parts of a training; refuses every mistake in the config.

  Args:
    config: with the sections in `sections.SECTIONS`; `teachers`, `methods` and
      `task` may be empty or missing.
    devices: devices to train on; all by default.
    planned: images that are not at hand. Neither they nor the teacher's file
      are read, and the step can be compiled but not run: `teacher_params` are
      ShapeDtypeStructs, and `devices` may be described ones.
    pinned: {name: a teacher's weights as an earlier start of the run pinned
      them}.
    started: the weights that an earlier start of the run took for its student.
    resumes: the run has a checkpoint, and so needs these no more.
    trace: trace the steps, which finds more mistakes and takes seconds.

  Raises:
    ValueError: the config cannot be built; one sentence says why.
  """
  section = sections.split(config)
  run = sections.make(sections.Run, "run", section["run"])
  ranges.check(run)
  mesh = sharding.make_mesh(run.fsdp, devices)
  sharding.check_batch_size(run.batch_size, mesh, run.accumulate)
  mixes = ("mixup_alpha", "cutmix_alpha")
  if run.batch_size % 2 and any(map(section["augment"].get, mixes)):
    raise ValueError(
      "expected an even config.run.batch_size, since Mixup and CutMix mix "
      f"pairs, got {run.batch_size}"
    )
  data = sections.make(sections.Data, "data", section["data"])
  images = planned or inputs.Inputs(
    data, batch_size=run.batch_size, seed=run.seed
  )
  if isinstance(images, inputs.Inputs):
    images.check_fits(mesh)
  info, num_train = images.info, images.num_train
  if run.batch_size > num_train:
    raise ValueError(
      f"expected config.run.batch_size <= {num_train}, the images in "
      f"{data.train_split!r} of {data.name}, got {run.batch_size}: a batch "
      "would contain duplicates"
    )

  total_steps = max(1, round(run.epochs * num_train / run.batch_size))
  length = lengths.Length(
    steps=total_steps,
    per_epoch=num_train / run.batch_size,
    batch_size=run.batch_size,
    accumulate=run.accumulate,
  )
  run = durations.in_steps(run, length)
  objective, loaded = assembly.make_objective(
    section,
    info,
    images.image_size,
    run,
    mesh,
    length=length,
    from_file=planned is None,
    pinned=pinned,
  )
  if run.profile_at > total_steps:
    raise ValueError(
      f"expected config.run.profile_at <= {total_steps}, the run's steps, got "
      f"{run.profile_at}"
    )
  schedule = optimizer_section.schedule(section["schedule"], length)
  parts = Experiment(
    run=run,
    data=data,
    inputs=images,
    objective=objective,
    augment=sections.call(
      augmentation.make_augment,
      "augment",
      section["augment"],
      num_classes=info.num_classes,
    ),
    optimizer=optimizer_section.make(
      section["optimizer"],
      schedule,
      objective.student.depth,
      objective.frozen,
    ),
    schedule=schedule,
    mesh=mesh,
    total_steps=total_steps,
    teacher_params={name: x.params for name, x in loaded.items()},
    teacher_pins={name: x.pin for name, x in loaded.items()},
    teacher_notes={name: x.notes for name, x in loaded.items()},
    start=starts.make(
      section["student"],
      info,
      images.image_size,
      from_file=planned is None,
      pinned=started,
      resumes=resumes,
    ),
  )
  if trace:
    parts.check()
  return parts
