"""Schedule, decay mask, optimiser chain and EMA of both recipes."""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Leaves that do not decay, by name: norms, biases, tokens with a position,
# the position embedding. The mask token is not among them, as in the paper.
_NO_DECAY = ("bias", "scale", "cls", "dist", "reg", "pos_embedding")

Schedule = Callable[[jax.Array], jax.Array]


def make_schedule(
  *,
  kind: str,
  peak: float,
  total_steps: int,
  warmup_steps: int,
  warmup_start: float,
  end: float,
) -> Schedule:
  """Learning rate by step: a warm-up and a cosine over the whole training.

  The cosine runs from step 0 in both recipes, so that the warm-up does not
  shift it. The kinds differ in the warm-up: "mmcls" scales the cosine by
  1 - (1 - i / warm)(1 - warmup_start / peak) (the reference's mmcls 0.x hook),
  "deit" is the straight line from `warmup_start` to `peak` (timm).

  Args:
    kind: "mmcls" or "deit".
    peak: the highest learning rate.
    total_steps: steps of the whole training.
    warmup_steps: steps of warm-up; 0 for none.
    warmup_start: learning rate at step 0, if there is a warm-up.
    end: learning rate that the cosine ends at.

  Returns:
    A function of an int step, to a float32 scalar.

  Raises:
    ValueError: an unknown kind, a warm-up longer than the training, or a
      learning rate that is negative or, at the peak, not positive.
  """
  if kind not in ("mmcls", "deit"):
    raise ValueError(f"schedule kind {kind!r}: wanted 'mmcls' or 'deit'")
  rates = (peak, warmup_start, end)
  if not (peak > 0 and all(0 <= rate < math.inf for rate in rates)):
    raise ValueError(
      f"learning rates peak={peak}, warmup_start={warmup_start}, end={end}: "
      "wanted a positive peak and no negative or infinite one"
    )
  if not 0 <= warmup_steps <= total_steps:
    raise ValueError(
      f"a warm-up of {warmup_steps} steps does not fit a training of "
      f"{total_steps}; lower schedule.warmup_epochs"
    )

  def schedule(step):
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
  """True for each leaf that weight decay applies to.

  None on norms, biases, prefix tokens, position embeddings and LayerScale;
  everything else decays, the mask token and the generator included.
  """

  def decays(path, _):
    name = path[-1].key
    return name not in _NO_DECAY and not name.startswith("layerscale_")

  return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
  schedule: Schedule,
  *,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  clip_norm: float | None,
) -> optax.GradientTransformation:
  """AdamW with the recipes' decay mask, after a clip by the global norm.

  Args:
    schedule: learning rate by step.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment; positive.
    weight_decay: decoupled, times the learning rate, as in PyTorch.
    clip_norm: largest global norm over all trainable leaves, student and
      head together; None or 0 for no clipping.

  Raises:
    ValueError: a number out of its range.
  """
  for name, value in (("b1", b1), ("b2", b2)):
    if not 0 <= value < 1:
      raise ValueError(f"optimizer {name}={value} is not in [0, 1)")
  # The step relies on it: an update of a finite gradient is finite.
  if not 0 < eps < math.inf:
    raise ValueError(f"optimizer eps={eps}: wanted a positive number")
  for name, value in (("weight_decay", weight_decay), ("clip_norm", clip_norm)):
    if not 0 <= (value or 0.0) < math.inf:
      raise ValueError(f"optimizer {name}={value}: wanted 0 or more")
  adamw = optax.adamw(
    schedule,
    b1=b1,
    b2=b2,
    eps=eps,
    weight_decay=weight_decay,
    mask=decay_mask,
  )
  if not clip_norm:
    return adamw
  return optax.chain(optax.clip_by_global_norm(clip_norm), adamw)


def update_ema(ema: Any, params: Any, decay: float) -> Any:
  """decay ema + (1 - decay) params, leaf by leaf."""
  return optax.incremental_update(params, ema, 1 - decay)
