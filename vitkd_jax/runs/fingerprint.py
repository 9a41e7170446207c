"""A number for each array that any changed bit alters, on any sharding."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

_UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def _leaf_fingerprint(x):
  """uint32 that any changed word alters, on any sharding the same."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  words = jax.lax.bitcast_convert_type(x, _UINTS[x.dtype.itemsize])
  words = words.astype(jnp.uint32)
  index = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(
      jnp.uint32, words.shape, axis
    )
  # Odd factors (Knuth's multiplicative hash), so that no word cancels out.
  return jnp.sum(words * (index * jnp.uint32(2654435761) | 1), dtype=jnp.uint32)


@jax.jit
def _fingerprints(leaves):
  return [_leaf_fingerprint(x) for x in leaves]


def paths(tree: Any) -> dict[str, Any]:
  """{"a/b/c": leaf} of a tree."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return {name(path): leaf for path, leaf in flat}


def of(tree: Any) -> dict[str, int]:
  """{path: uint32} of every leaf; equal on any number of devices."""
  leaves = paths(tree)
  values = jax.device_get(_fingerprints(list(leaves.values())))
  return {path: int(v) for path, v in zip(leaves, values, strict=True)}
