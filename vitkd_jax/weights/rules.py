"""Tables that map leaves between our names and shapes and other libraries'.

One table serves both directions. `{i}` in a name is the index of the block. Our
names are those of the model's parameters, with parts joined by "/".
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import re

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """The conversion of an array between our layout and theirs.

  Attributes:
    to_ours: (their array, our shape) -> our array.
    to_theirs: our array -> their array.
  """

  to_ours: Callable[[np.ndarray, Shape], np.ndarray]
  to_theirs: Callable[[np.ndarray], np.ndarray]


# Ours on the left, PyTorch's on the right. H heads of width E.
SAME = Layout(lambda a, _: a, lambda a: a)
DENSE = Layout(lambda a, _: a.T, lambda a: a.T)  # [in, out] | [out, in]
CONV = Layout(  # [h, w, in, out] | [out, in, h, w]
  lambda a, _: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)
)
HEADS_IN = Layout(  # [D, H, E] | [H E, D]
  lambda a, shape: a.T.reshape(shape), lambda a: a.reshape(len(a), -1).T
)
HEADS_BIAS = Layout(  # [H, E] | [H E]
  lambda a, shape: a.reshape(shape), lambda a: a.reshape(-1)
)
HEADS_OUT = Layout(  # [H, E, D] | [D, H E]
  lambda a, shape: a.T.reshape(shape),
  lambda a: a.reshape(-1, a.shape[-1]).T,
)


@dataclasses.dataclass(frozen=True)
class Rule:
  """One leaf of theirs, and our leaf or leaves that it contains.

  Attributes:
    theirs: its name.
    ours: our names; several are concatenated along the first axis of theirs.
    layout: conversion of each of ours.
  """

  theirs: str
  ours: tuple[str, ...]
  layout: Layout = SAME

  def at(self, block: int) -> "Rule":
    """The rule for one block.

    Args:
      block: index in place of `{i}`.
    """
    return Rule(
      self.theirs.replace("{i}", str(block)),
      tuple(name.replace("{i}", str(block)) for name in self.ours),
      self.layout,
    )


def affine(theirs: str, ours: str, layout: Layout = DENSE) -> list[Rule]:
  """The rules of the weight and bias of a linear layer or a convolution.

  Args:
    theirs: name of their module.
    ours: name of our module.
    layout: of the weight.
  """
  return [
    Rule(f"{theirs}.weight", (f"{ours}/kernel",), layout),
    Rule(f"{theirs}.bias", (f"{ours}/bias",)),
  ]


def norm(theirs: str, ours: str) -> list[Rule]:
  """The rules of a LayerNorm.

  Args:
    theirs: name of their module.
    ours: name of our module.
  """
  return [
    Rule(f"{theirs}.weight", (f"{ours}/scale",)),
    Rule(f"{theirs}.bias", (f"{ours}/bias",)),
  ]


def attention_in(
  theirs: str, attention: str, names: Sequence[str]
) -> list[Rule]:
  """The rules of a linear layer that computes query, key, value, or several.

  Args:
    theirs: name of their module.
    attention: name of our attention module.
    names: of "query", "key" and "value", those that it computes, in order.
  """
  return [
    Rule(
      f"{theirs}.weight",
      tuple(f"{attention}/{name}/kernel" for name in names),
      HEADS_IN,
    ),
    Rule(
      f"{theirs}.bias",
      tuple(f"{attention}/{name}/bias" for name in names),
      HEADS_BIAS,
    ),
  ]


def attention_out(theirs: str, attention: str) -> list[Rule]:
  """The rules of attention's output projection.

  Args:
    theirs: name of their module.
    attention: name of our attention module.
  """
  return affine(theirs, f"{attention}/out", HEADS_OUT)


BLOCK = "Transformer/encoderblock_{i}"
CLASS_BLOCK = "classblock_{i}"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"


def expand(rules: Sequence[Rule], names: Iterable[str]) -> list[Rule]:
  """The rules for every block that occurs in names.

  Args:
    rules: of a table.
    names: our names.
  """
  blocks = [int(i) for i in re.findall(r"block_(\d+)/", "\n".join(names))]
  depth = 1 + max(blocks, default=-1)
  return [
    filled
    for rule in rules
    for filled in (
      [rule.at(i) for i in range(depth)] if "{i}" in rule.theirs else [rule]
    )
  ]


def to_ours(
  rules: Sequence[Rule],
  source: Mapping[str, np.ndarray],
  expected: Mapping[str, Shape],
  free: Callable[[str], bool],
) -> dict[str, np.ndarray]:
  """Our leaves from a file's, each of which is used exactly once.

  Args:
    rules: the table.
    source: the file's arrays by name.
    expected: shapes of the model's leaves by name. Leaves that the model lacks
      are returned too if they need no shape (a head, a token), for `adapt`.
    free: whether the size of a leaf may differ from the model's.

  Raises:
    ValueError: a leaf is unknown, missing, or of another shape; it is named.
  """
  left, leaves = dict(source), {}
  for rule in expand(rules, expected):
    if rule.theirs not in left:
      continue
    known = all(name in expected for name in rule.ours)
    if not known and (len(rule.ours) > 1 or rule.layout not in (SAME, DENSE)):
      continue  # stays left over
    array = left.pop(rule.theirs)
    if known and not any(map(free, rule.ours)):
      _check_shape(rule, array, expected)
    parts = np.split(array, len(rule.ours)) if len(rule.ours) > 1 else [array]
    for name, part in zip(rule.ours, parts, strict=True):
      leaves[name] = rule.layout.to_ours(part, expected.get(name, ()))
  missing = [
    rule.theirs
    for rule in expand(rules, expected)
    if any(
      name in expected and name not in leaves and not free(name)
      for name in rule.ours
    )
  ]
  check_used(missing, sorted(left))
  return leaves


def to_theirs(
  rules: Sequence[Rule], leaves: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """A file's leaves from ours, each of which is used exactly once.

  Args:
    rules: the table.
    leaves: ours by name.

  Raises:
    ValueError: the format has no name for a leaf, which is named.
  """
  left, theirs = dict(leaves), {}
  for rule in expand(rules, leaves):
    if all(name in left for name in rule.ours):
      parts = [rule.layout.to_theirs(left.pop(name)) for name in rule.ours]
      theirs[rule.theirs] = (
        np.concatenate(parts) if len(parts) > 1 else parts[0]
      )
  if left:
    raise ValueError(
      f"the format has no name for {some(sorted(left))}; use format='flat', "
      "which takes every model"
    )
  return theirs


def _check_shape(
  rule: Rule, array: np.ndarray, expected: Mapping[str, Shape]
) -> None:
  # Zero strides: the shape costs no memory until a reshape copies one leaf.
  parts = [
    rule.layout.to_theirs(np.broadcast_to(np.float32(0), expected[name])).shape
    for name in rule.ours
  ]
  shape = (sum(part[0] for part in parts), *parts[0][1:]) if parts[0] else ()
  if array.shape != shape:
    raise ValueError(
      f"leaf {rule.theirs!r} ({', '.join(rule.ours)}): expected shape {shape}, "
      f"got {array.shape} in the file; give the variant that the weights are "
      "for"
    )


def check_used(missing: Sequence[str], left: Sequence[str]) -> None:
  """Refuses leaves that only the model or only the file has.

  Args:
    missing: names of the model's leaves that the file lacks.
    left: names of the file's leaves that the model lacks.

  Raises:
    ValueError: there are any.
  """
  parts = []
  if missing:
    parts.append(f"the file lacks {some(missing)}")
  if left:
    parts.append(f"the model lacks {some(left)}")
  if parts:
    raise ValueError(
      f"the weights do not fit the model: {' and '.join(parts)}; "
      "give the variant that the weights are for"
    )


def some(names: Sequence[str], limit: int = 3) -> str:
  """The first names, and the number of further ones.

  Args:
    names: of leaves.
    limit: number of names to show.
  """
  shown = ", ".join(map(repr, names[:limit]))
  more = len(names) - limit
  return f"{shown} and {more} more" if more > 0 else shown
