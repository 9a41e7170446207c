"""Which token maps are compared, and which tokens are replaced."""

from collections.abc import Mapping, Sequence
import difflib
import math
from typing import Any

import einops
import jax
import jax.numpy as jnp

PLACES = ("+mlp", "mlp", "+sa", "sa", "encoded")


def select(
  out: Mapping[str, Any],
  *,
  num_prefix_tokens: int,
  low_blocks: Sequence[int] = (0, 1),
  low_place: str = "+mlp",
  high_block: int = -1,
  high_place: str = "encoded",
) -> tuple[jax.Array, jax.Array]:
  """The shallow and the deep token maps of a model's `out`, patches only.

  The defaults are the paper's (arXiv:2209.02432, section 3.2): the residual
  stream after blocks 0 and 1, and after the last block and final LayerNorm.

  Args:
    out: second result of the model, see `vit.ViT`.
    num_prefix_tokens: what the model declares; they are removed.
    low_blocks: K block numbers; negative ones count from the last.
    low_place: "+mlp" or "+sa" (residual stream), "mlp" or "sa" (a branch).
    high_block: block number of the deep map; unused with "encoded".
    high_place: as `low_place`, or "encoded".

  Returns:
    low [B, K, N, D] and high [B, N, D].

  Raises:
    ValueError: an unknown place, or a block that the model does not have.
  """
  depth = sum(key.startswith("block") for key in out["encoder"])

  def tokens(block, place):
    if place == "encoded":
      return out["encoded"][:, num_prefix_tokens:]
    if not -depth <= block < depth:
      raise ValueError(f"block {block} is not among the model's {depth} blocks")
    return out["encoder"][f"block{block % depth:02d}"][place][
      :, num_prefix_tokens:
    ]

  check_place(low_place)
  check_place(high_place)
  if low_place == "encoded":
    raise ValueError("low_place='encoded' has no blocks; use '+mlp'")
  low = jnp.stack([tokens(block, low_place) for block in low_blocks], axis=1)
  return low, tokens(high_block, high_place)


def check_place(place: str) -> None:
  """Raises ValueError, naming the nearest, for an unknown place."""
  if place not in PLACES:
    near = difflib.get_close_matches(place, PLACES, n=1, cutoff=0)[0]
    raise ValueError(
      f"unknown place {place!r} of a token map; the nearest is {near!r}, "
      f"all are {', '.join(PLACES)}"
    )


def random_mask(
  key: jax.Array, batch: int, num_tokens: int, ratio: float
) -> jax.Array:
  """Tokens to replace, uniform without replacement in each row.

  Args:
    key: typed PRNG key.
    batch: B.
    num_tokens: N.
    ratio: lambda in [0, 1).

  Returns:
    [B, N] bool, True where the token is *replaced*: exactly
    N - int(N (1 - ratio)) in each row, as in the authors' code.

  Raises:
    ValueError: a ratio outside [0, 1).
  """
  if not 0 <= ratio < 1:
    raise ValueError(f"ratio={ratio} is not in [0, 1)")
  kept = int(num_tokens * (1 - ratio))
  if kept == num_tokens:
    return jnp.zeros((batch, num_tokens), bool)
  # The low bits hold the token's number, so that no two draws are equal and
  # one sort gives the exact count.
  low = (1 << max(num_tokens - 1, 1).bit_length()) - 1
  draws = jax.random.bits(key, (batch, num_tokens), jnp.uint32)
  draws = (draws & jnp.uint32(~low & 0xFFFFFFFF)) | jnp.arange(
    num_tokens, dtype=jnp.uint32
  )
  return draws >= jnp.sort(draws, axis=-1)[:, kept, None]


def square_grid(num_tokens: int) -> tuple[int, int]:
  """Rows and columns of a square token map.

  Raises:
    ValueError: the number is no square.
  """
  side = math.isqrt(num_tokens)
  if side * side != num_tokens:
    raise ValueError(
      f"{num_tokens} tokens are no square grid; give the grid (rows, columns)"
    )
  return side, side


def resample(
  tokens: jax.Array, grid: tuple[int, int], new_grid: tuple[int, int]
) -> jax.Array:
  """Token maps on another grid, bilinear and anti-aliased.

  Args:
    tokens: [..., N, D] with N = rows * columns of `grid`.
    grid: rows and columns now.
    new_grid: rows and columns wanted.

  Returns:
    [..., new rows * new columns, D], dtype kept.
  """
  if tuple(grid) == tuple(new_grid):
    return tokens
  maps = einops.rearrange(
    tokens, "... (h w) d -> ... h w d", h=grid[0], w=grid[1]
  )
  shape = (*maps.shape[:-3], *new_grid, maps.shape[-1])
  maps = jax.image.resize(maps, shape, "linear", antialias=True)
  return einops.rearrange(maps, "... h w d -> ... (h w) d")
