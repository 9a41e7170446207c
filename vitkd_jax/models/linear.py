"""Affine layers whose biases learn in float32 whatever the products run in.

Parameters and their names are those of `flax.linen`. There a bias is narrowed
before it is broadcast, so that its gradient is a sum in the narrow dtype: over
12,608 tokens (64 images of 197) equal summands of 1 come to 3,584 in bfloat16
(jax issue 27496). A kernel's gradient is a matrix product, which adds in
float32 anyway.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Init = Callable[..., jax.Array]


def spread(param: jax.Array, like: jax.Array) -> jax.Array:
  """A parameter broadcast to the shape of `like`, in its dtype.

  In this order: the gradient is widened before it is summed.
  """
  return jnp.broadcast_to(param, like.shape).astype(like.dtype)


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[..., D] x [D, E] -> [..., E] as one matrix product.

  Leading axes are merged: with two of them the CPU's gradient for the kernel
  is 3 times slower; elsewhere it makes no difference.
  """
  flat = jnp.reshape(x, (-1, x.shape[-1])) @ kernel
  return jnp.reshape(flat, (*x.shape[:-1], kernel.shape[-1]))


class Dense(nn.Module):
  """`nn.Dense` over the last axis.

  Attributes:
    features: width of the output.
    dtype: of the product; None for what input and kernel promote to.
    kernel_init: initialiser of the kernel [D, features].
    bias_init: initialiser of the bias [features].
  """

  features: int
  dtype: Any = None
  kernel_init: Init = nn.initializers.lecun_normal()
  bias_init: Init = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", self.kernel_init, shape)
    bias = self.param("bias", self.bias_init, shape[1:])
    y = matmul(*nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype))
    return y + spread(bias, y)


class Conv(nn.Module):
  """`nn.Conv` over [B, H, W, C].

  Attributes:
    features: channels of the output.
    kernel_size: rows and columns.
    strides: of the rows and columns.
    padding: "VALID" or "SAME".
    dtype: of the product; None for what input and kernel promote to.
    kernel_init: initialiser of the kernel [h, w, C, features].
    bias_init: initialiser of the bias [features].
  """

  features: int
  kernel_size: tuple[int, int]
  strides: tuple[int, int] = (1, 1)
  padding: str = "SAME"
  dtype: Any = None
  kernel_init: Init = nn.initializers.lecun_normal()
  bias_init: Init = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (*self.kernel_size, x.shape[-1], self.features)
    kernel = self.param("kernel", self.kernel_init, shape)
    bias = self.param("bias", self.bias_init, shape[-1:])
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    y = jax.lax.conv_general_dilated(
      x,
      kernel,
      self.strides,
      self.padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + spread(bias, y)
