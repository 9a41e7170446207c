"""Position embeddings: fixed ones, and learned ones at another size."""

import math

import jax
import jax.numpy as jnp


def sincos_2d(height: int, width: int, dim: int) -> jax.Array:
  """The fixed 2-D sine-cosine embedding of MoCo v3, arXiv:2104.02057.

  Returns:
    [1, height * width, dim] float32.

  Raises:
    ValueError: dim is not a multiple of 4, or below 8.
  """
  if dim % 4 or dim < 8:
    raise ValueError(
      f"sincos2d needs a width of 8 or more, divisible by 4; got {dim}"
    )
  omega = 10_000.0 ** -(jnp.arange(dim // 4) / (dim // 4 - 1))
  y, x = jnp.mgrid[:height, :width]
  y, x = (jnp.einsum("m,d->md", a.flatten(), omega) for a in (y, x))
  parts = [jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)]
  return jnp.concatenate(parts, axis=1)[None].astype(jnp.float32)


def resize_posemb(posemb: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Position embeddings of another grid, resampled by anti-aliased bicubic.

  This is timm's `resample_abs_pos_embed` (bicubic, antialias): both use the
  kernel with a = -1/2. big_vision's loader resamples linearly.

  Args:
    posemb: [1, N, D]; N is taken as a square grid.
    grid: rows and columns wanted.

  Returns:
    [1, rows * columns, D]; `posemb` itself where N is already that.

  Raises:
    ValueError: N is no square, so that its grid is unknown.
  """
  _, tokens, width = posemb.shape
  if tokens == grid[0] * grid[1]:
    return posemb
  side = math.isqrt(tokens)
  if side * side != tokens:
    raise ValueError(
      f"position embedding of {tokens} tokens is no square grid and cannot be "
      f"resized to {grid[0]}x{grid[1]}; use the image size it was made for"
    )
  square = jnp.reshape(posemb, (side, side, width))
  resized = jax.image.resize(square, (*grid, width), "cubic", antialias=True)
  return jnp.reshape(resized, (1, -1, width))
