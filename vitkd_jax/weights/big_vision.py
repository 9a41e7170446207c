"""big_vision's names, which are ours, through its history."""

from collections.abc import Iterable
import re

import numpy as np

NAME = "big_vision"

_MOST_BLOCKS = 1 << 10  # twice as many as a model may have

# flax numbered a block's layers across types before Linen.
_RENAMES = (
  (r"^Transformer/posembed_input/pos_embedding$", "pos_embedding"),
  (r"^Transformer/pos_embedding$", "pos_embedding"),
  (r"(encoderblock(_\d+)?)/LayerNorm_2/", r"\1/LayerNorm_1/"),
  (
    r"(encoderblock(_\d+)?)/MultiHeadDotProductAttention_1/",
    r"\1/MultiHeadDotProductAttention_0/",
  ),
  (r"(encoderblock(_\d+)?)/MlpBlock_3/", r"\1/MlpBlock_0/"),
  # The MAP head stood at the top level for a while.
  (
    r"^(probe$|MlpBlock_0/|MultiHeadDotProductAttention_0/|LayerNorm_0/)",
    r"MAPHead_0/\1",
  ),
)


def matches(names: Iterable[str]) -> bool:
  """Whether the names of a file are big_vision's or ours."""
  return any("Transformer/encoderblock" in name for name in names)


def clean(source: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The leaves under today's names, one entry a block.

  The parameters are taken out of a training state, older names are mended and
  scanned blocks are unstacked.
  """
  for prefix in ("params/", "opt/target/"):
    inside = {
      name.removeprefix(prefix): array
      for name, array in source.items()
      if name.startswith(prefix)
    }
    source = inside or source
  renamed = {}
  for name, array in source.items():
    for pattern, new in _RENAMES:
      name = re.sub(pattern, new, name)
    renamed[name] = array
  return unstack(renamed)


def unstack(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Leaves with one entry a block, from those of a scanned encoder.

  Raises:
    ValueError: a leaf has no axis of blocks.
  """
  out = {}
  for name, array in leaves.items():
    if "/encoderblock/" in name:
      if not array.ndim or len(array) > _MOST_BLOCKS:
        raise ValueError(
          f"leaf {name!r}: expected an entry for each of at most "
          f"{_MOST_BLOCKS} blocks, got shape {array.shape}"
        )
      for i, part in enumerate(array):
        out[name.replace("/encoderblock/", f"/encoderblock_{i}/")] = part
    else:
      out[name] = array
  return out


def stack(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Leaves of a scanned encoder, from those with one entry a block."""
  out, blocks = {}, {}
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
