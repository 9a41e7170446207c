"""Position embeddings: fixed, and learned ones resized to another grid."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def sincos_2d(height: int, width: int, dim: int) -> jax.Array:
  """The fixed 2-D sine-cosine embedding of MoCo v3, arXiv:2104.02057.

  Args:
    height: rows of patch tokens.
    width: columns of patch tokens.
    dim: D, >= 8 and divisible by 4.

  Returns:
    [1, height * width, dim] float32.

  Raises:
    ValueError: dim is below 8 or not divisible by 4.
  """
  if dim % 4 or dim < 8:
    raise ValueError(
      f"expected width >= 8, divisible by 4, for posemb='sincos2d', got {dim}"
    )
  omega = 10_000.0 ** -(jnp.arange(dim // 4) / (dim // 4 - 1))
  y, x = jnp.mgrid[:height, :width]
  y, x = (jnp.einsum("m,d->md", a.flatten(), omega) for a in (y, x))
  parts = [jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)]
  return jnp.concatenate(parts, axis=1)[None].astype(jnp.float32)


def learned(
  module: nn.Module, grid: tuple[int, int], width: int, std: float
) -> jax.Array:
  """[1, N, D]: the parameter `pos_embedding` of a module, for any grid.

  Args:
    module: that calls.
    grid: rows and columns of patch tokens.
    width: D.
    std: standard deviation of initial values.
  """
  # An existing variable may belong to another image size.
  if module.has_variable("params", "pos_embedding"):
    return resize_posemb(module.get_variable("params", "pos_embedding"), grid)
  shape = (1, grid[0] * grid[1], width)
  return module.param("pos_embedding", nn.initializers.normal(std), shape)


def resize_posemb(posemb: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Resizes position embeddings to another grid by antialiased bicubic.

  This is timm's `resample_abs_pos_embed` (bicubic, antialias): both use the
  kernel with a = -1/2. big_vision's loader resamples linearly.

  Args:
    posemb: [1, N, D] of a square grid.
    grid: rows and columns of the result.

  Returns:
    [1, rows * columns, D]; `posemb` itself if N is rows * columns.

  Raises:
    ValueError: N is not a square, so its grid is unknown.
  """
  _, tokens, width = posemb.shape
  if tokens == grid[0] * grid[1]:
    return posemb
  side = math.isqrt(tokens)
  if side * side != tokens:
    raise ValueError(
      f"expected a position embedding of a square grid to resize to "
      f"{grid[0]}x{grid[1]}, got {tokens} tokens; use the image size it was "
      "made for"
    )
  square = jnp.reshape(posemb, (side, side, width))
  resized = jax.image.resize(square, (*grid, width), "cubic", antialias=True)
  return jnp.reshape(resized, (1, -1, width))
