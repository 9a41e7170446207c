"""Tests of vitkd_jax.models.posemb."""

import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from small_vit import filled, image, outputs, small

from vitkd_jax.models import posemb


def keys_kernel(x):
  """Bicubic with a = -1/2 (Keys, 1981), support [-2, 2]."""
  x = abs(x)
  if x < 1:
    return 1.5 * x**3 - 2.5 * x**2 + 1
  return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def cubic_weights(size, new_size):
  """Rows of an anti-aliased bicubic resize in float64, [new_size, size]."""
  scale = new_size / size
  stretch = max(1 / scale, 1)
  weights = np.array(
    [
      [
        keys_kernel((j - ((i + 0.5) / scale - 0.5)) / stretch)
        for j in range(size)
      ]
      for i in range(new_size)
    ]
  )
  return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("grid", [(2, 3), (6, 5), (4, 7)])
def test_resize_posemb_by_hand(grid):
  table = np.random.default_rng(0).standard_normal((4, 4, 8))
  expected = np.einsum(
    "ih,jw,hwd->ijd",
    cubic_weights(4, grid[0]),
    cubic_weights(4, grid[1]),
    table,
  )
  got = jax.jit(lambda x: posemb.resize_posemb(x, grid))(
    table.reshape(1, 16, 8).astype(np.float32)
  )
  np.testing.assert_allclose(got, expected.reshape(1, -1, 8), atol=1e-5)
  ones = posemb.resize_posemb(jnp.ones((1, 16, 8)), grid)
  np.testing.assert_allclose(ones, 1, rtol=1e-6)


def test_resize_posemb_leaves_its_own_grid_alone():
  table = jnp.ones((1, 6, 8))
  assert posemb.resize_posemb(table, (2, 3)) is table
  with pytest.raises(ValueError, match=r"square grid .*2x2, got 6 tokens"):
    posemb.resize_posemb(table, (2, 2))


def test_another_image_size_is_served_by_resizing():
  """At apply, equal to resizing the parameter beforehand; also not square."""
  model = small(pool_type="tok")
  leaves = filled(model, 8, 8)
  resized = dict(leaves)
  resized["pos_embedding"] = posemb.resize_posemb(
    jnp.asarray(leaves["pos_embedding"]), (3, 4)
  )
  images = image(12, 16)
  got, _ = outputs(model, leaves, images)
  expected, _ = outputs(model, resized, images)
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_sincos_by_hand():
  height, width, dim = 2, 3, 12
  expected = np.zeros((height * width, dim))
  for y in range(height):
    for x in range(width):
      for k in range(3):
        omega = 10_000 ** (-k / 2)  # 3 frequencies from 1 to 1/10000
        expected[y * width + x, [k, k + 3, k + 6, k + 9]] = (
          math.sin(x * omega),
          math.cos(x * omega),
          math.sin(y * omega),
          math.cos(y * omega),
        )
  got = posemb.sincos_2d(height, width, dim)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got[0], expected, atol=1e-6)


@pytest.mark.parametrize("dim", [4, 10])
def test_sincos_refuses(dim):
  with pytest.raises(ValueError, match=f"divisible by 4, .*, got {dim}"):
    posemb.sincos_2d(2, 2, dim)
