"""Makes leaves fit a model: position embeddings, heads, LayerScale."""

from collections.abc import Mapping, Sequence
import functools
import math
import types
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.models import posemb, vit
from vitkd_jax.weights import rules

Leaves = dict[str, np.ndarray]

_HEADS = ("head", "head_dist")
# A grid of 256x256, as of 4,096 px and patches of 16. Attention over more takes
# tens of gigabytes.
_MOST_TOKENS = 1 << 16


@functools.lru_cache(maxsize=16)  # tracing a deep model takes a second
def shapes(
  model: vit.ViT, image_size: tuple[int, int]
) -> Mapping[str, tuple[int, ...]]:
  """Shapes of a model's leaves by name, joined by "/"; nothing is computed."""
  rows, columns = model.grid(*image_size)
  if rows * columns > _MOST_TOKENS:
    raise ValueError(
      f"images of {image_size[0]}x{image_size[1]} pixels are {rows}x{columns} "
      f"tokens of this model, expected at most {_MOST_TOKENS:,}"
    )
  tree = jax.eval_shape(
    model.init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32),
  )["params"]
  return types.MappingProxyType(
    {
      name: leaf.shape
      for name, leaf in traverse_util.flatten_dict(tree, sep="/").items()
    }
  )


def image_size(
  leaves: Mapping[str, np.ndarray], model: vit.ViT, side: int
) -> tuple[int, int]:
  """Rows and columns in pixels of a model's images, by its own leaves.

  Args:
    leaves: the model's.
    model: whose patches they are.
    side: of the images of its variant; taken where it fits.

  Raises:
    ValueError: the position embeddings fit neither that nor a square.
  """
  if "pos_embedding" not in leaves:
    return side, side
  count = leaves["pos_embedding"].shape[1]
  if math.prod(model.grid(side, side)) == count:
    return side, side
  root = math.isqrt(count)
  if root * root != count:
    raise ValueError(
      f"position embeddings of {count} tokens are not a square grid; give "
      "image_size=(rows, columns)"
    )
  return model.patch_size[0] * root, model.patch_size[1] * root


def is_free(name: str) -> bool:
  """Whether a leaf's size may differ from the model's until it is fitted."""
  return name == "pos_embedding" or name.split("/")[0] in _HEADS


# Axes of the leaves that `is_free`, and of those that `position` adds to.
_AXES = {
  "pos_embedding": 3,
  "cls": 3,
  "dist": 3,
  **{f"{name}/kernel": 2 for name in _HEADS},
  **{f"{name}/bias": 1 for name in _HEADS},
}


def check_axes(leaves: Leaves) -> None:
  """Refuses leaves that could not be fitted to any model.

  Raises:
    ValueError: one has another number of axes.
  """
  for name, axes in _AXES.items():
    if name in leaves and leaves[name].ndim != axes:
      raise ValueError(
        f"leaf {name!r}: expected {axes} axes, got shape {leaves[name].shape}"
      )


def position(
  leaves: Leaves, wanted: Mapping[str, Any], grid: tuple[int, int]
) -> list[str]:
  """Splits prefix entries off the position embedding and resizes the rest.

  A prefix token's entry is added to the token (DeiT, ViT); DeiT III and
  big_vision have none.

  Args:
    leaves: changed in place.
    wanted: shapes of the model's leaves.
    grid: rows and columns of the model's patch tokens.

  Returns:
    What was done, in sentences.

  Raises:
    ValueError: the number of entries fits no grid.
  """
  if "pos_embedding" not in leaves or "pos_embedding" not in wanted:
    return []
  table, width = leaves["pos_embedding"], wanted["pos_embedding"][2]
  if table.shape != (1, table.shape[1], width):
    raise ValueError(
      f"leaf 'pos_embedding' has shape {table.shape} in the file, the model "
      f"wants {wanted['pos_embedding']}"
    )
  tokens = [name for name in ("cls", "dist") if name in leaves]
  for name in tokens:
    if leaves[name].shape != (1, 1, width):
      raise ValueError(
        f"leaf {name!r} has shape {leaves[name].shape} in the file, the model "
        f"wants {(1, 1, width)}"
      )
  count, patches = table.shape[1], grid[0] * grid[1]
  prefixes = range(min(len(tokens), count - 1) + 1)
  found = [n for n in prefixes if count - n == patches] or [
    n for n in prefixes if math.isqrt(count - n) ** 2 == count - n
  ]
  if not found:
    raise ValueError(
      f"leaf 'pos_embedding' has {count} entries, which with up to "
      f"{len(tokens)} prefix tokens fit neither the grid "
      f"{grid[0]}x{grid[1]} nor a square; name the image size"
    )
  prefix, table = table[:, : found[0]], table[:, found[0] :]
  for i, name in enumerate(tokens[: found[0]]):
    leaves[name] = leaves[name] + prefix[:, i : i + 1]
  leaves["pos_embedding"] = table
  if table.shape[1] == patches:
    return []
  side = math.isqrt(table.shape[1])
  leaves["pos_embedding"] = np.asarray(posemb.resize_posemb(table, grid))
  return [
    f"position embeddings resized from {side}x{side} to {grid[0]}x{grid[1]} "
    "(anti-aliased bicubic)"
  ]


def head(
  leaves: Leaves,
  wanted: Mapping[str, tuple[int, ...]],
  policy: str,
  classes: Sequence[int] | None,
) -> list[str]:
  """Keeps, drops, cuts or renews the heads, in place.

  Args:
    leaves: changed in place.
    wanted: shapes of the model's leaves; no head means that it is dropped.
    policy: "keep" or "init" (normal, standard deviation 0.02; bias zero).
    classes: of the file's classes, those that the model's are, in order.

  Returns:
    What was done, in sentences.

  Raises:
    ValueError: class counts differ and nothing says what to do.
  """
  notes = []
  if not any(name.startswith(_HEADS) for name in wanted):
    for name in [n for n in leaves if n.startswith("pre_logits/")]:
      if name not in wanted:
        notes.append(f"{name} dropped, as the model has no head")
        del leaves[name]
  for name in _HEADS:
    kernel, bias = f"{name}/kernel", f"{name}/bias"
    if kernel not in wanted:
      if kernel in leaves and "head/kernel" not in wanted:
        count = leaves[kernel].shape[1]
        notes.append(f"{name} of {count} classes dropped")
        del leaves[kernel]
        leaves.pop(bias, None)
      continue
    if policy == "init":
      rng = np.random.default_rng(0)
      draw = rng.normal(0, 0.02, wanted[kernel])
      leaves[kernel] = draw.astype(np.float32)
      leaves[bias] = np.zeros(wanted[bias], np.float32)
      notes.append(f"{name} initialised anew for {wanted[bias][0]} classes")
      continue
    if kernel not in leaves or bias not in leaves:
      raise ValueError(
        f"the file has no {name!r}; num_classes=None loads the features "
        "alone, head='init' draws a new head"
      )
    count = leaves[bias].shape[0]
    if classes is not None:
      if leaves[kernel].shape[1] != count:
        raise ValueError(
          f"leaf '{kernel}' has shape {leaves[kernel].shape}, '{bias}' has "
          f"{leaves[bias].shape}: expected a column for each class"
        )
      if not all(0 <= i < count for i in classes):
        raise ValueError(f"classes: wanted indices below {count}")
      leaves[kernel] = leaves[kernel][:, list(classes)]
      leaves[bias] = leaves[bias][list(classes)]
      notes.append(f"{name} cut from {count} to {len(classes)} classes")
    if leaves[kernel].shape != wanted[kernel]:
      raise ValueError(
        f"leaf '{kernel}' has shape {leaves[kernel].shape}, the model of "
        f"{wanted[bias][0]} classes wants {wanted[kernel]}; give num_classes "
        "of the file, the classes to keep, or head='init'"
      )
  return notes


def check(leaves: Leaves, wanted: Mapping[str, tuple[int, ...]]) -> None:
  """Refuses leaves that are not exactly the model's.

  Raises:
    ValueError: a gap, a leftover, or another shape; the leaf is named.
  """
  rules.check_used(
    sorted(set(wanted) - set(leaves)), sorted(set(leaves) - set(wanted))
  )
  for name, shape in wanted.items():
    if leaves[name].shape != shape:
      raise ValueError(
        f"leaf {name!r} has shape {leaves[name].shape} in the file, the model "
        f"wants {shape}"
      )


def numbers(leaves: Leaves) -> Leaves:
  """The leaves as float32, as every model has them.

  Raises:
    ValueError: one is not floating point, or holds NaN or infinity.
  """
  out = {}
  for name, leaf in leaves.items():
    if leaf.dtype.kind in "iub":
      raise ValueError(
        f"leaf {name!r}: expected floating point, got {leaf.dtype}; integers "
        "are a quantised model's, whose scales are not read"
      )
    out[name] = np.asarray(leaf, np.float32)
    bad = leaf.size - np.count_nonzero(np.isfinite(out[name]))
    if bad:
      raise ValueError(
        f"leaf {name!r}: expected finite numbers, got NaN or infinity in "
        f"{bad:,} of {leaf.size:,}; the training that wrote it diverged, or "
        "its numbers are beyond float32: take an earlier checkpoint"
      )
  return out
