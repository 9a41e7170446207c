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
    out: second output of the model, see `vit.ViT`.
    num_prefix_tokens: number of leading tokens to remove, as the model
      declares it.
    low_blocks: K block indices; negative ones count from the last.
    low_place: "+mlp" or "+sa" (residual stream), "mlp" or "sa" (a branch).
    high_block: block index of the deep map; unused with "encoded".
    high_place: as `low_place`, or "encoded" (after the final LayerNorm).

  Returns:
    low [B, K, N, D] and high [B, N, D].

  Raises:
    ValueError: a place is unknown, or the model has no such block.
  """
  if low_place == "encoded":
    raise ValueError(
      "expected low_place in a block, such as '+mlp', got 'encoded'"
    )
  low = [
    patches(out, block, low_place, num_prefix_tokens) for block in low_blocks
  ]
  return (
    jnp.stack(low, axis=1),
    patches(out, high_block, high_place, num_prefix_tokens),
  )


def after_blocks(
  out: Mapping[str, Any], depth: int, num_prefix_tokens: int
) -> list[jax.Array]:
  """The residual stream after each block, patches only, [B, N, D] each.

  Args:
    out: second output of the model, see `vit.ViT`.
    depth: number of blocks.
    num_prefix_tokens: number of leading tokens to remove.
  """
  return [patches(out, i, "+mlp", num_prefix_tokens) for i in range(depth)]


def patches(
  out: Mapping[str, Any], block: int, place: str, num_prefix_tokens: int
) -> jax.Array:
  """One token map [B, N, D] of a model's `out`, patches only.

  Args:
    out: second output of the model, see `vit.ViT`.
    block: block index; a negative one counts from the last, and "encoded" needs
      none.
    place: see `PLACES`.
    num_prefix_tokens: number of leading tokens to remove.

  Raises:
    ValueError: the place is unknown, or the model has no such block.
  """
  check_place(place)
  if place == "encoded":
    return out["encoded"][:, num_prefix_tokens:]
  depth = sum(key.startswith("block") for key in out["encoder"])
  if not -depth <= block < depth:
    raise ValueError(
      f"expected -{depth} <= block < {depth} (the model's depth), got {block}"
    )
  tokens = out["encoder"][f"block{block % depth:02d}"][place]
  return tokens[:, num_prefix_tokens:]


def check_place(place: str) -> None:
  """Checks the name of a place.

  Args:
    place: where in the model a token map is taken.

  Raises:
    ValueError: the place is unknown; the message names the nearest.
  """
  if place not in PLACES:
    near = difflib.get_close_matches(place, PLACES, n=1, cutoff=0.4)
    raise ValueError(
      f"expected a place among {', '.join(PLACES)}, got {place!r}"
      + (f"; the nearest is {near[0]!r}" if near else "")
    )


def random_mask(
  key: jax.Array, batch: int, num_tokens: int, ratio: float
) -> jax.Array:
  """Tokens to replace, drawn uniformly without replacement in each row.

  Args:
    key: typed PRNG key.
    batch: B.
    num_tokens: N.
    ratio: lambda in [0, 1).

  Returns:
    [B, N] bool, True where the token is *replaced*: exactly
    N - int(N (1 - ratio)) in each row, as in the authors' code.

  Raises:
    ValueError: the ratio is outside [0, 1).
  """
  if not 0 <= ratio < 1:
    raise ValueError(f"expected 0 <= ratio < 1, got {ratio}")
  kept = int(num_tokens * (1 - ratio))
  if kept == num_tokens:
    return jnp.zeros((batch, num_tokens), bool)
  # The low bits hold the token's index, so that no two draws are equal and one
  # sort gives the exact count.
  low = (1 << max(num_tokens - 1, 1).bit_length()) - 1
  draws = jax.random.bits(key, (batch, num_tokens), jnp.uint32)
  draws = (draws & jnp.uint32(~low & 0xFFFFFFFF)) | jnp.arange(
    num_tokens, dtype=jnp.uint32
  )
  return draws >= jnp.sort(draws, axis=-1)[:, kept, None]


def square_grid(num_tokens: int) -> tuple[int, int]:
  """Rows and columns of a square token map.

  Args:
    num_tokens: N.

  Raises:
    ValueError: N is not a square number.
  """
  side = math.isqrt(num_tokens)
  if side * side != num_tokens:
    raise ValueError(
      f"expected a square number of tokens, got {num_tokens}; pass "
      "grid=(rows, columns)"
    )
  return side, side


def resample(
  tokens: jax.Array, grid: tuple[int, int], new_grid: tuple[int, int]
) -> jax.Array:
  """Token maps resampled to another grid, bilinear and anti-aliased.

  Args:
    tokens: [..., N, D] with N = rows * columns of `grid`.
    grid: current rows and columns.
    new_grid: new rows and columns.

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
