"""Attention whose heads are mixed around the softmax, as CaiT has it.

Widths are D, tokens T and S, heads H, width of a head E, batch B.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.models import attention
from vitkd_jax.models.linear import spread


class TalkingHeads(nn.Module):
  """Self-attention whose heads are mixed around the softmax.

  Attention weights are softmax(scores L + l) W + w over the axis of heads
  (arXiv:2003.02436, equation 2; the biases as in arXiv:2103.17239). Parameters
  are those of `Attention`, and `mix_scores` (L, l) and `mix_weights` (W, w).
  No fused kernel computes this, as every head needs the scores of all.

  Attributes:
    num_heads: H; divides the width.
    init_scheme: "big_vision" or "deit" initialisation.
    dtype_mm: dtype of matrix products.
  """

  num_heads: int
  init_scheme: str = "big_vision"
  dtype_mm: Any = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Attends within x.

    Args:
      x: [B, T, D].

    Returns:
      [B, T, D] in `dtype_mm`.
    """
    heads = self.num_heads
    parts, out = attention.affines(
      x.shape[-1], heads, self.init_scheme, self.dtype_mm
    )
    mixes = [
      attention.Projection(
        (heads, heads),
        (heads, heads),
        (heads,),
        attention.kernel_init(self.init_scheme),
        name=name,
      )()
      for name in ("mix_scores", "mix_weights")
    ]
    x = x.astype(self.dtype_mm)
    q, k, v = (attention.project("btd,dhe->bthe", x, *part) for part in parts)
    y = jax.lax.platform_dependent(
      q, k, v, *mixes, tpu=_talk_folded, default=_talk
    )
    return attention.project("bthe,hed->btd", y, *out)


def _talk(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  before: attention.Affine,
  after: attention.Affine,
) -> jax.Array:
  """Attention of q, k, v [B, T, H, E] with heads mixed as arrays of scores."""
  scores = jnp.einsum("bthe,bshe->bhts", q, k, **attention.FLOAT32)
  kernel = before[0].astype(jnp.float32) * q.shape[-1] ** -0.5
  scores = jnp.einsum("bhts,hg->bgts", scores, kernel)
  weights = jax.nn.softmax(scores + _over_heads(before[1], scores))
  weights = weights.astype(q.dtype)
  weights = jnp.einsum("bgts,gh->bhts", weights, after[0].astype(q.dtype))
  weights = weights + _over_heads(after[1], weights)
  return jnp.einsum("bhts,bshe->bthe", weights, v)


def _talk_folded(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  before: attention.Affine,
  after: attention.Affine,
) -> jax.Array:
  """The same with each mix folded into the large product beside it.

  H times the FLOPs, but of full tiles: a mix alone is a product of width H,
  which leaves a TPU's matrix unit idle. For CaiT-S24 the compiler estimates
  0.55 to 0.78 of `_talk`'s cycles on v4, v5e and v6e.
  """
  kernel = before[0].astype(jnp.float32) * q.shape[-1] ** -0.5
  mixed = jnp.einsum("bthe,hg->bgthe", q, kernel.astype(q.dtype))
  scores = jnp.einsum("bgthe,bshe->bgts", mixed, k, **attention.FLOAT32)
  weights = jax.nn.softmax(scores + _over_heads(before[1], scores))
  values = v[:, :, None] * after[0].astype(v.dtype)[:, :, None]  # b s g h e
  y = jnp.einsum(
    "bgts,bsghe->bthe", weights.astype(q.dtype), values, **attention.FLOAT32
  )
  total = jnp.sum(v, axis=1, keepdims=True, dtype=jnp.float32)
  return (y + after[1][:, None] * total).astype(q.dtype)


def _over_heads(bias: jax.Array, like: jax.Array) -> jax.Array:
  """A bias [H] in the shape [B, H, T, S] and the dtype of `like`."""
  return spread(bias[:, None, None], like)
