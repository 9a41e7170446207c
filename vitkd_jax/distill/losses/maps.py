"""Losses between token maps: pure, one value per example, in float32."""

import jax
import jax.numpy as jnp

from vitkd_jax.distill.losses import arrays

REDUCTIONS = ("sum", "mean")

# The published settings of ViTKD: lambda and sums (arXiv:2209.02432). Every
# default below, in `heads` and in a training's config is one of these.
MASK_RATIO = 0.5
REDUCTION = "sum"


def _reduce(squared: jax.Array, reduction: str) -> jax.Array:
  """[B, ..., N, D] -> [B]: the sum, or the sum divided by N D."""
  if reduction not in REDUCTIONS:
    raise ValueError(
      f"expected reduction to be one of {', '.join(REDUCTIONS)}, got "
      f"{reduction!r}"
    )
  total = jnp.sum(squared, axis=tuple(range(1, squared.ndim)))
  if reduction == "mean":
    total /= squared.shape[-2] * squared.shape[-1]
  return total


def mimic(
  student: jax.Array, teacher: jax.Array, *, reduction: str = REDUCTION
) -> jax.Array:
  """Squared distance between (aligned) token maps: ViTKD's shallow term.

  arXiv:2209.02432, equation 3, without its weight alpha.

  Args:
    student: [B, K, N, D] maps of K blocks, or [B, N, D].
    teacher: the same shape.
    reduction: "sum" over blocks, tokens and channels (the paper), or "mean",
      that sum divided by N D, so that a weight carries over to other widths
      and grids.

  Returns:
    [B] float32.

  Raises:
    ValueError: the shapes differ, or the reduction is unknown.
  """
  arrays.check_same_shape(("student", "teacher"), student, teacher)
  student, teacher = arrays.float32(student, jax.lax.stop_gradient(teacher))
  return _reduce(jnp.square(student - teacher), reduction)


def generation(
  generated: jax.Array,
  teacher: jax.Array,
  mask: jax.Array,
  *,
  mask_ratio: float = MASK_RATIO,
  reduction: str = REDUCTION,
) -> jax.Array:
  """Squared distance at the replaced tokens: ViTKD's deep term.

  arXiv:2209.02432, equation 6, without its weight beta. The division by
  lambda is in the authors' code alone. With `mask_ratio` 0 every token counts
  and nothing is divided.

  Args:
    generated: [B, N, D] output of the generator.
    teacher: [B, N, D].
    mask: [B, N] bool, True where the token was replaced.
    mask_ratio: lambda, in [0, 1).
    reduction: "sum" (the paper), or "mean", that sum divided by N D.

  Returns:
    [B] float32.

  Raises:
    ValueError: shapes disagree, the ratio is outside [0, 1), or the reduction
      is unknown.
  """
  arrays.check_same_shape(("generated", "teacher"), generated, teacher)
  arrays.check_same_shape(("mask", "token grid"), mask, generated[..., 0])
  if not 0 <= mask_ratio < 1:
    raise ValueError(f"expected 0 <= mask_ratio < 1, got {mask_ratio}")
  generated, teacher = arrays.float32(generated, jax.lax.stop_gradient(teacher))
  squared = jnp.square(generated - teacher)
  if mask_ratio == 0:
    return _reduce(squared, reduction)
  squared = jnp.where(mask[..., None], squared, 0.0)
  return _reduce(squared, reduction) / mask_ratio
