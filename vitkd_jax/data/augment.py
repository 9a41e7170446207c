"""Device side, one batch: flip, shift, erase, Mixup, CutMix, smoothing.

Pure functions of a key and a batch, with static shapes and no element-wise
gather. One key serves the whole batch: results do not depend on how many
devices share it.
"""

from collections.abc import Callable, Sequence
import math
import numbers

import jax
import jax.numpy as jnp

# Random erasing, as in the paper's recipe.
_ERASE_AREA = (0.02, 1 / 3)  # part of the image
_ERASE_ASPECT = (3 / 10, 10 / 3)  # height / width, log-uniform

Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple]


def make_augment(
  *,
  num_classes: int,
  flip: float = 0.0,
  shift: int = 0,
  erase: float = 0.0,
  erase_mean: Sequence[float] = (0.5, 0.5, 0.5),
  erase_std: Sequence[float] = (0.25, 0.25, 0.25),
  mixup_alpha: float = 0.0,
  cutmix_alpha: float = 0.0,
  mix_prob: float = 1.0,
  switch_prob: float = 0.5,
  label_smoothing: float = 0.0,
) -> Augment:
  """`augment(key, image, label) -> (image, target)` for a whole batch.

  Each image is flipped, shifted and erased by itself; then the batch is mixed
  (one choice and one ratio for all of it) and the mixed label smoothed. This
  is the order of the paper's recipe (mmcls), whose mixing sees normalised
  images: the same, since normalisation is affine and the weights sum to 1.

  Args:
    num_classes: length of a target.
    flip: probability of a horizontal flip.
    shift: pixels of black padding on each side, of which a crop of the
      image's size is taken anywhere.
    erase: probability that a rectangle is replaced by noise.
    erase_mean: of that noise, per channel of images in [0, 1].
    erase_std: of that noise.
    mixup_alpha: Mixup's ratio follows Beta(alpha, alpha); 0: no Mixup.
    cutmix_alpha: the same for CutMix; 0: no CutMix.
    mix_prob: probability that a batch is mixed at all.
    switch_prob: probability of CutMix, when both may happen.
    label_smoothing: s in target * (1 - s) + s / num_classes.

  Returns:
    A function of a key, image uint8 [B, H, W, 3] and label int [B] that
    returns image float32 [B, H, W, 3] in [0, 1] and target float32 [B, C].
    Mixing needs an even B.

  Raises:
    ValueError: an option is out of range.
  """
  _check_whole(1, num_classes=num_classes)
  _check_whole(0, shift=shift)
  _check_range(
    1.0,
    flip=flip,
    erase=erase,
    mix_prob=mix_prob,
    switch_prob=switch_prob,
    label_smoothing=label_smoothing,
  )
  _check_range(math.inf, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
  for name, triple in (("erase_mean", erase_mean), ("erase_std", erase_std)):
    if len(triple) != 3:
      raise ValueError(f"{name} has {len(triple)} numbers, but needs 3.")
    for value in triple:
      _check_range(1.0, **{name: value})

  def augment(key, image, label):
    key_flip, key_shift, key_erase, key_mix = jax.random.split(key, 4)
    if flip:
      image = random_flip(key_flip, image, flip)
    if shift:
      image = random_shift(key_shift, image, shift)
    image = image.astype(jnp.float32) / 255
    if erase:
      image = random_erase(
        key_erase, image, erase, mean=erase_mean, std=erase_std
      )
    target = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
    if (mixup_alpha or cutmix_alpha) and mix_prob:
      weight = mix_weight(
        key_mix,
        image.shape[1:3],
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        mix_prob=mix_prob,
        switch_prob=switch_prob,
      )
      image, target = mix(image, target, weight)
    target = target * (1 - label_smoothing) + label_smoothing / num_classes
    return image, target

  return augment


def normalize(image, mean, std):
  """(image - mean) / std, per channel.

  Args:
    image: float32 [B, H, W, C] in [0, 1].
    mean: C numbers.
    std: C numbers.
  """
  mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
  return (image - mean) / std


def random_flip(key, image, probability):
  """`image` [B, H, W, C], each mirrored left to right with `probability`."""
  chosen = jax.random.bernoulli(key, probability, (len(image), 1, 1, 1))
  return jnp.where(chosen, image[:, :, ::-1], image)


def random_shift(key, image, pixels):
  """`image` [B, H, W, C], each moved by -pixels to pixels on both axes.

  What moves in is 0. All (2 pixels + 1)^2 moves are equally likely.
  """
  batch, *size = image.shape
  padded = jnp.pad(image, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
  corner = jax.random.randint(key, (batch, 2), 0, 2 * pixels + 1)
  corner = jnp.pad(corner, ((0, 0), (0, 1)))  # all channels
  return jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, at, size))(
    padded, corner
  )


def random_erase(key, image, probability, *, mean, std):
  """`image` with a rectangle of noise in each, with `probability`.

  Random erasing (arXiv:1708.04896) as mmcls computes it: area 0.02 to 1/3 of
  the image, height / width log-uniform in 0.3 to 3.3, sides rounded and cut
  to the image's, noise N(mean, std) per pixel and channel cut to [0, 1].

  Args:
    key: of the batch.
    image: float32 [B, H, W, 3] in [0, 1].
    probability: that an image is erased.
    mean: of the noise, 3 numbers.
    std: of the noise, 3 numbers.
  """
  key_box, key_noise = jax.random.split(key)
  box = erase_boxes(key_box, image.shape[:3], probability)

  word = jax.random.bits(key_noise, image.shape[:3])

  def erased():
    noise = jnp.asarray(mean) + jnp.asarray(std) * _normal(word)
    return jnp.where(box[..., None], jnp.clip(noise, 0, 1), image)

  # A branch of its own, or XLA on CPU folds the noise into the mixing that
  # follows and computes it again for each partner: ten times slower.
  return jax.lax.cond(jnp.any(box), erased, lambda: image)


def erase_boxes(key, shape, probability):
  """bool [B, H, W], True in the rectangle that `random_erase` replaces."""
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
  rows = _span(top, top + box_height, height)
  columns = _span(left, left + box_width, width)
  chosen = (draw[4] < probability)[:, None, None]
  return chosen & rows[:, :, None] & columns[:, None, :]


def _normal(word):
  """Standard normal numbers float32 [B, H, W, 3] from uint32 [B, H, W].

  Ten bits a channel: 1024 values, finer than 8-bit images can show, for a
  third of the random words that `jax.random.normal` takes.
  """
  draw = (word[..., None] >> jnp.array([0, 10, 20], jnp.uint32)) & 1023
  return math.sqrt(2) * jax.lax.erf_inv(
    (draw.astype(jnp.float32) - 511.5) / 512
  )


def _span(start, stop, size):
  """bool [..., size], True at start <= i < stop; start, stop [...]."""
  place = jnp.arange(size)
  return (place >= start[..., None]) & (place < stop[..., None])


def mix_weight(
  key, size, *, mixup_alpha, cutmix_alpha, mix_prob=1.0, switch_prob=0.5
):
  """Part of each pixel that the partner gives, one map for the batch.

  Mixup (arXiv:1710.09412) gives 1 - r everywhere, CutMix (arXiv:1905.04899)
  1 in a rectangle of area about 1 - r around a random centre, cut at the
  border, with r ~ Beta(alpha, alpha); both as in mmcls.

  Args:
    key: of the batch.
    size: (H, W).
    mixup_alpha: see `make_augment`.
    cutmix_alpha: see `make_augment`.
    mix_prob: see `make_augment`.
    switch_prob: see `make_augment`.

  Returns:
    float32 [H, W] in [0, 1].
  """
  key_choice, key_ratio, key_box = jax.random.split(key, 3)
  mix_draw, switch_draw = jax.random.uniform(key_choice, (2,))
  if mixup_alpha and cutmix_alpha:
    cutmix = switch_draw < switch_prob
  else:
    cutmix = bool(cutmix_alpha)
  alpha = jnp.where(cutmix, cutmix_alpha, mixup_alpha)
  share = 1 - jax.random.beta(key_ratio, alpha, alpha)
  weight = jnp.where(cutmix, cutmix_box(key_box, size, share), share)
  return jnp.where(mix_draw < mix_prob, weight, 0.0)


def cutmix_box(key, size, share):
  """bool [H, W], True in CutMix's rectangle.

  Args:
    key: of the batch.
    size: (H, W).
    share: part of the image that it covers where no border cuts it.
  """
  draw = jax.random.uniform(key, (2,))
  spans = []
  for side, place in zip(size, draw, strict=True):
    half = jnp.floor(side * jnp.sqrt(share)) // 2
    centre = jnp.floor(place * side)
    spans.append(_span(centre - half, centre + half, side))
  return spans[0][:, None] & spans[1]


def mix(image, target, weight):
  """Mixes each example with its partner: 0 with 1, 2 with 3, ...

  The neighbour is as random as any other in a shuffled batch, and it lives on
  the same device, where reversing or rolling a sharded batch would send every
  image to another one.

  Args:
    image: float32 [B, H, W, 3], B even.
    target: float32 [B, C].
    weight: float32 [H, W], part of each pixel that the partner gives.

  Returns:
    Both mixed; the partner's part of the target is the mean of `weight`, for
    CutMix the exact part of the pixels that it gave.

  Raises:
    ValueError: B is odd.
  """
  if len(image) % 2:
    raise ValueError(
      f"mixing pairs neighbours, but the batch has {len(image)} images; take"
      " an even batch size."
    )
  share = jnp.mean(weight)
  weight = weight[:, :, None]
  image = image * (1 - weight) + _neighbour(image) * weight
  target = target * (1 - share) + _neighbour(target) * share
  return image, target


def _neighbour(x):
  """[B, ...] with rows 0 and 1, 2 and 3, ... exchanged."""
  pairs = x.reshape(len(x) // 2, 2, *x.shape[1:])
  return pairs[:, ::-1].reshape(x.shape)


def _check_range(high, **values):
  wanted = f"between 0 and {high:g}" if high < math.inf else "at least 0"
  for name, value in values.items():
    known = isinstance(value, numbers.Real) and math.isfinite(value)
    if not (known and 0 <= value <= high):
      raise ValueError(f"{name} is {value!r}, but must be a number {wanted}.")


def _check_whole(least, **values):
  for name, value in values.items():
    if not isinstance(value, numbers.Integral) or value < least:
      raise ValueError(
        f"{name} is {value!r}, but must be a whole number, at least {least}."
      )
