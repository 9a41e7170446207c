"""What regenerates a teacher's map from a student's, some of it masked."""

from typing import Any

import einops
import flax.linen as nn
import jax

from vitkd_jax.distill import projectors
from vitkd_jax.distill.losses import arrays
from vitkd_jax.models import linear

KINDS = ("conv", "self_attention", "cross_attention")


def generate(
  x: jax.Array,
  grid: tuple[int, int],
  *,
  kind: str = "conv",
  dtype_mm: Any,
  name: str,
) -> jax.Array:
  """The generated map; its parameters are of the calling module.

  "conv" is ViTKD's: two 3x3 convolutions with a ReLU between. The others are
  what its paper compares it with (arXiv:2209.02432, section 3.4), as one block
  of a ViT with learned positions, since masked tokens are all alike:
  "self_attention" among all tokens, or "cross_attention" from learned queries
  to them. No code of theirs for these is public.

  Args:
    x: [B, N, D].
    grid: rows and columns of its tokens.
    kind: of `KINDS`.
    dtype_mm: dtype of matrix products.
    name: of the parameters, a prefix.

  Returns:
    [B, N, D].
  """
  arrays.check_known("generator", kind, KINDS)
  if kind == "conv":
    return _convolve(x, grid, dtype_mm=dtype_mm, name=name)
  crossed = kind == "cross_attention"
  return _Block(crossed, dtype_mm, name=name)(x)


def _convolve(
  x: jax.Array, grid: tuple[int, int], *, dtype_mm: Any, name: str
) -> jax.Array:
  width = x.shape[-1]
  x = einops.rearrange(x, "b (h w) d -> b h w d", h=grid[0], w=grid[1])
  for i in range(2):
    x = linear.Conv(
      width,
      (3, 3),
      dtype=dtype_mm,
      kernel_init=projectors.kernel_init,
      bias_init=projectors.bias_init(9 * width),
      name=f"{name}_{i}",
    )(nn.relu(x) if i else x)
  return einops.rearrange(x, "b h w d -> b (h w) d")


def output(kind: str, name: str) -> str:
  """The submodule of a calling module whose output is the generated map.

  Args:
    kind: see `generate`.
    name: see `generate`.
  """
  return f"{name}_1" if kind == "conv" else name


class _Block(nn.Module):
  """A pre-norm block of attention and an MLP, over positions."""

  crossed: bool
  dtype_mm: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    position = self.param(
      "position", nn.initializers.normal(0.02), (1, *x.shape[1:])
    )
    position = linear.spread(position, x)
    query = position if self.crossed else x + position
    memory = nn.LayerNorm(dtype=self.dtype_mm, name="norm_memory")(x + position)
    attended = projectors.attention(width, self.dtype_mm, name="attention")(
      nn.LayerNorm(dtype=self.dtype_mm, name="norm_query")(query)
      if self.crossed
      else memory,
      memory,
    )
    x = query + attended
    hidden = nn.LayerNorm(dtype=self.dtype_mm, name="norm_mlp")(x)
    hidden = nn.gelu(self._dense(4 * width, "mlp_0")(hidden))
    return x + self._dense(width, "mlp_1")(hidden)

  def _dense(self, width: int, name: str) -> linear.Dense:
    return linear.Dense(
      width,
      dtype=self.dtype_mm,
      kernel_init=nn.initializers.xavier_uniform(),
      name=name,
    )


def flops(kind: str, tokens: int, width: int) -> float:
  """FLOPs of an image's forward pass, in matrix products.

  Args:
    kind: of `KINDS`.
    tokens: N.
    width: D.
  """
  if kind == "conv":
    return 2.0 * 2 * tokens * 9 * width**2
  return 2.0 * tokens * 12 * width**2 + 4.0 * tokens**2 * width
