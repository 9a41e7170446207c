"""Tables of leaves: our name, their name, and the shape between them.

One table serves both directions. Names hold `{i}` for the block. Ours are the
model's parameter names joined by "/".
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """How an array of ours lies in their file.

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
  """One leaf of theirs, and the leaf or leaves of ours that it holds.

  Attributes:
    theirs: its name.
    ours: our names; several lie joined along the first axis of theirs.
    layout: how one of ours lies in it.
  """

  theirs: str
  ours: tuple[str, ...]
  layout: Layout = SAME

  def at(self, block: int) -> "Rule":
    """The rule with `{i}` filled in."""
    return Rule(
      self.theirs.replace("{i}", str(block)),
      tuple(name.replace("{i}", str(block)) for name in self.ours),
      self.layout,
    )


def affine(theirs: str, ours: str, layout: Layout = DENSE) -> list[Rule]:
  """The rules of a linear layer's or a convolution's weight and bias."""
  return [
    Rule(f"{theirs}.weight", (f"{ours}/kernel",), layout),
    Rule(f"{theirs}.bias", (f"{ours}/bias",)),
  ]


def norm(theirs: str, ours: str) -> list[Rule]:
  """The rules of a LayerNorm."""
  return [
    Rule(f"{theirs}.weight", (f"{ours}/scale",)),
    Rule(f"{theirs}.bias", (f"{ours}/bias",)),
  ]


def attention_in(
  theirs: str, attention: str, names: Sequence[str]
) -> list[Rule]:
  """The rules of one matrix that makes query, key, value, or several."""
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
  """The rules of attention's output projection."""
  return affine(theirs, f"{attention}/out", HEADS_OUT)


BLOCK = "Transformer/encoderblock_{i}"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"


def expand(rules: Sequence[Rule], names) -> list[Rule]:
  """The rules with every block that occurs among our names."""
  blocks = [
    int(i) for i in re.findall(r"encoderblock_(\d+)/", "\n".join(names))
  ]
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
  wanted: Mapping[str, Shape],
  free: Callable[[str], bool],
) -> dict[str, np.ndarray]:
  """Our leaves from a file's; each of the file's is used exactly once.

  Args:
    rules: the table.
    source: the file's arrays.
    wanted: shapes of the model's leaves. A leaf that the model lacks comes
      back too where it needs no shape (a head, a token), for `fit` to judge.
    free: of our names, those whose sizes may differ from the wanted ones.

  Raises:
    ValueError: a leaf of the file that no rule takes, a leaf of the model
      that the file lacks, or one of another shape; the leaf is named.
  """
  left, leaves = dict(source), {}
  for rule in expand(rules, wanted):
    if rule.theirs not in left:
      continue
    known = all(name in wanted for name in rule.ours)
    if not known and (len(rule.ours) > 1 or rule.layout not in (SAME, DENSE)):
      continue  # stays left over
    array = left.pop(rule.theirs)
    if known and not any(map(free, rule.ours)):
      _check_shape(rule, array, wanted)
    parts = np.split(array, len(rule.ours)) if len(rule.ours) > 1 else [array]
    for name, part in zip(rule.ours, parts, strict=True):
      leaves[name] = rule.layout.to_ours(part, wanted.get(name, ()))
  missing = [
    rule.theirs
    for rule in expand(rules, wanted)
    if any(
      name in wanted and name not in leaves and not free(name)
      for name in rule.ours
    )
  ]
  check_used(missing, sorted(left))
  return leaves


def to_theirs(
  rules: Sequence[Rule], leaves: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """A file's leaves from ours; each of ours is used exactly once.

  Raises:
    ValueError: the format has no place for a leaf, which is named.
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
      f"the format has no place for {some(sorted(left))}; a format that takes "
      "every model is 'flat'"
    )
  return theirs


def _check_shape(rule, array, wanted):
  # Zero strides: the shape costs no memory until a reshape copies one leaf.
  parts = [
    rule.layout.to_theirs(np.broadcast_to(np.float32(0), wanted[name])).shape
    for name in rule.ours
  ]
  shape = (sum(part[0] for part in parts), *parts[0][1:]) if parts[0] else ()
  if array.shape != shape:
    raise ValueError(
      f"leaf {rule.theirs!r} ({', '.join(rule.ours)}) has shape "
      f"{array.shape} in the file, the model wants {shape}; "
      "name the variant that the weights were made for"
    )


def check_used(missing: Sequence[str], left: Sequence[str]) -> None:
  """Refuses a gap or a leftover between a file and a model.

  Raises:
    ValueError: either list is not empty.
  """
  parts = []
  if missing:
    parts.append(f"the file lacks {some(missing)}")
  if left:
    parts.append(f"the model has no place for {some(left)}")
  if parts:
    raise ValueError(
      f"the weights do not fit the model: {' and '.join(parts)}; "
      "name the variant that the weights were made for"
    )


def some(names: Sequence[str], limit: int = 3) -> str:
  """The first names, and how many there are beyond them."""
  shown = ", ".join(map(repr, names[:limit]))
  more = len(names) - limit
  return f"{shown} and {more} more" if more > 0 else shown
