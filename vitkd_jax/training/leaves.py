"""A student's leaves by name: which are frozen, and which layer each is of."""

from collections.abc import Collection, Mapping, Sequence
import re
from typing import Any

import jax
import numpy as np
import optax

from vitkd_jax import check
from vitkd_jax.distill.frozen import name_of

_STACKED = "Transformer/encoderblock/"
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")
# Leaves before the first block.
_STEM = ("embedding", "pos_embedding", "cls", "dist", "reg")


def frozen(
  shapes: Mapping[str, Any], patterns: Sequence[str], depth: int
) -> frozenset[str]:
  """The names of the leaves that a pattern matches.

  In a pattern "*" and "?" stand for anything within a part of the name, "**"
  for any number of parts. The blocks of a scanned student, too, are named one
  by one.

  Args:
    shapes: shapes of the student's leaves by name.
    patterns: each matches some leaf.
    depth: number of blocks.

  Raises:
    ValueError: a pattern matches nothing, or some of the blocks that are one
      leaf; or nothing is left to train.
  """
  found: set[str] = set()
  names = {name: _one_by_one(name, depth) for name in shapes}
  for pattern in patterns:
    known = [one for each in names.values() for one in each]
    matched = set(filter(re.compile(_regex(pattern)).fullmatch, known))
    if not matched:
      raise ValueError(
        f"config.student.freeze: {pattern!r} matches no leaf of the student; "
        f"{check.nearest(pattern, known)}"
      )
    found |= matched
  for name, each in names.items():
    if len(each) > len(found.intersection(each)) > 0:
      raise ValueError(
        f"config.student.freeze takes some of the blocks of {name!r}, which "
        "are one leaf in a scanned student; set config.student.scan=False, or "
        "freeze all of them"
      )
  chosen = frozenset(n for n, each in names.items() if found.issuperset(each))
  if len(chosen) == len(shapes):
    raise ValueError(
      "config.student.freeze leaves nothing of the student to train"
    )
  return chosen


def _one_by_one(name: str, depth: int) -> list[str]:
  """The names that a leaf has where the blocks are not scanned."""
  if not name.startswith(_STACKED):
    return [name]
  rest = name.removeprefix(_STACKED)
  return [f"Transformer/encoderblock_{i}/{rest}" for i in range(depth)]


def _regex(pattern: str) -> str:
  meanings = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
  parts = re.split(r"(\*\*|\*|\?)", pattern)
  return "".join(meanings.get(part, re.escape(part)) for part in parts)


def thawed(
  optimizer: optax.GradientTransformation, names: Collection[str]
) -> optax.GradientTransformation:
  """An optimiser that leaves these leaves of the student as they are.

  It keeps no state of them.

  Args:
    optimizer: of {"student": ..., "methods": ...}.
    names: from `frozen`.
  """
  if not names:
    return optimizer

  def labels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: (
        "frozen"
        if path[0].key == "student" and name_of(path[1:]) in names
        else "trained"
      ),
      params,
    )

  transforms = {"trained": optimizer, "frozen": optax.set_to_zero()}
  return optax.partition(transforms, labels)


def decayed(
  optimizer: optax.GradientTransformation, decay: float, depth: int
) -> optax.GradientTransformation:
  """An optimiser with a learning rate of its own for each layer of a student.

  The rate is multiplied by decay^(depth + 1 - layer), where the patch
  embedding, position embeddings and prefix tokens are of layer 0, block i is of
  layer i + 1, and what follows the blocks of layer depth + 1 (BEiT,
  arXiv:2106.08254; timm counts the last norm to the last block). That of the
  methods' parameters is not changed. Weight decay is multiplied with it.

  Args:
    optimizer: of {"student": ..., "methods": ...}.
    decay: in (0, 1]; 1 for one rate.
    depth: number of blocks.

  Raises:
    ValueError: the decay is out of its range.
  """
  if not 0 < decay <= 1:
    raise ValueError(f"expected 0 < optimizer layer_decay <= 1, got {decay}")
  if decay == 1:
    return optimizer

  def scale(path: Sequence[Any], update: jax.Array) -> jax.Array:
    if path[0].key != "student":
      return update
    layer = np.asarray(layers(name_of(path[1:]), depth))
    factor = np.float32(decay) ** (depth + 1 - layer).astype(np.float32)
    # Of stacked blocks, along the first axis.
    return update * factor.reshape(
      *layer.shape, *[1] * (update.ndim - layer.ndim)
    )

  by_layer = optax.stateless(
    lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)
  )
  return optax.chain(optimizer, by_layer)


def layers(name: str, depth: int) -> Any:
  """The layer of a leaf of a student; of stacked blocks, int [depth].

  Args:
    name: of the leaf.
    depth: number of blocks.
  """
  if match := _BLOCK.match(name):
    return int(match[1]) + 1
  if name.startswith(_STACKED):
    return np.arange(1, depth + 1)
  if name.startswith(
    "Transformer/widen/"
  ):  # it is the last block's first layer
    return depth
  return 0 if name.split("/")[0] in _STEM else depth + 1
