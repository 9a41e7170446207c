"""Adapts leaves to a model: position embeddings and heads."""

from collections.abc import Mapping, Sequence
import functools
import math
import types

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.models import backbones, fitting
from vitkd_jax.weights import rules

Leaves = fitting.Leaves

_HEADS = ("head", "head_dist")


@functools.lru_cache(maxsize=16)  # tracing a deep model takes a second
def shapes(
  model: backbones.Named, image_size: tuple[int, int]
) -> Mapping[str, rules.Shape]:
  """Shapes of a model's leaves by name, with parts joined by "/".

  Args:
    model: any.
    image_size: rows and columns in pixels.

  Raises:
    ValueError: images of that size have too many tokens.
  """
  rows, columns = model.grid(*image_size)
  if rows * columns > fitting.MOST_TOKENS:
    raise ValueError(
      f"expected at most {fitting.MOST_TOKENS:,} patch tokens, got {rows}x"
      f"{columns} from images of {image_size[0]}x{image_size[1]} pixels"
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
  leaves: Mapping[str, np.ndarray], model: backbones.Named, side: int
) -> tuple[int, int]:
  """Image size in pixels, rows and columns, that a model's leaves are for.

  Args:
    leaves: of the model.
    model: for the size of its patches.
    side: image size of its variant in pixels; preferred if it fits.

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
      f"expected position embeddings of a square grid, got {count} tokens; "
      "give image_size=(rows, columns)"
    )
  return model.patch_size[0] * root, model.patch_size[1] * root


def is_free(name: str) -> bool:
  """Whether the size of a leaf may differ from the model's before adaptation.

  Args:
    name: of the leaf.
  """
  return name == "pos_embedding" or name.split("/")[0] in _HEADS


# Number of axes of the leaves that are free, and of those that `position`
# changes.
_AXES = {
  "pos_embedding": 3,
  "cls": 3,
  "dist": 3,
  **{f"{name}/kernel": 2 for name in _HEADS},
  **{f"{name}/bias": 1 for name in _HEADS},
}


def check_axes(leaves: Leaves) -> None:
  """Refuses leaves that cannot be adapted to any model.

  Args:
    leaves: by name.

  Raises:
    ValueError: a leaf has the wrong number of axes.
  """
  for name, axes in _AXES.items():
    if name in leaves and leaves[name].ndim != axes:
      raise ValueError(
        f"leaf {name!r}: expected {axes} axes, got shape {leaves[name].shape}"
      )


def head(
  leaves: Leaves,
  expected: Mapping[str, rules.Shape],
  policy: str,
  classes: Sequence[int] | None,
) -> list[str]:
  """Keeps, drops, cuts or initialises the heads.

  Args:
    leaves: by name; changed in place.
    expected: shapes of the model's leaves by name; heads that are not among
      them are dropped.
    policy: "keep" or "init" (normal, standard deviation 0.02; bias zero).
    classes: indices of the file's classes to keep, in the model's order; None
      for all.

  Returns:
    Sentences on what was changed.

  Raises:
    ValueError: the numbers of classes differ, and no argument resolves it.
  """
  notes = []
  if not any(name.startswith(_HEADS) for name in expected):
    for name in [n for n in leaves if n.startswith("pre_logits/")]:
      if name not in expected:
        notes.append(f"{name} dropped, as the model has no head")
        del leaves[name]
  for name in _HEADS:
    kernel, bias = f"{name}/kernel", f"{name}/bias"
    if kernel not in expected:
      if kernel in leaves and "head/kernel" not in expected:
        count = leaves[kernel].shape[1]
        notes.append(f"{name} of {count} classes dropped")
        del leaves[kernel]
        leaves.pop(bias, None)
      continue
    if policy == "init":
      rng = np.random.default_rng(0)
      draw = rng.normal(0, 0.02, expected[kernel])
      leaves[kernel] = draw.astype(np.float32)
      leaves[bias] = np.zeros(expected[bias], np.float32)
      notes.append(f"new {name} initialised for {expected[bias][0]} classes")
      continue
    if kernel not in leaves or bias not in leaves:
      raise ValueError(
        f"the file has no {name!r}; give num_classes=None to load features "
        "alone, or head='init' for a new head"
      )
    count = leaves[bias].shape[0]
    if classes is not None:
      if leaves[kernel].shape[1] != count:
        raise ValueError(
          f"expected a column of leaf '{kernel}' for each class, got shapes "
          f"{leaves[kernel].shape} and {leaves[bias].shape} of '{bias}'"
        )
      if len(set(classes) & set(range(count))) < len(classes):
        raise ValueError(
          f"expected distinct classes in [0, {count}), got {list(classes)[:20]}"
        )
      leaves[kernel] = leaves[kernel][:, list(classes)]
      leaves[bias] = leaves[bias][list(classes)]
      notes.append(f"{name} cut from {count} to {len(classes)} classes")
    if leaves[kernel].shape != expected[kernel]:
      raise ValueError(
        f"leaf '{kernel}': expected shape {expected[kernel]} for "
        f"{expected[bias][0]} classes, got {leaves[kernel].shape} in the file; "
        "give num_classes of the file, the classes to keep, or head='init'"
      )
  return notes


def check(leaves: Leaves, expected: Mapping[str, rules.Shape]) -> None:
  """Refuses leaves that are not exactly the model's.

  Args:
    leaves: by name.
    expected: shapes of the model's leaves by name.

  Raises:
    ValueError: a leaf is missing, unknown, or of another shape; it is named.
  """
  rules.check_used(
    sorted(set(expected) - set(leaves)), sorted(set(leaves) - set(expected))
  )
  for name, shape in expected.items():
    if leaves[name].shape != shape:
      raise ValueError(fitting.other_shape(name, shape, leaves[name].shape))


def numbers(leaves: Leaves) -> Leaves:
  """The leaves as float32, the dtype of all our parameters.

  Args:
    leaves: by name.

  Raises:
    ValueError: a leaf is not floating point, or has NaN or infinity.
  """
  out = {}
  for name, leaf in leaves.items():
    if leaf.dtype.kind in "iub":
      raise ValueError(
        f"leaf {name!r}: expected floating point, got {leaf.dtype}; quantised "
        "models are not supported"
      )
    out[name] = np.asarray(leaf, np.float32)
    bad = leaf.size - np.count_nonzero(np.isfinite(out[name]))
    if bad:
      raise ValueError(
        f"leaf {name!r}: expected finite numbers, got NaN or infinity in "
        f"{bad:,} of {leaf.size:,}; its training diverged, or its numbers "
        "overflow float32: use an earlier checkpoint"
      )
  return out
