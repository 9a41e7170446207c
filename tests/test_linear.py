"""Affine layers: flax's values, and float32 gradients of biases."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitkd_jax.models import linear

CONV = dict(features=3, kernel_size=(4, 4))
LAYERS = {
  "dense": (linear.Dense(3), nn.Dense(3), (2, 5, 4)),
  "patches": (
    linear.Conv(**CONV, strides=(4, 4), padding="VALID"),
    nn.Conv(**CONV, strides=(4, 4), padding="VALID"),
    (2, 9, 8, 4),
  ),
  "generator": (
    linear.Conv(3, (3, 3)),
    nn.Conv(3, (3, 3), padding=1),
    (2, 5, 4, 3),
  ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_values_and_parameters_are_flax_s(layer, dtype):
  ours, theirs, shape = LAYERS[layer]
  x = jax.random.normal(jax.random.key(0), shape)
  got, params = ours.clone(dtype=dtype).init_with_output(jax.random.key(1), x)
  want, expected = theirs.clone(dtype=dtype).init_with_output(
    jax.random.key(1), x
  )
  assert got.dtype == want.dtype == dtype
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  tolerance = 1e-6 if dtype == "float32" else 0.02
  np.testing.assert_allclose(
    np.float32(got), np.float32(want), rtol=tolerance, atol=tolerance
  )


@pytest.mark.parametrize("layer", ["dense", "generator"])
def test_a_bias_gradient_is_summed_in_float32(layer):
  ours, _, shape = LAYERS[layer]
  x = jnp.zeros((64, *((197,) if len(shape) == 3 else (14, 14)), shape[-1]))
  ours = ours.clone(dtype="bfloat16")
  params = ours.init(jax.random.key(0), x)

  def total(params):
    return jnp.sum(ours.apply(params, x).astype(jnp.float32))

  gradient = jax.jit(jax.grad(total))(params)["params"]["bias"]
  # In bfloat16 the sums of 12,608 and 12,544 ones end at 3,584 and 512.
  np.testing.assert_array_equal(gradient, [np.prod(x.shape[:-1])] * 3)


def test_a_convolution_of_patches_is_a_product():
  """A GPU takes the product, the other tests the convolution."""
  rng = np.random.default_rng(0)
  x = np.float32(rng.standard_normal((2, 9, 11, 3)))  # rows left over
  kernel = np.float32(rng.standard_normal((4, 5, 3, 6)))
  cotangent = np.float32(rng.standard_normal((2, 2, 2, 6)))

  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (4, 5), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  found, back = jax.vjp(linear._of_patches, x, kernel)
  expected, expected_back = jax.vjp(convolve, x, kernel)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  for one, other in zip(back(cotangent), expected_back(cotangent), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
