"""Rotation, shear and translation of a batch, by shears along one axis.

A shear moves each row (or column) by its own distance. On a TPU, where
element-wise gathers and moves by part of a tile are slow, this is two products
with constant matrices: Fourier transforms, between which a shift is a phase.
Elsewhere four pixels are gathered along the axis.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MAX_DEGREES = 30.0  # of a rotation, either way

_BEYOND = 4  # pixels that a filter, or two of them, may read beyond the border


def move(
  image: jax.Array,
  fill: np.ndarray | jax.Array,
  *,
  axis: int,
  slope: jax.Array,
  at: jax.Array,
) -> jax.Array:
  """Reads `image` along `axis` at x + slope * y + at, y on the other axis.

  Coordinates are pixel centres, measured from the corner. Interpolation is
  PIL's bicubic (a = -1), as are the signs and what counts as outside. The
  interpolation repeats the border pixels.

  Args:
    image: float32 [B, C, H, W].
    fill: float32 [C], the value outside the image.
    axis: 2 or 3.
    slope: float32 [B], pixels per pixel.
    at: float32 [B], offset in pixels.

  Returns:
    float32 [B, C, H, W], neither rounded nor clipped.
  """
  size = image.shape[axis]
  along, across = _places(image.shape[2:], axis)
  shift = _column(slope) * across + _column(at)
  out = _shear(image, shift, axis=axis, start=0, stop=size)
  inside = (along + shift >= 0) & (along + shift < size)
  return jnp.where(inside, out, fill[:, None, None])


def rotate(
  image: jax.Array, fill: np.ndarray | jax.Array, degrees: jax.Array
) -> jax.Array:
  """Rotates `image` about its centre, counter-clockwise, by three shears.

  The method is Paeth's (Graphics Interface 1986). Interpolation is that of
  `move`, applied three times where PIL interpolates twice.

  Args:
    image: float32 [B, C, H, W].
    fill: float32 [C], the value outside the image.
    degrees: float32 [B], within -MAX_DEGREES to MAX_DEGREES.

  Returns:
    float32 [B, C, H, W], neither rounded nor clipped.
  """
  height, width = image.shape[2:]
  # The second shear reads columns beyond the border, as far as the third
  # reaches.
  steepest = math.tan(math.radians(MAX_DEGREES / 2))
  more = math.ceil(steepest * height / 2) + 2
  angle = _column(jnp.radians(degrees))
  lean, turn = -jnp.tan(angle / 2), jnp.sin(angle)
  x, y = _places((height, width), 3)
  wide = jnp.arange(-more, width + more) + 0.5

  outer = lean * (y - height / 2)
  inner = turn * (wide - width / 2)
  out = _shear(image, outer, axis=3, start=-more, stop=width + more)
  out = _shear(out, inner, axis=2, start=0, stop=height)
  out = _shear(out, outer, axis=3, start=more, stop=more + width)

  from_x = x + outer
  from_y = y + turn * (from_x - width / 2)
  from_x += lean * (from_y - height / 2)
  inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
  return jnp.where(inside, out, fill[:, None, None])


def _column(x: jax.Array) -> jax.Array:
  return x[:, None, None, None]


def _places(size: tuple[int, ...], axis: int) -> tuple[jax.Array, jax.Array]:
  """Pixel centres along `axis` (2 or 3) of [B, C, H, W], and across it."""
  rows = (jnp.arange(size[0]) + 0.5)[:, None]
  columns = jnp.arange(size[1]) + 0.5
  return (rows, columns) if axis == 2 else (columns, rows)


def _shear(
  image: jax.Array, shift: jax.Array, *, axis: int, start: int, stop: int
) -> jax.Array:
  """Reads `image` along `axis` at i + shift, for i from start to stop - 1."""
  span: dict[str, Any] = dict(axis=axis, start=start, stop=stop)
  return jax.lax.platform_dependent(
    image,
    shift,
    tpu=functools.partial(shear_by_phase, **span),
    default=functools.partial(shear_by_gather, **span),
  )


def shear_by_gather(
  image: jax.Array, shift: jax.Array, *, axis: int, start: int, stop: int
) -> jax.Array:
  """Reads `image` along `axis` at i + shift, for i from start to stop - 1.

  Args:
    image: float32 [B, C, H, W].
    shift: float32 [B, 1, H, 1] or [B, 1, 1, W] in pixels; of size 1 on `axis`.
    axis: 2 or 3.
    start: first i; may be negative, reading repeated border pixels.
    stop: i after the last; may exceed the image's size, likewise.

  Returns:
    float32, of size stop - start on `axis`.
  """
  shape = list(image.shape)
  size, shape[axis] = shape[axis], stop - start
  along = jnp.arange(start, stop).reshape(
    [-1 if i == axis else 1 for i in range(4)]
  )

  def read(place: jax.Array) -> jax.Array:
    place = jnp.broadcast_to(jnp.clip(place, 0, size - 1), shape)
    return jnp.take_along_axis(image, place, axis)

  def moved():
    whole = jnp.floor(shift)
    place = whole.astype(jnp.int32) + along
    taps = _cubic(shift - whole)
    return sum(tap * read(place + i - 1) for i, tap in enumerate(taps))

  # In a branch of its own: otherwise XLA on CPU fuses each shear into the next
  # and recomputes it for each of four pixels.
  return jax.lax.cond(jnp.any(shift), moved, lambda: read(along))


def shear_by_phase(
  image: jax.Array, shift: jax.Array, *, axis: int, start: int, stop: int
) -> jax.Array:
  """As `shear_by_gather`, where reads stay within `_BEYOND` pixels outside.

  Interpolation is a filter, so its spectrum multiplies that of a row, and
  `shift` is a phase (the shift theorem of the discrete Fourier transform).

  Args:
    image: float32 [B, C, H, W].
    shift: float32 [B, 1, H, 1] or [B, 1, 1, W] in pixels; of size 1 on `axis`.
    axis: 2 or 3.
    start: first i.
    stop: i after the last.

  Returns:
    float32, of size stop - start on `axis`.
  """
  size = image.shape[axis]
  period = max(size + 2 * _BEYOND, stop - start)
  period += period % 2
  ahead, back = _transforms(size, period, start, stop)
  ahead_rule, back_rule = {
    2: ("bchw,hk->bckw", "bckw,kh->bchw"),
    3: ("bchw,wk->bchk", "bchk,kw->bchw"),
  }[axis]
  product = functools.partial(jnp.einsum, precision="highest")
  spectrum = product(ahead_rule, image, ahead)
  real, imaginary = jnp.split(spectrum, 2, axis)

  shape = [1] * 4
  shape[axis] = -1
  wave = np.arange(period // 2 + 1).reshape(shape)
  # Broadcast to the phases' size: otherwise a TPU computes each of their small
  # parts in an operation of its own, which takes longer to start than to run.
  phases = jnp.broadcast_shapes(shift.shape, wave.shape)
  shift = jax.lax.optimization_barrier(jnp.broadcast_to(shift, phases))
  whole = jnp.floor(shift)
  # Modulo the period in integers: a float phase would lose digits.
  turns = wave * whole.astype(jnp.int32) % period
  angle = turns.astype(jnp.float32) * (2 * math.pi / period)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  near_cos: jax.Array | float = 0.0
  near_sin: jax.Array | float = 0.0
  for i, tap in zip((-1, 0, 1, 2), _cubic(shift - whole), strict=True):
    turn = 2 * math.pi / period * i * wave
    near_cos += tap * (np.float32(np.cos(turn)) if i else 1)
    near_sin += tap * (np.float32(np.sin(turn)) if i else 0)
  gain = near_cos * cos - near_sin * sin
  quadrature = near_cos * sin + near_sin * cos
  shifted = [
    real * gain - imaginary * quadrature,
    real * quadrature + imaginary * gain,
  ]
  return product(back_rule, jnp.concatenate(shifted, axis), back)


def _transforms(
  size: int, period: int, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
  """Fourier transforms as products, float32 [size, K] and [K, stop - start].

  The axis K holds the real parts of period // 2 + 1 waves, then the imaginary
  parts. The first matrix repeats the border up to `period` pixels, the second
  is the inverse.
  """
  before = (period - size) // 2
  place = np.arange(-before, period - before)
  wave = np.arange(period // 2 + 1)
  weight = np.where(wave % (period // 2), 2, 1) / period

  def waves(place):
    angle = 2 * np.pi * (np.outer(place, wave) % period) / period
    return np.cos(angle), -np.sin(angle)

  ahead = np.zeros((size, 2 * len(wave)))
  np.add.at(ahead, np.clip(place, 0, size - 1), np.hstack(waves(place)))
  back = np.hstack([x * weight for x in waves(np.arange(start, stop))]).T
  return ahead.astype(np.float32), back.astype(np.float32)


def _cubic(t: jax.Array) -> tuple[jax.Array, ...]:
  """Weights of the pixels at -1, 0, 1 and 2 for a point at t in [0, 1)."""
  return (
    t * (-1 + t * (2 - t)),
    1 + t * t * (t - 2),
    t * (1 + t * (1 - t)),
    t * t * (t - 1),
  )
