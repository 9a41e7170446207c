"""Normalisations of features in float32, safe where the norm is zero.

All take [..., D] float32 and keep the shape; D is the width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# A shorter vector is zero; PyTorch's `normalize` has the same bound.
SHORTEST = 1e-12
# PyTorch's default of LayerNorm and BatchNorm.
EPSILON = 1e-5


def l2(x: jax.Array) -> jax.Array:
  """Vectors of length 1; one shorter than 1e-12 becomes 0, without gradient.

  PyTorch divides such a vector by 1e-12, which multiplies its gradient by
  1e12.

  Args:
    x: [..., D] float32.
  """
  squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  long = squared > SHORTEST**2
  return jnp.where(long, x * jax.lax.rsqrt(jnp.where(long, squared, 1.0)), 0.0)


def centre(x: jax.Array) -> jax.Array:
  """Tokens less their mean over the image; exactly 0 where all are equal.

  Args:
    x: [B, N, D] float32.
  """
  # The first token cancels. Without it the mean of equal tokens is off by
  # rounding, which an L2 norm would scale up to length 1.
  x -= jax.lax.stop_gradient(x[:, :1])
  return x - jnp.mean(x, axis=1, keepdims=True)


def mean_removed_l2(x: jax.Array) -> jax.Array:
  """`l2` of `centre`: ScaleKD's frequency branch, arXiv:2411.06786.

  The authors' `fmd.py` sets the zero frequency of a discrete cosine transform
  to 0 and transforms back, which removes the mean.

  Args:
    x: [B, N, D] float32.
  """
  return l2(centre(x))


def layer_norm(x: jax.Array) -> jax.Array:
  """Mean 0 and variance 1 over the channels, no scale and bias.

  Args:
    x: [..., D] float32.
  """
  return _standardize(x, (-1,))


def batch_norm(x: jax.Array) -> jax.Array:
  """Mean 0 and variance 1 of each channel over the batch and its tokens.

  Args:
    x: [B, ..., D] float32.
  """
  return _standardize(x, tuple(range(x.ndim - 1)))


def _standardize(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  x -= jnp.mean(x, axis=axes, keepdims=True)
  variance = jnp.mean(jnp.square(x), axis=axes, keepdims=True)
  return x * jax.lax.rsqrt(variance + EPSILON)


NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "none": lambda x: x,
  "l2": l2,
  "mean_removed_l2": mean_removed_l2,
  "layer_norm": layer_norm,
  "batch_norm": batch_norm,
}
