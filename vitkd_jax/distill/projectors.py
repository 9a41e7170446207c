"""What takes a student's features to a teacher's width, trained beside it."""

from collections.abc import Callable
import math
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.distill import losses
from vitkd_jax.models import linear

# PyTorch's default for linear and convolution layers, the authors' start:
# kernel and bias uniform in +-1/sqrt(fan_in).
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

KINDS = ("none", "linear", "ln_linear", "mlp", "orthogonal")


def bias_init(fan_in: int) -> Callable[..., jax.Array]:
  """PyTorch's start of a bias.

  Args:
    fan_in: inputs of an output.
  """
  bound = 1 / math.sqrt(fan_in)

  def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Projector(nn.Module):
  """[..., D_s] -> [..., D_t].

  Attributes:
    width: D_t.
    kind: "none" (the widths are equal), "linear", "ln_linear" (Proteus: after a
      LayerNorm), "mlp" (UNIC: one hidden layer with GELU) or "orthogonal"
      (VkD: no bias, see `losses.orthogonal`).
    hidden: width of the hidden layer of "mlp".
    dtype_mm: dtype of matrix products; that of "orthogonal" is float32.
  """

  width: int
  kind: str = "linear"
  hidden: int = 768
  dtype_mm: Any = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """The features at the teacher's width.

    Args:
      x: [..., D_s].

    Raises:
      ValueError: "none" meets another width.
    """
    if self.kind == "none":
      if x.shape[-1] != self.width:
        raise ValueError(
          f"expected features of width {self.width} with projector 'none', got "
          f"{x.shape[-1]}"
        )
      return x
    if self.kind == "orthogonal":
      shape = (x.shape[-1], self.width)
      kernel = self.param("orthogonal", kernel_init, shape)
      x = jnp.asarray(x, jnp.float32)
      return linear.matmul(x, losses.orthogonal(kernel))
    if self.kind == "mlp":
      return self._small(self.width)(nn.gelu(self._small(self.hidden)(x)))
    if self.kind == "ln_linear":
      x = nn.LayerNorm(epsilon=1e-5)(x)
    return linear.Dense(
      self.width,
      dtype=self.dtype_mm,
      kernel_init=kernel_init,
      bias_init=bias_init(x.shape[-1]),
    )(x)

  def _small(self, width: int) -> linear.Dense:
    """UNIC's layers: kernels of deviation 0.02, biases 0."""
    return linear.Dense(
      width,
      dtype=self.dtype_mm,
      kernel_init=nn.initializers.truncated_normal(0.02),
    )


def generate(
  x: jax.Array, grid: tuple[int, int], *, dtype_mm: Any, name: str
) -> jax.Array:
  """Two 3x3 convolutions with a ReLU between, of the calling module.

  Args:
    x: [B, N, D].
    grid: rows and columns of its tokens.
    dtype_mm: dtype of matrix products.
    name: of the parameters, NAME_0 and NAME_1.

  Returns:
    [B, N, D].
  """
  width = x.shape[-1]
  x = einops.rearrange(x, "b (h w) d -> b h w d", h=grid[0], w=grid[1])
  for i in range(2):
    x = linear.Conv(
      width,
      (3, 3),
      dtype=dtype_mm,
      kernel_init=kernel_init,
      bias_init=bias_init(9 * width),
      name=f"{name}_{i}",
    )(nn.relu(x) if i else x)
  return einops.rearrange(x, "b h w d -> b (h w) d")


def flops(kind: str, inputs: int, width: int, hidden: int) -> float:
  """FLOPs of one token's forward pass, in matrix products.

  Args:
    kind: of `KINDS`.
    inputs: D_s.
    width: D_t.
    hidden: width of the hidden layer of "mlp".
  """
  if kind == "none":
    return 0.0
  if kind == "mlp":
    return 2.0 * hidden * (inputs + width)
  return 2.0 * inputs * width
