"""Colour operations as PIL computes them, on float32 planes [B, 3, H, W].

Planes hold integers from 0 to 255 before and after. PIL's rounding (mostly
down) is kept, so results match its own but for rare ties.
"""

from typing import Any

import jax
import jax.numpy as jnp


def blend(
  degenerate: jax.Array, image: jax.Array, factor: jax.Array
) -> jax.Array:
  """Interpolates between `degenerate` and `image`, as PIL's ImageEnhance does.

  Each of its classes has its own degenerate image: black (Brightness),
  `grey_mean` (Contrast), `grey` (Color) and `smooth` (Sharpness).

  Args:
    degenerate: float32, broadcastable to the image; the result at factor 0.
    image: float32 [B, 3, H, W], the result at factor 1.
    factor: float32 [B, 1, 1, 1], >= 0; above 1 extrapolates.

  Returns:
    float32 [B, 3, H, W], integers in [0, 255].
  """
  return floor(degenerate + factor * (image - degenerate))


def floor(image: jax.Array) -> jax.Array:
  """`image` clipped to [0, 255] and rounded down to integers.

  Args:
    image: float32 of any shape.
  """
  # Add a thousandth: rounding errors may leave an integer slightly too small.
  return jnp.floor(jnp.clip(image, 0, 255) + 1e-3)


def grey(image: jax.Array) -> jax.Array:
  """float32 [B, 1, H, W]: ITU-R 601-2 luma, exactly PIL's fixed point.

  Args:
    image: float32 [B, 3, H, W], integers in [0, 255].
  """
  red, green, blue = (image[:, i : i + 1] for i in range(3))
  # Below 2^24, so exact in float32.
  total = 19595 * red + 38470 * green + 7471 * blue + 32768
  return jnp.floor(total / 65536)


def grey_mean(image: jax.Array) -> jax.Array:
  """float32 [B, 1, 1, 1]: the mean of `grey`, rounded.

  Args:
    image: float32 [B, 3, H, W], integers in [0, 255].
  """
  return jnp.floor(jnp.mean(grey(image), (1, 2, 3), keepdims=True) + 0.5)


def smooth(image: jax.Array) -> jax.Array:
  """PIL's SMOOTH: a 3x3 mean with weight 5 at the centre; keeps the border.

  Args:
    image: float32 [B, C, H, W], integers in [0, 255].

  Returns:
    float32 [B, C, H, W], integers in [0, 255].
  """
  rows = image[:, :, :-2] + image[:, :, 1:-1] + image[:, :, 2:]
  box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
  inner = jnp.floor((box + 4 * image[:, :, 1:-1, 1:-1]) / 13 + 0.5)
  inner = jnp.pad(inner, ((0, 0), (0, 0), (1, 1), (1, 1)))
  height, width = image.shape[2:]
  row, column = jnp.arange(height)[:, None], jnp.arange(width)
  border = (row % (height - 1) == 0) | (column % (width - 1) == 0)
  return jnp.where(border, image, inner)


def auto_contrast_lines(image: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(low, span) of each channel, for (image - low) * 255 / span.

  Args:
    image: float32 [B, 3, H, W], integers in [0, 255].

  Returns:
    Two float32 [B, 3, 1, 1]; (0, 255), the identity, for a constant channel.
  """
  low = jnp.min(image, (2, 3), keepdims=True)
  span = jnp.max(image, (2, 3), keepdims=True) - low
  flat = span == 0
  return jnp.where(flat, 0.0, low), jnp.where(flat, 255.0, span)


def equalize(image: jax.Array, chosen: jax.Array) -> jax.Array:
  """Equalizes the chosen images.

  Args:
    image: float32 [B, 3, H, W], integers in [0, 255].
    chosen: bool [B, 1, 1, 1], the images to equalize.

  Returns:
    float32 [B, 3, H, W], integers in [0, 255].
  """
  # In a branch of its own: otherwise XLA on CPU recomputes the table for each
  # pixel.
  batch, channels = image.shape[:2]
  table = jax.lax.cond(
    jnp.any(chosen),
    lambda: equalize_table(image),
    lambda: jnp.zeros((batch, channels, 256)),
  )
  return jnp.where(chosen, look_up(table, image), image)


def equalize_table(image: jax.Array) -> jax.Array:
  """float32 [B, 3, 256]: the value that equalization gives each value.

  PIL's integer rule; the identity for a channel with too few values.

  Args:
    image: float32 [B, 3, H, W], integers in [0, 255].
  """
  count = histogram(image).astype(jnp.int32)
  value = jnp.arange(256)
  last = jnp.max(jnp.where(count > 0, value, 0), -1, keepdims=True)
  step = jnp.sum(jnp.where(value == last, 0, count), -1, keepdims=True) // 255
  before = jnp.cumsum(count, -1) - count
  table = (step // 2 + before) // jnp.maximum(step, 1)
  return jnp.where(step == 0, value, jnp.minimum(table, 255)).astype(
    jnp.float32
  )


def histogram(image: jax.Array) -> jax.Array:
  """float32 [B, C, 256]: how often each value occurs in a channel.

  Args:
    image: float32 [B, C, H, W], integers in [0, 255].
  """
  value = image.astype(jnp.int32).reshape(*image.shape[:2], -1)
  # One-hot halves of a byte: a product of [16, N] and [N, 16] counts on a
  # matrix unit. Elsewhere a scatter-add is faster, 9 times on one CPU core.
  return jax.lax.platform_dependent(
    value, tpu=_count_by_product, default=_count
  )


def look_up(table: jax.Array, image: jax.Array) -> jax.Array:
  """Maps each value of `image` through its channel's table.

  Args:
    table: float32 [B, C, 256], integers in [0, 256].
    image: float32 [B, C, H, W], integers in [0, 255].

  Returns:
    float32 [B, C, H, W].
  """
  value = image.astype(jnp.int32).reshape(*image.shape[:2], -1)
  out = jax.lax.platform_dependent(
    table, value, tpu=_look_up_by_product, default=_look_up
  )
  return out.reshape(image.shape)


def _count(value: jax.Array) -> jax.Array:
  # Mapped over images instead of indexed, so each device counts only its own.
  count = jax.vmap(jax.vmap(lambda value: jnp.zeros(256).at[value].add(1.0)))
  return count(value)


def _count_by_product(value: jax.Array) -> jax.Array:
  high, low = _halves(value, jnp.bfloat16)
  count = jnp.einsum(
    "bchn,bcln->bchl", high, low, preferred_element_type=jnp.float32
  )
  return count.reshape(*value.shape[:2], 256)


def _look_up(table: jax.Array, value: jax.Array) -> jax.Array:
  return jnp.take_along_axis(table, value, 2)


def _look_up_by_product(table: jax.Array, value: jax.Array) -> jax.Array:
  # Integers up to 256 are exact in bfloat16.
  high, low = _halves(value, jnp.bfloat16)
  table = table.reshape(*table.shape[:2], 16, 16).astype(jnp.bfloat16)
  row = jnp.einsum("bchn,bchl->bcln", high, table)
  return jnp.sum(row * low, 2, dtype=jnp.float32)


def _halves(value: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
  """One-hot [B, C, 16, N] of the upper and of the lower four bits."""
  place = jnp.arange(16)[:, None]
  value = value[:, :, None]
  return (value >> 4 == place).astype(dtype), (value & 15 == place).astype(
    dtype
  )


def color_jitter(
  key: jax.Array, image: jax.Array, strength: float
) -> jax.Array:
  """Changes brightness, contrast and saturation, in random order per image.

  torchvision's ColorJitter(strength, strength, strength) on PIL images.

  Args:
    key: of the batch.
    image: uint8 [B, H, W, 3].
    strength: factors are uniform in [max(0, 1 - strength), 1 + strength].

  Returns:
    uint8 [B, H, W, 3].
  """
  key_factor, key_order = jax.random.split(key)
  shape = (3, len(image))
  factors = jax.random.uniform(
    key_factor, shape, minval=max(0.0, 1 - strength), maxval=1 + strength
  )
  order = jnp.argsort(jax.random.uniform(key_order, shape), axis=0)

  def turn(planes, choice):
    planes = planes.astype(jnp.float32)
    which, factor = (x[:, None, None, None] for x in choice)
    luma = grey(planes)
    mean = jnp.floor(jnp.mean(luma, (1, 2, 3), keepdims=True) + 0.5)
    degenerate = jnp.select([which == 0, which == 1], [0.0, mean], luma)
    return blend(degenerate, planes, factor).astype(jnp.uint8), None

  planes = image.transpose(0, 3, 1, 2)
  planes, _ = jax.lax.scan(turn, planes, (order, factors))
  return planes.transpose(0, 2, 3, 1)
