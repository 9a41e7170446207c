"""A hash of each array that does not depend on its sharding."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

_UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def _leaf_fingerprint(x):
  """uint32 that changes with any word, the same on any sharding."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  words = jax.lax.bitcast_convert_type(x, _UINTS[x.dtype.itemsize])
  words = words.astype(jnp.uint32)
  index = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(
      jnp.uint32, words.shape, axis
    )
  # Odd factors (Knuth's multiplicative hash): no change of one word is lost.
  return jnp.sum(words * (index * jnp.uint32(2654435761) | 1), dtype=jnp.uint32)


@jax.jit
def _fingerprints(leaves):
  return [_leaf_fingerprint(x) for x in leaves]


def paths(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by path, such as "a/b/c".

  Args:
    tree: any pytree.
  """
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return {name(path): leaf for path, leaf in flat}


def of(tree: Any) -> dict[str, int]:
  """The hash of every leaf, the same on any number of devices.

  Args:
    tree: of arrays, with items of at most 4 bytes.

  Returns:
    Numbers in [0, 2**32) by path.
  """
  leaves = paths(tree)
  values = jax.device_get(_fingerprints(list(leaves.values())))
  return {path: int(v) for path, v in zip(leaves, values, strict=True)}
