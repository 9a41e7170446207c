"""Device side: Mixup and CutMix, per batch or per image.

Partners are neighbours and all draws come from one key, so results do not
depend on how many devices share the batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

MODES = ("batch", "image")


def mix_weights(
  key: jax.Array, shape: Sequence[int], *, mode: str, **options: Any
) -> jax.Array:
  """One `mix_weight` for the batch, or one for each image.

  Args:
    key: of the batch.
    shape: (B, H, W).
    mode: "batch" or "image".
    **options: see `mix_weight`.

  Returns:
    float32 [H, W] or [B, H, W] in [0, 1].
  """
  batch, *size = shape
  if mode == "batch":
    return mix_weight(key, size, **options)
  keys = jax.random.split(key, batch)
  return jax.vmap(lambda key: mix_weight(key, size, **options))(keys)


def mix_weight(
  key: jax.Array,
  size: Sequence[int],
  *,
  mixup_alpha: float,
  cutmix_alpha: float,
  mix_prob: float = 1.0,
  switch_prob: float = 0.5,
) -> jax.Array:
  """The partner's share of each pixel.

  With r ~ Beta(alpha, alpha), Mixup (arXiv:1710.09412) is 1 - r everywhere;
  CutMix (arXiv:1905.04899) is 1 in a rectangle of area about 1 - r around a
  random centre, clipped at the border. Both as in mmcls.

  Args:
    key: of the choice, the ratio and the box.
    size: (H, W).
    mixup_alpha: parameter of Mixup's Beta distribution; 0 turns Mixup off.
    cutmix_alpha: parameter of CutMix's Beta distribution; 0 turns CutMix off.
    mix_prob: probability of mixing at all, in [0, 1].
    switch_prob: probability of CutMix when both are on, in [0, 1].

  Returns:
    float32 [H, W] in [0, 1].
  """
  key_choice, key_ratio, key_box = jax.random.split(key, 3)
  mix_draw, switch_draw = jax.random.uniform(key_choice, (2,))
  cutmix: jax.Array | bool = bool(cutmix_alpha)
  if mixup_alpha and cutmix_alpha:
    cutmix = switch_draw < switch_prob
  alpha = jnp.where(cutmix, cutmix_alpha, mixup_alpha)
  share = 1 - jax.random.beta(key_ratio, alpha, alpha)
  weight = jnp.where(cutmix, cutmix_box(key_box, size, share), share)
  return jnp.where(mix_draw < mix_prob, weight, 0.0)


def cutmix_box(
  key: jax.Array, size: Sequence[int], share: jax.Array | float
) -> jax.Array:
  """bool [H, W], True in CutMix's rectangle.

  Args:
    key: of the centre.
    size: (H, W).
    share: of the image's area that it covers before clipping at the border.
  """
  draw = jax.random.uniform(key, (2,))
  spans = []
  for side, place in zip(size, draw, strict=True):
    half = jnp.floor(side * jnp.sqrt(share)) // 2
    centre = jnp.floor(place * side)
    spans.append(span(centre - half, centre + half, side))
  return spans[0][:, None] & spans[1]


def mix(
  image: jax.Array, target: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Mixes each example with its partner: 0 with 1, 2 with 3, ...

  In a shuffled batch the neighbour is as random as any other example, and it
  is on the same device; reversing or rolling a sharded batch would send every
  image to another device.

  Args:
    image: float32 [B, H, W, 3], B even.
    target: float32 [B, C].
    weight: float32 [H, W] or [B, H, W], the partner's share of each pixel. The
      weights of two partners need not sum to 1: each image is the main part of
      one example.

  Returns:
    The mixed image and target, of the same shapes. The partner's share of the
    target is the mean of `weight`; for CutMix, its exact share of the pixels.

  Raises:
    ValueError: B is odd.
  """
  if len(image) % 2:
    raise ValueError(
      f"expected an even batch to mix pairs of neighbours, got {len(image)}"
      " images; choose an even batch size."
    )
  share = jnp.mean(weight, (-2, -1))[..., None]
  weight = weight[..., None]
  image = image * (1 - weight) + _neighbour(image) * weight
  target = target * (1 - share) + _neighbour(target) * share
  return image, target


def _neighbour(x: jax.Array) -> jax.Array:
  """[B, ...] with rows 0 and 1, 2 and 3, ... exchanged."""
  pairs = x.reshape(len(x) // 2, 2, *x.shape[1:])
  return pairs[:, ::-1].reshape(x.shape)


def span(start: jax.Array, stop: jax.Array, size: int) -> jax.Array:
  """bool [..., size], True at start <= i < stop.

  Args:
    start: [...], the first index.
    stop: [...], the index after the last.
    size: number of indices.
  """
  place = jnp.arange(size)
  return (place >= start[..., None]) & (place < stop[..., None])
