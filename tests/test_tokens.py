"""Tests of vitkd_jax.distill.tokens."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from vitkd_jax.distill import tokens

B, N, D, DEPTH, PREFIX = 2, 6, 4, 3, 2


@pytest.fixture(scope="module")
def out():
  """A model's `out` whose numbers tell block, place and token."""
  places = {"sa": 0, "+sa": 1, "mlp": 2, "+mlp": 3}

  def tokens_of(value):
    tokens_axis = np.arange(PREFIX + N)[None, :, None]
    return jnp.asarray(value + 0.01 * tokens_axis + np.zeros((B, 1, D)))

  encoder = {
    f"block{i:02d}": {
      place: tokens_of(10 * i + number) for place, number in places.items()
    }
    for i in range(DEPTH)
  }
  encoder["pre_ln"] = encoder[f"block{DEPTH - 1:02d}"]["+mlp"]
  return {"encoder": encoder, "encoded": tokens_of(100)}


def firsts(x):
  """The number of each map, by its first token and channel."""
  return np.round(np.asarray(x)[..., 0, 0] - 0.01 * PREFIX, 4)


# select


def test_the_papers_maps_are_the_default(out):
  low, high = tokens.select(out, num_prefix_tokens=PREFIX)
  assert low.shape == (B, 2, N, D)
  assert high.shape == (B, N, D)
  np.testing.assert_array_equal(firsts(low), [[3, 13]] * B)
  np.testing.assert_array_equal(firsts(high), [100] * B)
  # What remains are the patch tokens, in order.
  np.testing.assert_allclose(
    high[0, :, 0], 100 + 0.01 * np.arange(PREFIX, PREFIX + N), rtol=1e-6
  )


@pytest.mark.parametrize(
  "blocks, place, expected",
  [
    ((0,), "sa", [0]),
    ((2, 0, 1), "+sa", [21, 1, 11]),
    ((-1, -3), "mlp", [22, 2]),
    ((1, 1), "+mlp", [13, 13]),
  ],
)
def test_blocks_and_places(out, blocks, place, expected):
  low, high = tokens.select(
    out,
    num_prefix_tokens=PREFIX,
    low_blocks=blocks,
    low_place=place,
    high_block=blocks[0],
    high_place=place,
  )
  np.testing.assert_array_equal(firsts(low), [expected] * B)
  np.testing.assert_array_equal(firsts(high), expected[:1] * B)


def test_no_prefix_keeps_every_token(out):
  low, high = tokens.select(out, num_prefix_tokens=0)
  assert low.shape[2] == high.shape[1] == PREFIX + N


@pytest.mark.parametrize(
  "options, match",
  [
    (dict(low_blocks=(0, 3)), r"-3 <= block < 3 \(the model's depth\), got 3"),
    (dict(low_blocks=(-4,)), "got -4"),
    (dict(high_place="sa", high_block=3), "got 3"),
    (dict(low_place="encoded"), r"low_place in a block, such as '\+mlp', got"),
    (dict(low_place="+mpl"), r"got '\+mpl'; the nearest is '\+mlp'"),
    (dict(high_place="encode"), "got 'encode'; the nearest is 'encoded'"),
    (dict(high_place="zzz"), "encoded, got 'zzz'$"),
  ],
)
def test_select_refuses(out, options, match):
  with pytest.raises(ValueError, match=match):
    tokens.select(out, num_prefix_tokens=PREFIX, **options)


@pytest.mark.parametrize("place", tokens.PLACES)
def test_known_places_pass(place):
  tokens.check_place(place)


# random_mask


@functools.cache
def drawer(batch, num_tokens, ratio):
  return jax.jit(lambda key: tokens.random_mask(key, batch, num_tokens, ratio))


def draw(key, batch, num_tokens, ratio):
  return np.asarray(drawer(batch, num_tokens, ratio)(jax.random.key(key)))


# Replaced by hand: N - floor(N (1 - ratio)), floor of the float64 product, as
# Python computes it: 10 x (1 - 0.9) is just below 1, so that none is kept.
COUNTS = [
  (1, 0.0, 0),
  (1, 0.5, 1),
  (2, 0.5, 1),
  (7, 0.5, 4),
  (10, 0.9, 10),
  (16, 0.0, 0),
  (16, 0.9, 15),
  (49, 0.25, 13),
  (49, 0.5, 25),
  (64, 0.99, 64),
  (196, 0.0, 0),
  (196, 0.5, 98),
  (196, 0.75, 147),
  (196, 0.9, 177),
  (256, 0.5, 128),
  (257, 0.3, 78),
]


@pytest.mark.parametrize("num_tokens, ratio, count", COUNTS)
def test_exactly_so_many_are_replaced(num_tokens, ratio, count):
  mask = draw(0, 33, num_tokens, ratio)
  assert mask.shape == (33, num_tokens)
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask.sum(axis=1), count)
  assert count == num_tokens - int(num_tokens * (1 - ratio))


def test_each_token_and_each_pair_is_as_likely():
  """Chi-square of single tokens, and of pairs, against a uniform subset."""
  rows, num_tokens, kept = 20_000, 8, 4
  mask = draw(1, rows, num_tokens, 0.5).astype(np.float64)
  share = 1 - kept / num_tokens
  singles = mask.sum(0)
  # Of dependent indicators with a fixed sum: N - 1 degrees of freedom once
  # scaled by (N - 1) / N.
  statistic = np.sum((singles - rows * share) ** 2) / (
    rows * share * (1 - share)
  )
  assert statistic * (num_tokens - 1) / num_tokens < 24.3  # p = 0.001, 7 d.o.f.
  pairs = (mask.T @ mask)[np.triu_indices(num_tokens, 1)]
  likely = 4 * 3 / (8 * 7)
  deviation = (pairs - rows * likely) / np.sqrt(rows * likely * (1 - likely))
  assert np.abs(deviation).max() < 4


def test_rows_and_keys_differ():
  mask = draw(0, 64, 196, 0.5)
  assert len(np.unique(mask, axis=0)) == 64
  assert (mask != draw(1, 64, 196, 0.5)).any(axis=1).all()
  # Two rows agree on half of the tokens, not on more.
  agree = (mask[:-1] == mask[1:]).mean()
  assert 0.48 < agree < 0.52


def test_the_mask_is_a_function_of_the_key_alone():
  first = draw(3, 16, 49, 0.5)
  np.testing.assert_array_equal(draw(3, 16, 49, 0.5), first)
  unjitted = tokens.random_mask(jax.random.key(3), 16, 49, 0.5)
  np.testing.assert_array_equal(unjitted, first)


def test_a_sharded_mask_is_the_same():
  mesh = jax.make_mesh(
    (jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)
  )
  sharded = jax.jit(
    lambda key: tokens.random_mask(key, 16, 49, 0.5),
    out_shardings=NamedSharding(mesh, P("data")),
  )(jax.random.key(3))
  np.testing.assert_array_equal(sharded, draw(3, 16, 49, 0.5))


@pytest.mark.parametrize("ratio", [1.0, -0.1, 1.5, float("nan")])
def test_random_mask_refuses(ratio):
  with pytest.raises(ValueError, match=f"expected 0 <= ratio < 1, got {ratio}"):
    tokens.random_mask(jax.random.key(0), 2, 4, ratio)


# Grids


@pytest.mark.parametrize("num_tokens, side", [(1, 1), (49, 7), (196, 14)])
def test_square_grid(num_tokens, side):
  assert tokens.square_grid(num_tokens) == (side, side)


def test_square_grid_refuses():
  with pytest.raises(ValueError, match=r"tokens, got 12; .*\(rows"):
    tokens.square_grid(12)


def tent_weights(size, new_size):
  """Rows of a linear, anti-aliased resize in float64, [new_size, size]."""
  scale = new_size / size
  radius = max(1 / scale, 1)  # a tent is widened where the map shrinks
  weights = np.zeros((new_size, size))
  for i in range(new_size):
    centre = (i + 0.5) / scale - 0.5
    for j in range(size):
      weights[i, j] = max(0.0, 1 - abs(j - centre) / radius)
  return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("new_grid", [(2, 3), (5, 7), (8, 2), (4, 6)])
def test_resample_by_hand(new_grid):
  grid = (4, 6)
  maps = np.random.default_rng(0).standard_normal((B, 2, *grid, D))
  expected = np.einsum(
    "ih,jw,bkhwd->bkijd",
    tent_weights(grid[0], new_grid[0]),
    tent_weights(grid[1], new_grid[1]),
    maps,
  ).reshape(B, 2, -1, D)
  got = jax.jit(lambda x: tokens.resample(x, grid, new_grid))(
    maps.reshape(B, 2, -1, D).astype(np.float32)
  )
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_the_same_grid_is_the_same_array():
  maps = jnp.ones((B, N, D))
  assert tokens.resample(maps, (2, 3), [2, 3]) is maps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resample_keeps_constants_and_dtype(dtype):
  maps = jnp.full((B, 9, D), 3, dtype)
  for grid in ((2, 2), (7, 5)):
    got = tokens.resample(maps, (3, 3), grid)
    assert got.dtype == maps.dtype
    assert got.shape == (B, grid[0] * grid[1], D)
    np.testing.assert_allclose(np.float32(got), 3, rtol=1e-6)


def test_resample_swaps_with_a_mirrored_map():
  maps = np.random.default_rng(1).standard_normal((1, 3, 4, D))
  maps = maps.astype(np.float32)
  got = tokens.resample(maps.reshape(1, 12, D), (3, 4), (2, 6))
  mirrored = tokens.resample(
    maps[:, ::-1, ::-1].reshape(1, 12, D), (3, 4), (2, 6)
  )
  np.testing.assert_allclose(got, mirrored[:, ::-1], rtol=1e-5, atol=1e-6)
