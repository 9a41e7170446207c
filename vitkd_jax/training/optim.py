"""Schedules, decay mask, optimiser and moving average."""

from collections.abc import Callable, Collection
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vitkd_jax import check
from vitkd_jax.training import leaves, optimizers

# Names of leaves without weight decay: norms, biases, prefix tokens and the
# position embedding. The mask token decays, as in the paper.
_NO_DECAY = (
  "bias",
  "scale",
  "cls",
  "dist",
  "reg",
  "pos_embedding",
  "orthogonal",  # VkD's projector, which is its QR decomposition alone
)

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def make_schedule(
  *,
  kind: str,
  peak: float,
  total_steps: int,
  warmup_steps: int,
  warmup_start: float,
  end: float,
) -> Schedule:
  """Learning rate by step: warm-up and cosine decay over the whole training.

  The cosine runs from step 0, so that the warm-up does not shift it. The kinds
  differ in the warm-up: "mmcls" scales the cosine by
  1 - (1 - i / warm)(1 - warmup_start / peak) (the hook of mmcls 0.x, which the
  authors used), "deit" is linear from `warmup_start` to `peak` (timm).

  Args:
    kind: "mmcls" or "deit".
    peak: highest learning rate, > 0.
    total_steps: number of updates in the training.
    warmup_steps: number of warm-up updates, <= total_steps; 0 for none.
    warmup_start: learning rate at step 0 of a warm-up, >= 0.
    end: learning rate at the end of the cosine, >= 0.

  Returns:
    A function from an int step to a float32 scalar.

  Raises:
    ValueError: the kind is unknown, or a number is out of its range.
  """
  check.known("schedule kind", kind, ("mmcls", "deit"))
  rates = (peak, warmup_start, end)
  if not (peak > 0 and all(0 <= rate < math.inf for rate in rates)):
    raise ValueError(
      "expected finite learning rates peak > 0, warmup_start >= 0 and "
      f"end >= 0, got {peak}, {warmup_start} and {end}"
    )
  if not 0 <= warmup_steps <= total_steps:
    raise ValueError(
      f"expected a warm-up of at most {total_steps} steps, the whole training, "
      f"got {warmup_steps}; lower schedule.warmup_epochs"
    )

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    fraction = jnp.clip(step / max(total_steps, 1), 0, 1)
    cosine = end + (peak - end) * (1 + jnp.cos(jnp.pi * fraction)) / 2
    if not warmup_steps:
      return cosine
    done = jnp.clip(step / warmup_steps, 0, 1)
    if kind == "mmcls":
      start = warmup_start / peak
      return cosine * (start + done * (1 - start))
    line = warmup_start + (peak - warmup_start) * done
    return jnp.where(step < warmup_steps, line, cosine)

  return schedule


def decay_mask(params: Any) -> Any:
  """True at each leaf that weight decay applies to.

  Norms, biases, prefix tokens, position embeddings and LayerScale do not
  decay; everything else does, including the mask token and the generator.

  Args:
    params: tree of dicts, whose leaves are told apart by name.
  """

  def decays(path: tuple[Any, ...], _: Any) -> bool:
    name = path[-1].key
    return name not in _NO_DECAY and not name.startswith("layerscale_")

  return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
  schedule: Schedule,
  depth: int = 0,
  frozen: Collection[str] = (),
  *,
  clip_norm: float | None,
  name: str = "adamw",
  layer_decay: float = 1.0,
  **options: Any,
) -> optax.GradientTransformation:
  """An optimiser with the recipes' decay mask, after clipping by global norm.

  Args:
    schedule: learning rate by step.
    depth: number of the student's blocks.
    frozen: names of the student's leaves to leave as they are.
    clip_norm: largest global norm of the gradient, student and methods
      together; None or 0 for no clipping.
    layer_decay: factor in (0, 1] of the learning rate from each of the
      student's layers to the one before it, see `leaves.decayed`; 1 for none.
    name: "adamw", "lamb", "lion", "sgd", "adafactor" or "muon".
    **options: of that function in `optimizers`; each takes `weight_decay`.

  Raises:
    ValueError: the name is unknown, or a number is out of its range.
  """
  optimizers.keys(name)
  check.reals(clip_norm=clip_norm or 0.0)
  optimizer = optimizers.OPTIMIZERS[name](schedule, decay_mask, **options)
  optimizer = leaves.decayed(optimizer, layer_decay, depth)
  if clip_norm:
    clip = optax.clip_by_global_norm(clip_norm)
    optimizer = optax.chain(clip, optimizer)
  return leaves.thawed(optimizer, frozen)


def update_ema(ema: Any, params: Any, decay: float) -> Any:
  """The average decay * ema + (1 - decay) * params, leaf by leaf.

  Args:
    ema: the average so far.
    params: tree of the same structure.
    decay: in [0, 1).
  """
  return optax.incremental_update(params, ema, 1 - decay)
