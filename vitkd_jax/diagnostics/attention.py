"""Where the heads of a model look."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def weights(query: jax.Array, key: jax.Array) -> jax.Array:
  """Attention of each token to each, softmax(q k' / sqrt(E)).

  Args:
    query: [B, T, heads, E], with bias.
    key: likewise.

  Returns:
    [B, heads, T, T] float32; rows sum to 1.
  """
  query, key = jnp.asarray(query, jnp.float32), jnp.asarray(key, jnp.float32)
  scores = jnp.einsum(
    "bqhe,bkhe->bhqk", query, key, precision=jax.lax.Precision.HIGHEST
  )
  return jax.nn.softmax(scores / np.sqrt(query.shape[-1]), axis=-1)


def of_block(out: Mapping[str, Any], block: int) -> jax.Array:
  """`weights` of a block, from the second output of a model with q, k and v.

  Args:
    out: see `models.protocol.Backbone.with_qkv`.
    block: index, from 0.
  """
  query, key, _ = out["encoder"][f"block{block:02d}"]["qkv"]
  return weights(query, key)


def distances(
  attention: jax.Array,
  grid: tuple[int, int],
  patch: tuple[int, int],
  num_prefix_tokens: int,
) -> jax.Array:
  """Mean distance at which the patches of a head look, in pixels.

  The mean over images and patches of the distance between patch centres,
  weighted by the attention among patches, as in arXiv:2010.11929, figure 7.

  Args:
    attention: [B, heads, T, T] from `weights`.
    grid: rows and columns of patches.
    patch: rows and columns of a patch, in pixels.
    num_prefix_tokens: tokens before the patches, which are left out.

  Returns:
    [heads] float32.
  """
  inner = attention[:, :, num_prefix_tokens:, num_prefix_tokens:]
  inner = inner / jnp.sum(inner, axis=-1, keepdims=True)
  rows, columns = np.indices(grid).reshape(2, -1)
  far = np.hypot(
    (rows[:, None] - rows) * patch[0], (columns[:, None] - columns) * patch[1]
  )
  return jnp.mean(jnp.sum(inner * far, axis=-1), axis=(0, 2))


def entropies(attention: jax.Array) -> jax.Array:
  """Mean entropy of a head's rows, in nats; log T for even attention.

  Args:
    attention: [B, heads, T, T] from `weights`.

  Returns:
    [heads] float32.
  """
  return jnp.mean(
    -jnp.sum(jax.scipy.special.xlogy(attention, attention), axis=-1),
    axis=(0, 2),
  )


def rollout(attention: jax.Array) -> jax.Array:
  """Attention through all blocks (arXiv:2005.00928).

  The product over blocks of the mean over heads, half of which is replaced by
  the identity for the residual stream.

  Args:
    attention: [blocks, B, heads, T, T].

  Returns:
    [B, T, T] float32; row i says what token i of the last block is made of.
  """
  mixed = jnp.mean(attention, axis=2)
  mixed = 0.5 * (mixed + jnp.eye(mixed.shape[-1]))
  total = mixed[0]
  for block in mixed[1:]:
    total = block @ total
  return total
