"""Affine layers whose bias gradients are float32 in any dtype of the products.

Parameters and their names are those of `flax.linen`. There a bias is cast to
the narrow dtype before it is broadcast, so its gradient is summed in that
dtype: in bfloat16, 12,608 ones (64 images of 197 tokens) sum to 3,584 (jax
issue 27496). A kernel's gradient is a matrix product, which accumulates in
float32 anyway.
"""

from collections.abc import Callable
import functools
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

Init = Callable[..., jax.Array]


def spread(param: jax.Array, like: jax.Array) -> jax.Array:
  """Broadcasts a parameter to the shape of `like`, then casts it to its dtype.

  In this order, the gradient is widened before it is summed.

  Args:
    param: float32, broadcastable to the shape of `like`.
    like: of any shape and dtype.
  """
  return jnp.broadcast_to(param, like.shape).astype(like.dtype)


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """One matrix product over merged leading axes.

  With two leading axes, the kernel's gradient is 3 times slower on CPU;
  elsewhere merging makes no difference.

  Args:
    x: [..., D].
    kernel: [D, E].

  Returns:
    [..., E].
  """
  flat = jnp.reshape(x, (-1, x.shape[-1])) @ kernel
  return jnp.reshape(flat, (*x.shape[:-1], kernel.shape[-1]))


class Dense(nn.Module):
  """`nn.Dense` over the last axis.

  Attributes:
    features: width of the output.
    dtype: of the product; None to promote input and kernel.
    kernel_init: initialiser of the kernel [D, features].
    bias_init: initialiser of the bias [features].
  """

  features: int
  dtype: Any = None
  kernel_init: Init = nn.initializers.lecun_normal()
  bias_init: Init = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., features] in `dtype`.

    Args:
      x: [..., D].
    """
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
    strides: along rows and columns.
    padding: "VALID" or "SAME".
    dtype: of the product; None to promote input and kernel.
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
    """[B, h, w, features] in `dtype`.

    Args:
      x: [B, H, W, C].
    """
    shape = (*self.kernel_size, x.shape[-1], self.features)
    kernel = self.param("kernel", self.kernel_init, shape)
    bias = self.param("bias", self.bias_init, shape[-1:])
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    convolve = functools.partial(
      jax.lax.conv_general_dilated,
      window_strides=self.strides,
      padding=self.padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    if self.strides == self.kernel_size and self.padding == "VALID":
      y = jax.lax.platform_dependent(
        x, kernel, cuda=_of_patches, default=convolve
      )
    else:
      y = convolve(x, kernel)
    return y + spread(bias, y)


def _of_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A convolution of patches side by side, as one product of matrices."""
  rows, columns = kernel.shape[:2]
  height, width = x.shape[1] // rows, x.shape[2] // columns
  patches = einops.rearrange(
    x[:, : height * rows, : width * columns],
    "b (h i) (w j) c -> b h w (i j c)",
    i=rows,
    j=columns,
  )
  return matmul(patches, jnp.reshape(kernel, (-1, kernel.shape[-1])))
