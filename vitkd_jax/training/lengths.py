"""What depends on how long a run is, and on its batches."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.distill import objective


@dataclasses.dataclass(frozen=True)
class Length:
  """How long a run is, and how many images its methods see at once.

  Attributes:
    steps: number of updates.
    per_epoch: updates per pass over the training split; fractional.
    batch_size: images per update.
    accumulate: gradient-accumulation steps per update.
  """

  steps: int
  per_epoch: float
  batch_size: int
  accumulate: int


def check_group(key: str, module: nn.Module, length: Length) -> None:
  """Checks a method that compares examples of a batch with each other.

  Args:
    key: full name of its section.
    module: the method.
    length: of the run.

  Raises:
    ValueError: gradient accumulation would change it, or its group does not
      divide the batch.
  """
  if not getattr(module, "across_batch", False):
    return
  group: Any = getattr(module, "group", 0)
  size = length.batch_size // length.accumulate
  if length.accumulate > 1 and not group:
    raise ValueError(
      f"{key} compares the images of a batch with each other, so that "
      f"config.run.accumulate={length.accumulate} changes it: "
      + (
        f"set {key}.group to the images to compare, a divisor of {size}"
        if hasattr(module, "group")
        else "set config.run.accumulate=1"
      )
    )
  if group < 0 or (group and size % group):
    raise ValueError(
      f"expected {key}.group to divide the {size} images of a batch"
      + " of a gradient-accumulation step" * (length.accumulate > 1)
      + f", got {group}"
    )


def weight_over(
  weight: float,
  length: Length,
  *,
  ramp_epochs: float,
  until_epoch: float,
  cosine: bool,
) -> objective.Weight:
  """A loss weight over a run; a number where it is constant.

  Args:
    weight: its value.
    length: of the run.
    ramp_epochs: epochs over which it rises, epoch by epoch: in the first it is
      weight / ramp_epochs; 0 for none.
    until_epoch: epoch from which on it is 0; 0 for the whole run.
    cosine: fall from the value to 0 over the run.
  """
  if not (ramp_epochs or until_epoch or cosine):
    return weight

  def at(step: jax.Array) -> jax.Array:
    epoch = jnp.floor(step / length.per_epoch)
    value = jnp.float32(weight)
    if ramp_epochs:
      value *= jnp.minimum((epoch + 1) / ramp_epochs, 1)
    if until_epoch:
      value *= step < until_epoch * length.per_epoch
    if cosine:
      value *= (1 + jnp.cos(math.pi * step / length.steps)) / 2
    return value

  return at
