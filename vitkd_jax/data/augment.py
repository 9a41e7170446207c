"""Device side, one batch: flip, RandAugment, erase, mix, smooth.

Pure functions of a key and a batch, with static shapes. One key serves the
whole batch: results do not depend on how many devices share it.
"""

from collections.abc import Callable, Sequence
import math
import numbers

import jax
import jax.numpy as jnp

from vitkd_jax.data import color, mixing, randaugment

# Random erasing, as in the paper's recipe.
_ERASE_AREA = (0.02, 1 / 3)  # part of the image
_ERASE_ASPECT = (3 / 10, 10 / 3)  # height / width, log-uniform

_PAD_MODES = {"zeros": "constant", "reflect": "reflect"}  # jnp.pad's names

Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple]


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
  and erased by itself; then the batch is mixed and the mixed label smoothed.
  This is the order of the paper's recipe (mmcls) and of timm. Both mix
  normalised images: the same, since normalisation is affine and the weights
  sum to 1.

  DeiT's command line has colour jitter 0.3 beside RandAugment, but timm leaves
  the jitter out where there is RandAugment (unless force_color_jitter), so
  DeiT was trained without it. Here both happen when both are asked for.

  Args:
    num_classes: length of a target.
    flip: probability of a horizontal flip.
    pad: pixels of padding on each side, of which a crop of the image's size is
      taken anywhere: for small images taken whole. CIFAR's recipe has 4
      (arXiv:1512.03385, 4.2).
    pad_mode: what the padding is: "zeros", as in that recipe, or "reflect",
      the image mirrored at its edge.
    shift: older name of `pad` with zeros.
    randaugment_ops: operations drawn per image; 0: no RandAugment.
    randaugment_magnitude: mean level of an operation, of 10.
    randaugment_std: standard deviation of the level.
    randaugment_prob: that an operation drawn is carried out; 0.5 in timm and
      in mmcls, 1 in the paper of RandAugment.
    fill: colour in [0, 1] of what RandAugment moves in.
    color_jitter: brightness, contrast and saturation change by factors of
      1 - this to 1 + this; 0: no jitter.
    erase: probability that a rectangle is replaced by noise.
    erase_mean: of that noise, per channel of images in [0, 1].
    erase_std: of that noise.
    mixup_alpha: Mixup's ratio follows Beta(alpha, alpha); 0: no Mixup.
    cutmix_alpha: the same for CutMix; 0: no CutMix.
    mix_prob: probability that a batch is mixed at all.
    switch_prob: probability of CutMix, when both may happen.
    mix_mode: "batch": one choice and one ratio for all; "image": for each.
    label_smoothing: s in target * (1 - s) + s / num_classes.

  Returns:
    A function of a key, image uint8 [B, H, W, 3] and label int [B] that
    returns image float32 [B, H, W, 3] in [0, 1] and target float32 [B, C].
    Mixing needs an even B.

  Raises:
    ValueError: an option is out of range.
  """
  _check_whole(1, num_classes=num_classes)
  _check_whole(0, pad=pad, shift=shift, randaugment_ops=randaugment_ops)
  if pad_mode not in _PAD_MODES:
    raise ValueError(
      f"pad_mode is {pad_mode!r}, but must be one of {tuple(_PAD_MODES)}."
    )
  if shift and (pad or pad_mode != "zeros"):
    raise ValueError(
      f"shift={shift} is the older name of pad, which is {pad} with"
      f" pad_mode={pad_mode!r}; set pad alone."
    )
  _check_range(
    1.0,
    flip=flip,
    randaugment_prob=randaugment_prob,
    erase=erase,
    mix_prob=mix_prob,
    switch_prob=switch_prob,
    label_smoothing=label_smoothing,
  )
  _check_range(
    math.inf,
    mixup_alpha=mixup_alpha,
    cutmix_alpha=cutmix_alpha,
    randaugment_std=randaugment_std,
    color_jitter=color_jitter,
  )
  _check_range(
    randaugment.MAX_LEVEL, randaugment_magnitude=randaugment_magnitude
  )
  _check_triples(fill=fill, erase_mean=erase_mean, erase_std=erase_std)
  if mix_mode not in mixing.MODES:
    raise ValueError(
      f"mix_mode is {mix_mode!r}, but must be one of {mixing.MODES}."
    )

  def augment(key, image, label):
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


def pad_and_crop(key, image, pixels, *, mode="zeros"):
  """`image` [B, H, W, C], each a random crop of it with padding around.

  All (2 pixels + 1)^2 places are equally likely; pixels move by whole numbers.

  Args:
    key: of the batch.
    image: of any dtype, which stays.
    pixels: of padding on each side.
    mode: "zeros", or "reflect" without the edge itself a second time.

  Raises:
    ValueError: there are not as many pixels to be reflected.
  """
  batch, *size = image.shape
  if mode == "reflect" and pixels >= min(size[:2]):
    raise ValueError(
      f"pad is {pixels}, but images of {size[0]}x{size[1]} pixels can reflect"
      f" at most {min(size[:2]) - 1}."
    )
  sides = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
  padded = jnp.pad(image, sides, mode=_PAD_MODES[mode])
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
  rows = mixing.span(top, top + box_height, height)
  columns = mixing.span(left, left + box_width, width)
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


def _check_range(high, **values):
  wanted = f"between 0 and {high:g}" if high < math.inf else "at least 0"
  for name, value in values.items():
    known = isinstance(value, numbers.Real) and math.isfinite(value)
    if not (known and 0 <= value <= high):
      raise ValueError(f"{name} is {value!r}, but must be a number {wanted}.")


def _check_triples(**triples):
  for name, triple in triples.items():
    if len(triple) != 3:
      raise ValueError(f"{name} has {len(triple)} numbers, but needs 3.")
    for value in triple:
      _check_range(1.0, **{name: value})


def _check_whole(least, **values):
  for name, value in values.items():
    if not isinstance(value, numbers.Integral) or value < least:
      raise ValueError(
        f"{name} is {value!r}, but must be a whole number, at least {least}."
      )
