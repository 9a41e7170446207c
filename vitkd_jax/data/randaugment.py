"""RandAugment (arXiv:1909.13719) with timm's "increasing" set, on the device.

Every image of the batch draws its own operations. They fall into seven classes
(`CLASSES`), each one function of a batch that leaves images unchanged which
drew something else. On a TPU or a CPU, images that drew an operation are
processed one by one, and only the drawn class is computed: one image fills a
TPU core, and few images draw the expensive classes. A GPU would wait for the
host at each of these branches, so there every class is computed for all images
at once.

Under a mesh each device processes its own images: without `shard_map` a loop
over the batch would gather all images on all devices.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from vitkd_jax.data import color, warp

MAX_LEVEL = 10.0

Fill = Sequence[float]  # a colour, 3 numbers in [0, 1]


def randaugment(
  key: jax.Array,
  image: jax.Array,
  *,
  ops: int,
  magnitude: float,
  std: float,
  prob: float,
  fill: Fill,
) -> jax.Array:
  """`image` after `ops` rounds of `operate`, each drawn by `draw`.

  timm's `rand-m9-mstd0.5-inc1` is ops=2, magnitude=9, std=0.5, prob=0.5. So is
  mmcls's RandAugment in the paper's recipe, whose operations default to that
  probability.

  Args:
    key: of the batch.
    image: uint8 [B, H, W, 3].
    ops: rounds, i.e. operations drawn per image, >= 1.
    magnitude: see `draw`.
    std: see `draw`.
    prob: see `draw`.
    fill: colour that moves in from outside, 3 numbers in [0, 1].

  Returns:
    uint8 [B, H, W, 3].
  """
  drawn = [
    draw(key, len(image), magnitude=magnitude, std=std, prob=prob)
    for key in jax.random.split(key, ops)
  ]
  index, level = (jnp.stack(x, 1) for x in zip(*drawn, strict=True))

  def all_rounds(planes, index, level):
    def one_round(planes, drawn):
      return operate(planes, *drawn, fill=fill), None

    return jax.lax.scan(one_round, planes, (index.T, level.T))[0]

  # The mesh is empty unless the array is split over one.
  mesh = jax.typeof(image).sharding.mesh
  if not mesh.empty and len(image) % mesh.size == 0:
    rows = P(mesh.axis_names)
    all_rounds = jax.shard_map(
      all_rounds,
      mesh=mesh,
      in_specs=(rows, rows, rows),
      out_specs=rows,
      check_vma=False,  # else constants of a branch need marking
    )
  planes = all_rounds(image.transpose(0, 3, 1, 2), index, level)
  return planes.transpose(0, 2, 3, 1)


def draw(
  key: jax.Array, batch: int, *, magnitude: float, std: float, prob: float
) -> tuple[jax.Array, jax.Array]:
  """Draws an operation and its level for each image.

  Args:
    key: of the batch and round.
    batch: B.
    magnitude: mean level, in [0, 10].
    std: standard deviation of the level, which is then clipped to [0, 10].
    prob: probability that a drawn operation is applied, in [0, 1].

  Returns:
    index int32 [B] into OPERATIONS, or -1 for none; level float32 [B] in
    [-10, 10], both signs equally likely.
  """
  key_index, key_level, key_sign, key_prob = jax.random.split(key, 4)
  index = jax.random.randint(key_index, (batch,), 0, len(OPERATIONS))
  level = magnitude + std * jax.random.normal(key_level, (batch,))
  level = jnp.clip(level, 0.0, MAX_LEVEL)
  level = jnp.where(
    jax.random.bernoulli(key_sign, 0.5, (batch,)), level, -level
  )
  chosen = jax.random.bernoulli(key_prob, prob, (batch,))
  return jnp.where(chosen, index, -1), level


def operate(
  image: jax.Array,
  index: jax.Array,
  level: jax.Array,
  *,
  fill: Fill,
) -> jax.Array:
  """Applies operation `index` at `level` to each image.

  Follows timm's PIL operations, rounding included, with two differences: where
  timm draws bilinear or bicubic interpolation, this is always bicubic (as in
  DeiT's and the paper's recipes), and a rotation interpolates along one axis
  at a time.

  Args:
    image: uint8 [B, 3, H, W].
    index: int32 [B] into OPERATIONS; any other number leaves the image alone.
    level: float32 [B] in [-10, 10]. A negative level turns, shears, moves or
      blends the other way; the other operations use its absolute value.
    fill: colour that moves in from outside, 3 numbers in [0, 1].

  Returns:
    uint8 [B, 3, H, W].
  """
  index = jnp.where(index < len(OPERATIONS), index, -1)
  one_by_one = functools.partial(_one_by_one, fill=fill)
  return jax.lax.platform_dependent(
    image,
    index,
    level,
    tpu=one_by_one,
    cpu=one_by_one,
    default=functools.partial(_all_at_once, fill=fill),
  )


def _one_by_one(
  image: jax.Array, index: jax.Array, level: jax.Array, *, fill: Fill
) -> jax.Array:
  at = jnp.argsort(index < 0).astype(jnp.uint32)  # drawn ones first
  index, level = index[at], level[at]
  of_operation = [CLASSES.index(x) for x in OPERATIONS.values()]
  which = jnp.array(of_operation, jnp.uint32)[index]
  # One number instead of three: on a TPU, fetching a scalar takes as long as
  # computing with thousands.
  packed = at * 256 + which * 16 + (index & 15).astype(jnp.uint32)

  def turn(i, image):
    number, by = packed[i], jax.lax.dynamic_index_in_dim(level, i)
    at, drawn = number // 256, (number % 16).astype(jnp.int32)
    one = jax.lax.dynamic_index_in_dim(image, at)
    branches = [functools.partial(compute, fill=fill) for compute in CLASSES]
    which = (number // 16 % 16).astype(jnp.int32)
    one = jax.lax.switch(which, branches, one, drawn[None], by)
    return jax.lax.dynamic_update_index_in_dim(image, one, at, 0)

  return jax.lax.fori_loop(
    jnp.uint32(0), jnp.sum(index >= 0, dtype=jnp.uint32), turn, image
  )


def _all_at_once(
  image: jax.Array, index: jax.Array, level: jax.Array, *, fill: Fill
) -> jax.Array:
  for compute in CLASSES:
    image = compute(image, index, level, fill=fill)
  return image


def _prepare(
  image: jax.Array, index: jax.Array, level: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
  """Image as float32, {operation: bool [B, 1, 1, 1]}, level / MAX_LEVEL."""
  index, level = (x[:, None, None, None] for x in (index, level))
  chosen = {name: index == i for i, name in enumerate(OPERATIONS)}
  return image.astype(jnp.float32), chosen, level / MAX_LEVEL


def _points(
  image: jax.Array, index: jax.Array, level: jax.Array, *, fill: Fill
) -> jax.Array:
  """The pointwise operations, except `equalize`."""
  del fill
  image, chosen, part = _prepare(image, index, level)
  part = jnp.abs(part)
  low, span = color.auto_contrast_lines(image)
  stretch = chosen["auto_contrast"]
  low, span = jnp.where(stretch, low, 0.0), jnp.where(stretch, span, 255.0)
  threshold = 256 - jnp.floor(part * 256)
  threshold = jnp.where(chosen["solarize"], threshold, 256.0)
  threshold = jnp.where(chosen["invert"], 0.0, threshold)
  add = jnp.where(chosen["solarize_add"], jnp.floor(part * 110), 0.0)
  bits = 4 + jnp.floor(part * 4).astype(jnp.int32)  # dropped
  step = jnp.left_shift(1, jnp.where(chosen["posterize"], bits, 0))
  step = step.astype(jnp.float32)

  image = color.floor((image - low) * 255 / span)
  image = jnp.where(image < threshold, image, 255 - image)
  image = jnp.where(image < 128, image + add, image)
  return (jnp.floor(image / step) * step).astype(jnp.uint8)


def _equalize(
  image: jax.Array, index: jax.Array, level: jax.Array, *, fill: Fill
) -> jax.Array:
  del fill
  image, chosen, _ = _prepare(image, index, level)
  return color.equalize(image, chosen["equalize"]).astype(jnp.uint8)


def _blends(
  image: jax.Array, index: jax.Array, level: jax.Array, *, fill: Fill
) -> jax.Array:
  """ImageEnhance's classes, except `sharpness`."""
  del fill
  image, chosen, part = _prepare(image, index, level)
  some = [chosen["color"], chosen["contrast"]]
  factor = jnp.where(sum(some) + chosen["brightness"] > 0, _factor(part), 1.0)
  degenerate = jnp.select(some, [color.grey(image), color.grey_mean(image)], 0)
  return color.blend(degenerate, image, factor).astype(jnp.uint8)


def _sharpness(
  image: jax.Array, index: jax.Array, level: jax.Array, *, fill: Fill
) -> jax.Array:
  del fill
  image, chosen, part = _prepare(image, index, level)
  factor = jnp.where(chosen["sharpness"], _factor(part), 1.0)
  out = color.blend(color.smooth(image), image, factor)
  return out.astype(jnp.uint8)


def _factor(part: jax.Array) -> jax.Array:
  return jnp.maximum(0.1, 1 + 0.9 * part)


def _move(
  image: jax.Array,
  index: jax.Array,
  level: jax.Array,
  *,
  fill: Fill,
  axis: int,
  name: str,
) -> jax.Array:
  """Shear and translation along one axis."""
  size = image.shape[axis]
  image, chosen, part = _prepare(image, index, level)
  most = {f"shear_{name}": 0.3, f"translate_{name}": 0.45 * size}
  slope, at = (
    jnp.where(chosen[x], part * value, 0.0)[:, 0, 0, 0]
    for x, value in most.items()
  )
  out = warp.move(image, _colour(fill), axis=axis, slope=slope, at=at)
  return color.floor(out).astype(jnp.uint8)


def _rotate(
  image: jax.Array, index: jax.Array, level: jax.Array, *, fill: Fill
) -> jax.Array:
  image, chosen, part = _prepare(image, index, level)
  degrees = jnp.where(chosen["rotate"], part * warp.MAX_DEGREES, 0.0)
  out = warp.rotate(image, _colour(fill), degrees[:, 0, 0, 0])
  return color.floor(out).astype(jnp.uint8)


def _colour(fill: Fill) -> np.ndarray:
  return np.round(255 * np.asarray(fill, np.float32))


_move_x = functools.partial(_move, axis=3, name="x")
_move_y = functools.partial(_move, axis=2, name="y")
CLASSES = (
  _points,
  _equalize,
  _blends,
  _sharpness,
  _move_x,
  _move_y,
  _rotate,
)
# timm's _RAND_INCREASING_TRANSFORMS, in its order.
OPERATIONS = {
  "auto_contrast": _points,
  "equalize": _equalize,
  "invert": _points,
  "rotate": _rotate,
  "posterize": _points,
  "solarize": _points,
  "solarize_add": _points,
  "color": _blends,
  "contrast": _blends,
  "brightness": _blends,
  "sharpness": _sharpness,
  "shear_x": _move_x,
  "shear_y": _move_y,
  "translate_x": _move_x,
  "translate_y": _move_y,
}
