"""The train step and the eval step: the only place where loss weights meet."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vitkd_jax.data import augment as augmentation
from vitkd_jax.distill import heads, losses, tokens
from vitkd_jax.models import vit
from vitkd_jax.training import optim
from vitkd_jax.training import state as states

# Every term of the total loss, in the order in which they are reported.
TERMS = ("task", "mimic", "generation", "nkd", "kl", "hard")
FEATURE_TERMS = ("mimic", "generation")
LOGIT_TERMS = ("nkd", "kl", "hard")

Stats = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a training minimises: models, what they are compared by, weights.

  Attributes:
    student: the trained model.
    student_stats: mean and std of images in [0, 1], as the student wants.
    weights: {term: weight}; the terms that are computed, all in `TERMS`.
    teacher: the frozen model, or None where no term needs it.
    teacher_stats: as the teacher wants.
    head: the modules trained beside the student, or None without features.
    select: keyword arguments of `tokens.select`.
    student_grid: rows and columns of the student's token map.
    teacher_grid: those of the teacher's map, which is resampled if they
      differ.
    temperature: of NKD and KL.
    gamma: of NKD.
  """

  student: vit.ViT
  student_stats: Stats
  weights: Mapping[str, float]
  student_grid: tuple[int, int]
  teacher: vit.ViT | None = None
  teacher_stats: Stats | None = None
  teacher_grid: tuple[int, int] | None = None
  head: heads.ViTKD | None = None
  select: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  temperature: float = 1.0
  gamma: float = 1.0

  @property
  def terms(self) -> tuple[str, ...]:
    """The names of the terms, in the order of `TERMS`."""
    return tuple(term for term in TERMS if term in self.weights)

  @property
  def metric_names(self) -> tuple[str, ...]:
    """The names of the metrics that a step adds up."""
    names = ["loss", "accuracy", "learning_rate", "grad_norm"]
    names += [f"grad_norm_{part}" for part in ("student", "head")]
    names += [f"raw_{term}" for term in self.terms]
    names += [f"weighted_{term}" for term in self.terms]
    return tuple(names)

  def init_params(self, key: jax.Array, image_shape: tuple) -> dict[str, Any]:
    """{"student": ..., "head": ...} for images [1, H, W, 3]."""
    key_student, key_head = jax.random.split(key)
    image = jnp.zeros(image_shape, jnp.float32)
    params = self.student.init(key_student, image)["params"]
    if self.head is None:
      return {"student": params, "head": {}}
    blocks = len(self.select.get("low_blocks", (0, 1)))
    grid = self.student_grid[0] * self.student_grid[1]
    maps = [
      jnp.zeros((1, *shape))
      for width in (self.student.width, self.head.teacher_width)
      for shape in ((blocks, grid, width), (grid, width))
    ]
    mask = jnp.zeros((1, grid), bool)
    head = self.head.init(key_head, *maps, mask)["params"]
    return {"student": params, "head": head}

  def teacher_view(self, teacher_params: Any, image: jax.Array) -> Any:
    """The frozen teacher's (logits, low, high); None without a teacher."""
    if self.teacher is None:
      return None
    image = augmentation.normalize(image, *self.teacher_stats)
    logits, out = self.teacher.apply({"params": teacher_params}, image)
    if self.head is None:
      return jax.lax.stop_gradient((logits, None, None))
    low, high = self._select(self.teacher, out)
    low, high = (
      tokens.resample(x, self.teacher_grid, self.student_grid)
      for x in (low, high)
    )
    return jax.lax.stop_gradient((logits, low, high))

  def losses(
    self, params, view, image, target, mask, key_drop
  ) -> tuple[dict[str, jax.Array], jax.Array]:
    """{term: [B] float32}, unweighted, and the student's logits [B, C]."""
    image = augmentation.normalize(image, *self.student_stats)
    logits, out = self.student.apply(
      {"params": params["student"]},
      image,
      train=True,
      rngs={"dropout": key_drop},
    )
    # A distillation token learns from the teacher, the CLS token from labels.
    task_logits = out.get("logits_cls", logits)
    taught_logits = out.get("logits_dist", logits)
    values = {"task": losses.soft_cross_entropy(task_logits, target)}
    if view is not None:
      teacher_logits, low, high = view
      values |= self._logit_losses(taught_logits, teacher_logits, target)
    if self.head is not None:
      values |= self.head.apply(
        {"params": params["head"]},
        *self._select(self.student, out),
        low,
        high,
        mask,
      )
    return {term: values[term] for term in self.terms}, logits

  def _logit_losses(self, student, teacher, target):
    temperature = self.temperature
    functions = {
      "nkd": lambda: losses.nkd(
        student, teacher, target, temperature=temperature, gamma=self.gamma
      ),
      "kl": lambda: losses.kl(student, teacher, temperature=temperature),
      "hard": lambda: losses.hard_distillation(student, teacher),
    }
    return {
      term: functions[term]() for term in LOGIT_TERMS if term in self.weights
    }

  def _select(self, model, out):
    prefix = model.num_prefix_tokens
    return tokens.select(out, num_prefix_tokens=prefix, **self.select)


def make_train_step(
  objective: Objective,
  *,
  augment: Callable,
  optimizer: optax.GradientTransformation,
  schedule: optim.Schedule,
  seed: int,
  log_every: int,
  ema_decay: float | None = None,
  accumulate: int = 1,
) -> Callable:
  """The function (state, teacher_params, batch) -> (state, metrics).

  To be jitted with the state donated. All randomness is a function of
  (seed, state.step). An update whose loss or gradient is not finite is left
  out, the moving average included, and noted in the state.

  Args:
    objective: models, losses and weights.
    augment: from `augment.make_augment`.
    optimizer: over {"student", "head"}.
    schedule: learning rate by step, for the metric alone.
    seed: of augmentation, masks and dropout.
    log_every: steps over which metrics are added up.
    ema_decay: of the student's moving average; None for no average.
    accumulate: number of micro-batches that a batch is worked off in.

  Returns:
    The step; `metrics` is {name: float32 [2]}, (sum, count) since the last
    multiple of `log_every`.
  """

  def step(state, teacher_params, batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    key_augment, key_mask, key_drop = jax.random.split(key, 3)
    image, target = augment(key_augment, batch["image"], batch["label"])
    whole = {"image": image, "target": target}
    whole["mask"] = draw_mask(objective, key_mask, image.shape[0])
    compute = functools.partial(
      gradients, objective, state.params, teacher_params
    )
    grads, means = _accumulate(compute, whole, key_drop, accumulate)

    norms = {
      part: optax.global_norm(grads[part]) for part in ("student", "head")
    }
    norm = jnp.hypot(norms["student"], norms["head"])
    checked = jnp.stack([means[term] for term in objective.terms] + [norm])
    finite = jnp.isfinite(checked)
    new = _update(state, grads, optimizer, ema_decay, jnp.all(finite))

    measured = {
      "loss": means["loss"],
      "accuracy": means["accuracy"],
      "learning_rate": schedule(state.step),
      "grad_norm": norm,
      **{f"grad_norm_{part}": value for part, value in norms.items()},
    }
    for term in objective.terms:
      measured[f"raw_{term}"] = means[term]
      measured[f"weighted_{term}"] = objective.weights[term] * means[term]
    fresh = state.step % log_every == 0
    metrics = {
      name: jnp.where(fresh, 0.0, state.metrics[name])
      + jnp.stack([jnp.float32(value), jnp.float32(1)])
      for name, value in measured.items()
    }
    first_bad = ~jnp.all(finite) & (state.bad_step < 0)
    new = new.replace(
      step=state.step + 1,
      metrics=metrics,
      bad_step=jnp.where(first_bad, state.step, state.bad_step),
      bad_terms=jnp.where(first_bad, ~finite, state.bad_terms),
    )
    return new, {
      "metrics": metrics,
      "bad_step": new.bad_step,
      "bad_terms": new.bad_terms,
    }

  return step


def gradients(
  objective: Objective, params: Any, teacher_params: Any, micro: Any
) -> tuple[Any, dict[str, jax.Array]]:
  """Gradients of a batch's mean total loss, and its mean terms.

  Args:
    objective: models, losses and weights.
    params: {"student": ..., "head": ...}.
    teacher_params: of the frozen teacher; None without one.
    micro: {"image": float32 [B, H, W, 3] in [0, 1], "target": float32 [B, C],
      "mask": from `draw_mask`, "key": for dropout}.

  Returns:
    A tree like `params`, and {"loss", "accuracy", each term} as scalars.
  """
  view = objective.teacher_view(teacher_params, micro["image"])

  def loss(params):
    terms, logits = objective.losses(
      params,
      view,
      micro["image"],
      micro["target"],
      micro["mask"],
      micro["key"],
    )
    means = {term: jnp.mean(value) for term, value in terms.items()}
    total = sum(objective.weights[term] * means[term] for term in means)
    hit = jnp.argmax(logits, -1) == jnp.argmax(micro["target"], -1)
    return total, {"loss": total, "accuracy": jnp.mean(hit), **means}

  return jax.grad(loss, has_aux=True)(params)


def draw_mask(objective: Objective, key: jax.Array, batch: int) -> jax.Array:
  """The tokens to replace, bool [B, N]; [B, 0] without a head."""
  if objective.head is None:
    return jnp.zeros((batch, 0), bool)
  num_tokens = objective.student_grid[0] * objective.student_grid[1]
  return tokens.random_mask(key, batch, num_tokens, objective.head.mask_ratio)


def _accumulate(compute, whole, key_drop, count):
  """Mean gradients and terms over `count` micro-batches, one at a time."""
  if count == 1:
    return compute(whole | {"key": key_drop})
  # Every count-th example: a micro-batch then lies on all devices.
  micro = {
    name: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)
    for name, x in whole.items()
  }
  micro["key"] = jax.random.split(key_drop, count)

  def add(total, part):
    return jax.tree.map(jnp.add, total, compute(part)), None

  shapes = jax.eval_shape(compute, jax.tree.map(lambda x: x[0], micro))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  total, _ = jax.lax.scan(add, zeros, micro)
  return jax.tree.map(lambda x: x / count, total)


def _update(
  state: states.TrainState, grads, optimizer, ema_decay, apply
) -> states.TrainState:
  """The state after one update where `apply` is True, else as it was."""
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = state.ema
  if ema_decay is not None:
    ema = optim.update_ema(ema, params["student"], ema_decay)
  new = state.replace(params=params, opt_state=opt_state, ema=ema)
  return jax.tree.map(lambda n, old: jnp.where(apply, n, old), new, state)


def make_eval_step(model: vit.ViT, stats: Stats) -> Callable:
  """The function (sums, params, batch) -> sums; exact for any batch or mesh.

  Args:
    model: what is evaluated.
    stats: mean and std of images in [0, 1] that it wants.

  Returns:
    The step, to be jitted. `sums` comes from `zero_sums`; a batch has "image"
    uint8 [B, H, W, 3], "label" int32 [B] and "weight" float32 [B], 0 for
    padding.
  """

  def step(sums, params, batch):
    image = jnp.float32(batch["image"]) / 255
    image = augmentation.normalize(image, *stats)
    logits, _ = model.apply({"params": params}, image)
    logits = jnp.float32(logits)
    label, weight = batch["label"][:, None], batch["weight"]
    counted = (weight > 0).astype(jnp.int32)
    own = jnp.take_along_axis(logits, label, axis=-1)
    # Equal logits count for the class of the lower number, as in arg max.
    earlier = jnp.arange(logits.shape[-1]) < label
    rank = jnp.sum((logits > own) | ((logits == own) & earlier), axis=-1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), label, axis=-1)
    return {
      "top1": sums["top1"] + jnp.sum(counted * (rank < 1)),
      "top5": sums["top5"] + jnp.sum(counted * (rank < 5)),
      "nll": sums["nll"] + jnp.sum(jnp.where(weight > 0, nll[:, 0], 0.0)),
      "count": sums["count"] + jnp.sum(counted),
    }

  return step


def zero_sums() -> dict[str, jax.Array]:
  """What an evaluation starts from."""
  return {
    "top1": jnp.zeros((), jnp.int32),
    "top5": jnp.zeros((), jnp.int32),
    "nll": jnp.zeros((), jnp.float32),
    "count": jnp.zeros((), jnp.int32),
  }
