"""Leaves of a ViT for another form of it: blocks stacked, positions resized."""

from collections.abc import Mapping
import math
import re

import jax.numpy as jnp
import numpy as np

from vitkd_jax.models import posemb

Leaves = dict[str, np.ndarray]
Shape = tuple[int, ...]

# A grid of 256x256, as for 4,096 px and patches of 16. Attention over more
# tokens takes tens of gigabytes.
MOST_TOKENS = 1 << 16
_MOST_BLOCKS = 1 << 10  # twice as many as a model may have


def unstack(leaves: Leaves) -> Leaves:
  """Leaves with one leaf per block, from those of a scanned encoder.

  Args:
    leaves: by name; those of blocks have a leading axis of blocks.

  Raises:
    ValueError: a leaf of the encoder has no axis of blocks.
  """
  out = {}
  for name, array in leaves.items():
    if "/encoderblock/" in name:
      if not array.ndim or len(array) > _MOST_BLOCKS:
        raise ValueError(
          f"leaf {name!r}: expected a leading axis of at most {_MOST_BLOCKS} "
          f"blocks, got shape {array.shape}"
        )
      for i, part in enumerate(array):
        out[name.replace("/encoderblock/", f"/encoderblock_{i}/")] = part
    else:
      out[name] = array
  return out


def stack(leaves: Leaves) -> Leaves:
  """Leaves of a scanned encoder, from those with one leaf per block.

  Args:
    leaves: by name.
  """
  out = {}
  blocks: dict[str, dict[int, np.ndarray]] = {}
  for name, array in leaves.items():
    match = re.match(r"(.*/encoderblock)_(\d+)(/.*)", name)
    if match:
      start, block, end = match.groups()
      blocks.setdefault(start + end, {})[int(block)] = array
    else:
      out[name] = array
  for name, parts in blocks.items():
    out[name] = np.stack([parts[i] for i in range(len(parts))])
  return out


def position(
  leaves: Leaves, expected: Mapping[str, Shape], grid: tuple[int, int]
) -> list[str]:
  """Splits prefix tokens off the position embedding, and resizes the rest.

  The entry of a prefix token (DeiT, ViT) is added to the token; DeiT III and
  big_vision have no such entries.

  Args:
    leaves: by name; changed in place.
    expected: shapes of the model's leaves by name.
    grid: rows and columns of the model's patch tokens.

  Returns:
    Sentences on what was changed.

  Raises:
    ValueError: the number of entries fits no grid.
  """
  if "pos_embedding" not in leaves or "pos_embedding" not in expected:
    return []
  table, width = leaves["pos_embedding"], expected["pos_embedding"][2]
  if table.shape != (1, table.shape[1], width):
    raise ValueError(
      other_shape("pos_embedding", expected["pos_embedding"], table.shape)
    )
  tokens = [name for name in ("cls", "dist") if name in leaves]
  for name in tokens:
    if leaves[name].shape != (1, 1, width):
      raise ValueError(other_shape(name, (1, 1, width), leaves[name].shape))
  count, patches = table.shape[1], grid[0] * grid[1]
  if count > MOST_TOKENS + len(tokens):
    raise ValueError(
      f"leaf 'pos_embedding': expected at most {MOST_TOKENS:,} patch tokens, "
      f"got {count:,}"
    )
  prefixes = range(min(len(tokens), count - 1) + 1)
  found = [n for n in prefixes if count - n == patches] or [
    n for n in prefixes if math.isqrt(count - n) ** 2 == count - n
  ]
  if not found:
    raise ValueError(
      f"leaf 'pos_embedding': expected entries of {grid[0]}x{grid[1]} or of a "
      f"square grid and up to {len(tokens)} prefix tokens, got {count}; give "
      "the image size"
    )
  prefix, table = table[:, : found[0]], table[:, found[0] :]
  for i, name in enumerate(tokens[: found[0]]):
    leaves[name] = leaves[name] + prefix[:, i : i + 1]
  leaves["pos_embedding"] = table
  if table.shape[1] == patches:
    return []
  side = math.isqrt(table.shape[1])
  resized = posemb.resize_posemb(jnp.asarray(table), grid)
  leaves["pos_embedding"] = np.asarray(resized)
  return [
    f"position embeddings resized from {side}x{side} to {grid[0]}x{grid[1]} "
    "(anti-aliased bicubic)"
  ]


def other_shape(name: str, expected: Shape, found: Shape) -> str:
  """The sentence about a leaf that does not fit the model.

  Args:
    name: of the leaf.
    expected: its shape in the model.
    found: its shape in the file.
  """
  return f"leaf {name!r}: expected shape {expected}, got {found} in the file"
