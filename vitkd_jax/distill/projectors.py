"""What takes a student's features to a teacher's width, trained beside it."""

from collections.abc import Callable
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.distill import losses
from vitkd_jax.models import linear

# PyTorch's default for linear and convolution layers, the authors' start:
# kernel and bias uniform in +-1/sqrt(fan_in).
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

KINDS = (
  "none",
  "linear",
  "ln_linear",
  "mlp",
  "orthogonal",
  "cross_attention",
  "random",
)


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
      LayerNorm), "mlp" (UNIC: one hidden layer with GELU), "orthogonal" (VkD:
      no bias, see `losses.orthogonal`), "cross_attention" (a learned query for
      each token attends to all of [B, N, D_s]) or "random" (a fixed linear map
      that is never trained: a null to compare with).
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
    if self.kind == "cross_attention":
      queries = self.param(
        "queries", nn.initializers.normal(0.02), (1, x.shape[-2], self.width)
      )
      queries = jnp.broadcast_to(queries, (x.shape[0], *queries.shape[1:]))
      return attention(self.width, self.dtype_mm)(queries, x)
    if self.kind == "random":
      shape = (x.shape[-1], self.width)
      return linear.matmul(x, kernel_init(jax.random.key(0), shape, x.dtype))
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


def attention(
  width: int, dtype_mm: Any, *, name: str | None = None
) -> nn.MultiHeadDotProductAttention:
  """Attention with heads of 64 channels, or one head where they do not fit.

  Args:
    width: of queries and output.
    dtype_mm: dtype of matrix products.
    name: of the module.
  """
  heads = width // 64 if width % 64 == 0 else 1
  return nn.MultiHeadDotProductAttention(
    heads,
    dtype=dtype_mm,
    qkv_features=width,
    out_features=width,
    kernel_init=nn.initializers.xavier_uniform(),
    name=name,
  )


def flops(
  kind: str, inputs: int, width: int, hidden: int, tokens: int
) -> float:
  """FLOPs of one token's forward pass, in matrix products.

  Args:
    kind: of `KINDS`.
    inputs: D_s.
    width: D_t.
    hidden: width of the hidden layer of "mlp".
    tokens: of the image.
  """
  if kind == "none":
    return 0.0
  if kind == "cross_attention":
    return 4.0 * width * (inputs + width + tokens)
  if kind == "mlp":
    return 2.0 * hidden * (inputs + width)
  return 2.0 * inputs * width
