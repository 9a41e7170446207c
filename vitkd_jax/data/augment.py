"""Device side, one batch: flip, RandAugment, erase, mix, smooth.

Pure functions of a key and a batch, with static shapes. One key serves the
whole batch: results do not depend on how many devices share it.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp

from vitkd_jax import check
from vitkd_jax.data import color, mixing, randaugment

# Random erasing, as in the paper's recipe.
_ERASE_AREA = (0.02, 1 / 3)  # part of the image
_ERASE_ASPECT = (3 / 10, 10 / 3)  # height / width, log-uniform

_PAD_MODES = {"zeros": "constant", "reflect": "reflect"}  # jnp.pad's names

Augment = Callable[
  [jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]
]


def make_augment(
  *,
  num_classes: int,
  flip: float = 0.0,
  pad: int = 0,
  pad_mode: str = "zeros",
  shift: int = 0,
  randaugment_ops: int = 0,
  randaugment_magnitude: float = 9.0,
  randaugment_std: float = 0.5,
  randaugment_prob: float = 0.5,
  fill: Sequence[float] = (0.485, 0.456, 0.406),
  color_jitter: float = 0.0,
  erase: float = 0.0,
  erase_mean: Sequence[float] = (0.5, 0.5, 0.5),
  erase_std: Sequence[float] = (0.25, 0.25, 0.25),
  mixup_alpha: float = 0.0,
  cutmix_alpha: float = 0.0,
  mix_prob: float = 1.0,
  switch_prob: float = 0.5,
  mix_mode: str = "batch",
  label_smoothing: float = 0.0,
) -> Augment:
  """`augment(key, image, label) -> (image, target)` for a whole batch.

  Each image is flipped, padded and cropped, put through RandAugment, jittered
  and erased independently; then the batch is mixed and the mixed label
  smoothed. This is the order of the paper's recipe (mmcls) and of timm. Both
  mix normalised images, which is equivalent: normalisation is affine and the
  weights sum to 1.

  DeiT's command line has colour jitter 0.3 beside RandAugment, but timm drops
  the jitter when RandAugment is on (unless force_color_jitter is set), so DeiT
  was trained without it. Here both are applied when both are set.

  Args:
    num_classes: C, the length of a target, at least 1.
    flip: probability of a horizontal flip, in [0, 1].
    pad: padding in pixels on each side, before a random crop of the image's
      size; for small images read whole. CIFAR's recipe uses 4
      (arXiv:1512.03385, 4.2).
    pad_mode: "zeros", as in that recipe, or "reflect", the image mirrored at
      its edge.
    shift: older name of `pad` with zeros.
    randaugment_ops: operations drawn per image; 0 turns RandAugment off.
    randaugment_magnitude: mean level of an operation, in [0, 10].
    randaugment_std: standard deviation of the level, >= 0.
    randaugment_prob: probability that a drawn operation is applied, in [0, 1];
      0.5 in timm and mmcls, 1 in the RandAugment paper.
    fill: colour that RandAugment moves in from outside, three numbers in
      [0, 1].
    color_jitter: brightness, contrast and saturation change by factors from
      1 - this to 1 + this; 0 turns jitter off.
    erase: probability that a rectangle is replaced by noise, in [0, 1].
    erase_mean: mean of that noise, per channel, in [0, 1].
    erase_std: standard deviation of that noise, per channel, in [0, 1].
    mixup_alpha: Mixup's ratio follows Beta(alpha, alpha); 0 turns Mixup off.
    cutmix_alpha: CutMix's ratio follows Beta(alpha, alpha); 0 turns CutMix off.
    mix_prob: probability that a batch is mixed at all, in [0, 1].
    switch_prob: probability of CutMix when both are on, in [0, 1].
    mix_mode: "batch" draws one choice and one ratio for the batch, "image" one
      for each image.
    label_smoothing: s in target * (1 - s) + s / num_classes, in [0, 1].

  Returns:
    A function of a key, image uint8 [B, H, W, 3] and label int [B] that
    returns image float32 [B, H, W, 3] in [0, 1] and target float32 [B, C].
    Mixing needs an even B.

  Raises:
    ValueError: an option is out of range.
  """
  check.integers(1, num_classes=num_classes)
  check.integers(0, pad=pad, shift=shift, randaugment_ops=randaugment_ops)
  check.known("pad_mode", pad_mode, _PAD_MODES)
  check.known("mix_mode", mix_mode, mixing.MODES)
  if shift and (pad or pad_mode != "zeros"):
    raise ValueError(
      f"shift={shift} is the older name of pad with zeros, got pad={pad} and"
      f" pad_mode={pad_mode!r} too; set pad alone."
    )
  check.reals(
    1.0,
    flip=flip,
    randaugment_prob=randaugment_prob,
    erase=erase,
    mix_prob=mix_prob,
    switch_prob=switch_prob,
    label_smoothing=label_smoothing,
  )
  check.reals(
    mixup_alpha=mixup_alpha,
    cutmix_alpha=cutmix_alpha,
    randaugment_std=randaugment_std,
    color_jitter=color_jitter,
  )
  check.reals(
    randaugment.MAX_LEVEL, randaugment_magnitude=randaugment_magnitude
  )
  _check_triples(fill=fill, erase_mean=erase_mean, erase_std=erase_std)

  def augment(
    key: jax.Array, image: jax.Array, label: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    key_flip, key_pad, key_erase, key_mix = jax.random.split(key, 4)
    key_rand, key_jitter = (jax.random.fold_in(key, i) for i in (4, 5))
    if flip:
      image = random_flip(key_flip, image, flip)
    if pad or shift:
      image = pad_and_crop(key_pad, image, pad or shift, mode=pad_mode)
    if randaugment_ops:
      image = randaugment.randaugment(
        key_rand,
        image,
        ops=randaugment_ops,
        magnitude=randaugment_magnitude,
        std=randaugment_std,
        prob=randaugment_prob,
        fill=fill,
      )
    if color_jitter:
      image = color.color_jitter(key_jitter, image, color_jitter)
    image = image.astype(jnp.float32) / 255
    if erase:
      image = random_erase(
        key_erase, image, erase, mean=erase_mean, std=erase_std
      )
    target = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
    if (mixup_alpha or cutmix_alpha) and mix_prob:
      weight = mixing.mix_weights(
        key_mix,
        image.shape[:3],
        mode=mix_mode,
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        mix_prob=mix_prob,
        switch_prob=switch_prob,
      )
      image, target = mixing.mix(image, target, weight)
    target = target * (1 - label_smoothing) + label_smoothing / num_classes
    return image, target

  return augment


def normalize(
  image: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  """(image - mean) / std, per channel.

  Args:
    image: float32 [B, H, W, C] in [0, 1].
    mean: C numbers.
    std: C numbers.

  Returns:
    float32 [B, H, W, C].
  """
  return (image - jnp.asarray(mean, jnp.float32)) / jnp.asarray(
    std, jnp.float32
  )


def random_flip(
  key: jax.Array, image: jax.Array, probability: float
) -> jax.Array:
  """Mirrors each image left to right with `probability`.

  Args:
    key: of the batch.
    image: [B, H, W, C] of any dtype.
    probability: in [0, 1].

  Returns:
    [B, H, W, C] of the same dtype.
  """
  chosen = jax.random.bernoulli(key, probability, (len(image), 1, 1, 1))
  return jnp.where(chosen, image[:, :, ::-1], image)


def pad_and_crop(
  key: jax.Array, image: jax.Array, pixels: int, *, mode: str = "zeros"
) -> jax.Array:
  """Pads each image and crops it at random to its own size.

  All (2 * pixels + 1)^2 offsets are equally likely.

  Args:
    key: of the batch.
    image: [B, H, W, C] of any dtype.
    pixels: padding on each side.
    mode: "zeros", or "reflect", which does not repeat the edge.

  Returns:
    [B, H, W, C] of the same dtype.

  Raises:
    ValueError: the image is too small to reflect that many pixels.
  """
  batch, *size = image.shape
  if mode == "reflect" and pixels >= min(size[:2]):
    raise ValueError(
      f"expected pad <= {min(size[:2]) - 1} to reflect images of"
      f" {size[0]}x{size[1]} pixels, got {pixels}."
    )
  sides = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
  padded = jnp.pad(image, sides, mode=_PAD_MODES[mode])
  corner = jax.random.randint(key, (batch, 2), 0, 2 * pixels + 1)
  corner = jnp.pad(corner, ((0, 0), (0, 1)))  # all channels
  return jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, at, size))(
    padded, corner
  )


def random_erase(
  key: jax.Array,
  image: jax.Array,
  probability: float,
  *,
  mean: Sequence[float],
  std: Sequence[float],
) -> jax.Array:
  """Replaces a rectangle of each image by noise, with `probability`.

  Random erasing (arXiv:1708.04896) as mmcls computes it: area 0.02 to 1/3 of
  the image, height / width log-uniform in [0.3, 3.3], sides rounded and
  clipped to the image, noise N(mean, std) per pixel and channel clipped to
  [0, 1].

  Args:
    key: of the batch.
    image: float32 [B, H, W, 3] in [0, 1].
    probability: that an image is erased, in [0, 1].
    mean: of the noise, 3 numbers.
    std: standard deviation of the noise, 3 numbers.

  Returns:
    float32 [B, H, W, 3] in [0, 1].
  """
  key_box, key_noise = jax.random.split(key)
  box = erase_boxes(key_box, image.shape[:3], probability)
  word = jax.random.bits(key_noise, image.shape[:3])

  def erased():
    noise = jnp.asarray(mean) + jnp.asarray(std) * _normal(word)
    return jnp.where(box[..., None], jnp.clip(noise, 0, 1), image)

  # In a branch of its own: otherwise XLA on CPU fuses the noise into the
  # mixing that follows and recomputes it for each partner, 10 times slower.
  return jax.lax.cond(jnp.any(box), erased, lambda: image)


def erase_boxes(
  key: jax.Array, shape: Sequence[int], probability: float
) -> jax.Array:
  """bool [B, H, W], True in the rectangle that `random_erase` replaces.

  Args:
    key: of the batch.
    shape: (B, H, W).
    probability: that an image has a rectangle, in [0, 1].
  """
  batch, height, width = shape
  draw = jax.random.uniform(key, (5, batch))
  low, high = _ERASE_AREA
  area = height * width * (low + (high - low) * draw[0])
  low, high = map(math.log, _ERASE_ASPECT)
  aspect = jnp.exp(low + (high - low) * draw[1])
  box_height = jnp.minimum(jnp.round(jnp.sqrt(area * aspect)), height)
  box_width = jnp.minimum(jnp.round(jnp.sqrt(area / aspect)), width)
  top = jnp.floor(draw[2] * (height - box_height + 1))
  left = jnp.floor(draw[3] * (width - box_width + 1))
  rows = mixing.span(top, top + box_height, height)
  columns = mixing.span(left, left + box_width, width)
  chosen = (draw[4] < probability)[:, None, None]
  return chosen & rows[:, :, None] & columns[:, None, :]


def _normal(word: jax.Array) -> jax.Array:
  """Standard normal numbers float32 [B, H, W, 3] from uint32 [B, H, W].

  Ten bits per channel give 1024 values, finer than an 8-bit image can show,
  for a third of the random words that `jax.random.normal` takes.
  """
  draw = (word[..., None] >> jnp.array([0, 10, 20], jnp.uint32)) & 1023
  return math.sqrt(2) * jax.lax.erf_inv(
    (draw.astype(jnp.float32) - 511.5) / 512
  )


def _check_triples(**triples: Any) -> None:
  for name, triple in triples.items():
    if len(triple) != 3:
      raise ValueError(
        f"expected 3 numbers for {name}, got {len(triple)}: {triple!r}"
      )
    for value in triple:
      check.reals(1.0, **{name: value})
