"""The train step."""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax

from vitkd_jax.distill import frozen as frozen_leaves
from vitkd_jax.distill import objective as objectives
from vitkd_jax.training import optim
from vitkd_jax.training.state import TrainState


def keys(seed: int, step: jax.Array | int) -> jax.Array:
  """The keys of a step's augmentation, methods' draws and dropout.

  Args:
    seed: of the run.
    step: number of updates done.
  """
  return jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 3)


def prepare(
  draw: Callable[[jax.Array, int], Any],
  augment: Callable,
  seed: int,
  step: jax.Array,
  batch: Mapping[str, jax.Array],
) -> tuple[dict[str, Any], jax.Array]:
  """What a step trains on, and its key of dropout.

  Args:
    draw: from a key and the batch's size B to the methods' draws [B, ...], such
      as `Objective.draws`.
    augment: from `augment.make_augment`.
    seed: of the run.
    step: number of updates done.
    batch: see `make_train_step`.

  Returns:
    {"image": float32 [B, H, W, 3] in [0, 1], "target": float32 [B, C],
    "draws"}, and the key.
  """
  key_augment, key_draws, key_drop = keys(seed, step)
  image, target = augment(key_augment, batch["image"], batch["label"])
  draws = draw(key_draws, image.shape[0])
  return {"image": image, "target": target, "draws": draws}, key_drop


@dataclasses.dataclass(frozen=True)
class Student:
  """How one of the students that train side by side is trained.

  Attributes:
    objective: models, methods and loss weights.
    optimizer: optimises {"student", "methods"}.
    schedule: learning rate by step, for the metric alone.
    log_every: number of steps over which metrics accumulate.
    ema_decay: decay of the student's moving average, in [0, 1); None for no
      average.
  """

  objective: objectives.Objective
  optimizer: optax.GradientTransformation
  schedule: optim.Schedule
  log_every: int
  ema_decay: float | None = None


def make_train_step(
  students: Sequence[Student],
  *,
  augment: Callable,
  seed: int,
  accumulate: int = 1,
  gather: Callable = lambda params: params,
) -> Callable:
  """The function (states, teacher_params, batch) -> [(state, report), ...].

  To be jitted with the states donated. All randomness is a function of
  (seed, step). An update whose loss or gradient is not finite is skipped,
  moving average and metrics included, and counted in the state.

  The students see the same images, and each teacher once; otherwise each is
  trained as it would be alone.

  Args:
    students: how each is trained. Teachers of one name must be the same.
    augment: from `augment.make_augment`.
    seed: seed of augmentation, methods' draws and dropout.
    accumulate: number of gradient-accumulation steps.
    gather: replicates parameters that are sharded over devices.

  Returns:
    The step. The states are at one step; `teacher_params` has every teacher. A
    batch is {"image": uint8 [B, H, W, 3], "label": int32 [B]}. A report has
    "metrics", {name: float32 [2]}, (sum, count) since the last multiple of
    `log_every`; "skipped" as in the state; and "bad", bool [number of terms +
    1]: which terms, and whether the gradient, were not finite in this step.
  """
  all_objectives = [student.objective for student in students]
  every = objectives.together(all_objectives)

  def draw(key: jax.Array, batch: int) -> list[dict[str, Any]]:
    return [objective.draws(key, batch) for objective in all_objectives]

  def step(
    states: Sequence[TrainState],
    teacher_params: Any,
    batch: Mapping[str, jax.Array],
  ) -> list[tuple[TrainState, dict[str, Any]]]:
    now = states[0].step
    whole, key_drop = prepare(draw, augment, seed, now, batch)
    weights = [objective.weights_at(now) for objective in all_objectives]
    params = [gather(state.params) for state in states]
    teacher_params = gather(teacher_params)

    def compute(micro: dict[str, Any]) -> list[Any]:
      views = every.teacher_views(teacher_params, micro["image"])
      return [
        objectives.gradients_by_views(
          objective, params[i], views, weights[i], {**micro, "draws": drawn}
        )
        for i, (objective, drawn) in enumerate(
          zip(all_objectives, micro["draws"], strict=True)
        )
      ]

    found = _accumulate(compute, whole, key_drop, accumulate)
    return [
      _updated(*each)
      for each in zip(students, states, weights, found, strict=True)
    ]

  return step


def _updated(
  student: Student,
  state: TrainState,
  weights: Mapping[str, Any],
  found: tuple[Any, dict[str, jax.Array]],
) -> tuple[TrainState, dict[str, Any]]:
  """The state after a step and its report, from gradients and means."""
  objective, (grads, means) = student.objective, found
  norms = {part: optax.tree.norm(grads[part]) for part in objectives.PARTS}
  norm = jnp.hypot(*norms.values())
  # Independent of the update's result, so that the skip fuses with the
  # optimiser. AdamW's update of a finite gradient is finite.
  bad = ~jnp.isfinite(
    jnp.stack([*(means[term] for term in objective.terms), norm])
  )
  skip = jnp.any(bad)
  new = _update(
    state, grads, student.optimizer, student.ema_decay, objective.frozen
  )
  new = jax.tree.map(lambda new, old: jnp.where(skip, old, new), new, state)

  measured = {
    "loss": means["loss"],
    "accuracy": means["accuracy"],
    # The optimiser counts only the updates that it applied.
    "learning_rate": student.schedule(state.step - state.skipped[0]),
    "grad_norm": norm,
    **{f"grad_norm_{part}": value for part, value in norms.items()},
  }
  for term in objective.terms:
    measured[term] = means[term]
    measured[f"weighted/{term}"] = weights[term] * means[term]
  fresh = state.step % student.log_every == 0
  metrics = {
    name: jnp.where(fresh, 0.0, state.metrics[name])
    + jnp.where(skip, 0.0, jnp.stack([jnp.float32(value), jnp.float32(1)]))
    for name, value in measured.items()
  }
  skipped = jnp.where(
    skip, state.skipped + 1, state.skipped * jnp.array([1, 0])
  )
  new = dataclasses.replace(
    new, step=state.step + 1, metrics=metrics, skipped=skipped
  )
  return new, {"metrics": metrics, "skipped": skipped, "bad": bad}


def _accumulate(
  compute: Callable[[Any], Any],
  whole: dict[str, Any],
  key_drop: jax.Array,
  count: int,
) -> Any:
  """Mean gradients and terms over `count` micro-batches, one at a time."""
  if count == 1:
    return compute(whole | {"key": key_drop})
  image = whole["image"]
  # A TPU slices rows much faster than pixels of three channels.
  rows = whole | {"image": einops.rearrange(image, "b h w c -> b h (w c)")}
  # Every count-th example, so that a micro-batch is spread over all devices.
  micro = jax.tree.map(
    lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), rows
  )
  micro["key"] = jax.random.split(key_drop, count)

  def one(part: dict[str, Any]) -> Any:
    pixels = part["image"].reshape(-1, *image.shape[1:])
    return compute(part | {"image": pixels})

  def add(total: Any, part: dict[str, Any]) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, one(part)), None

  shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], micro))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  total, _ = jax.lax.scan(add, zeros, micro)
  return jax.tree.map(lambda x: x / count, total)


def _update(
  state: TrainState,
  grads: Any,
  optimizer: optax.GradientTransformation,
  ema_decay: float | None,
  frozen: Collection[str],
) -> TrainState:
  """The state after one update, its counters unchanged."""
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = state.ema
  if ema_decay is not None:
    ema = optim.update_ema(ema, params["student"], ema_decay)
    # A mean of equal numbers is not quite that number.
    ema = frozen_leaves.where(frozen, ema, params["student"])
  return dataclasses.replace(state, params=params, opt_state=opt_state, ema=ema)
