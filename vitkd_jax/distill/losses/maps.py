"""Losses between token maps: pure, one value per example, in float32."""

import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.distill.losses import arrays

REDUCTIONS = ("sum", "mean")

# The published settings of ViTKD: lambda and sums (arXiv:2209.02432). Every
# default below, in `heads` and in a training's config is one of these.
MASK_RATIO = 0.5
REDUCTION = "sum"


def _reduce(squared: jax.Array, reduction: str) -> jax.Array:
  """[B, ..., N, D] -> [B]: the sum, or the sum divided by N D."""
  arrays.check_known("reduction", reduction, REDUCTIONS)
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


def mgd(
  generated: jax.Array, teacher: jax.Array, *, reduction: str = REDUCTION
) -> jax.Array:
  """Squared distance at every token: masked generative distillation's loss.

  arXiv:2205.01529, without its weight alpha, as the authors' code
  for classification (`mgd.py` of cls_KD) has it: the mask hides channels (see
  `channel_mask`), all positions and channels count, masked or not, and nothing
  is divided by lambda.

  Args:
    generated: [B, N, D] output of the generator.
    teacher: the same shape.
    reduction: "sum" (the paper), or "mean", that sum divided by N D.

  Returns:
    [B] float32.

  Raises:
    ValueError: the shapes differ, or the reduction is unknown.
  """
  arrays.check_same_shape(("generated", "teacher"), generated, teacher)
  generated, teacher = arrays.float32(generated, jax.lax.stop_gradient(teacher))
  return _reduce(jnp.square(generated - teacher), reduction)


def channel_mask(
  key: jax.Array, batch: int, width: int, ratio: float
) -> jax.Array:
  """MGD's mask: True where a channel of an image is set to zero.

  Each channel of each image is drawn by itself, the same at every position
  (`mgd.py` of cls_KD; the paper, arXiv:2205.01529, draws positions).

  Args:
    key: a key.
    batch: B.
    width: D.
    ratio: lambda, the chance of a channel, in [0, 1); 0.15 in their configs.

  Returns:
    [B, D] bool.

  Raises:
    ValueError: the ratio is outside [0, 1).
  """
  if not 0 <= ratio < 1:
    raise ValueError(f"expected 0 <= ratio < 1, got {ratio}")
  return jax.random.uniform(key, (batch, width)) < ratio


def spectral(
  student: jax.Array, teacher: jax.Array, *, grid: tuple[int, int]
) -> jax.Array:
  """Squared distance of two maps' half spectra: SpectralKD, arXiv:2412.19055.

  The authors' `losses.py`: the teacher's channels are averaged to D_s by
  adaptive pooling, both maps go through `rfft2` (orthonormal), and real and
  imaginary parts are compared by MSE. That needs no transform. With d the
  difference of the maps on the grid H x W, by Parseval's theorem:

  `(sum d^2 + sum_h (sum_w d)^2 / W + [W even] sum_h (sum_w (-1)^w d)^2 / W)
  / (4 D_s H (floor(W / 2) + 1))`

  as the half spectrum holds the columns of frequency 0 and W / 2 whole and
  one of each other pair. H and W do not play the same part.

  Args:
    student: [B, N, D_s], not normalised.
    teacher: [B, N, D_t], D_t >= D_s, not normalised.
    grid: (H, W) with H W = N.

  Returns:
    [B] float32.

  Raises:
    ValueError: batch or tokens differ, the grid does not hold the tokens, or
      D_s > D_t.
  """
  arrays.check_token_maps(student, teacher)
  batch, tokens, width = student.shape
  height, columns = grid
  if height * columns != tokens:
    raise ValueError(
      f"expected grid (H, W) with H W = {tokens} tokens, got {tuple(grid)}"
    )
  if width > teacher.shape[-1]:
    raise ValueError(
      f"expected a student no wider than the teacher's {teacher.shape[-1]} "
      f"channels, which spectral averages down to the student's, got {width}"
    )
  student, teacher = arrays.float32(student, jax.lax.stop_gradient(teacher))
  d = student - _pool_channels(teacher, width)
  d = d.reshape(batch, height, columns, width)

  def energy(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))

  half = energy(d) + energy(jnp.sum(d, axis=2)) / columns
  if columns % 2 == 0:
    sign = 1 - 2 * (jnp.arange(columns) % 2)
    half += energy(jnp.sum(d * sign[:, None], axis=2)) / columns
  return half / (4 * width * height * (columns // 2 + 1))


def _pool_channels(x: jax.Array, width: int) -> jax.Array:
  """[..., D] -> [..., width], PyTorch's adaptive average pooling.

  Channel i is the mean of channels floor(i D / width) up to, but without,
  ceil((i + 1) D / width). These overlap unless `width` divides D.
  """
  channels = x.shape[-1]
  if channels % width == 0:
    return jnp.mean(x.reshape(*x.shape[:-1], width, -1), axis=-1)
  weights = np.zeros((channels, width), np.float32)
  for i in range(width):
    start, stop = i * channels // width, -(-(i + 1) * channels // width)
    weights[start:stop, i] = 1 / (stop - start)
  return jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST)
