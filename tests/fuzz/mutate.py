"""Seeded damage: to bytes, and to trees as JSON has them."""

import copy
import json
import random
from typing import Any

# Where a value of the file is expected, one of these comes instead.
ODD_VALUES = (
  None,
  True,
  False,
  0,
  1,
  -1,
  3,
  0.5,
  -0.0,
  1e308,
  float("nan"),
  float("inf"),
  10**6,
  2**31,
  2**63,
  10**400,
  "",
  "x",
  "7",
  "\0",
  "\ud800",
  "../../etc/passwd",
  "[/b]$\\foo$\x1b[31m",
  "å" * 5000,
  [],
  [1],
  [[1, 2], [3]],
  [10**5, 10**5],
  [None],
  {},
  {"a": {"b": []}},
  {"": 0},
)
_NESTED = "__nested__"  # json.dumps cannot write what is nested this deep
_DEPTH = 100_000


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
  """The bytes with one to three kinds of damage, in places that rng draws."""
  damaged = bytearray(data)
  for _ in range(rng.randint(1, 3)):
    start = rng.randrange(len(damaged) + 1)
    if rng.random() < 0.5:  # headers are at the ends, and matter most
      start = min(start, rng.randrange(256))
    stop = min(len(damaged), start + rng.choice((1, 4, 16, 256, 4096)))
    piece = bytes(damaged[start:stop])
    match rng.choice(
      ("flip", "truncate", "duplicate", "zero", "splice", "remove")
    ):
      case "flip":
        for i in range(start, min(stop, start + 8)):
          damaged[i] ^= 1 << rng.randrange(8)
      case "truncate":
        del damaged[start:]
      case "duplicate":
        damaged[start:start] = piece
      case "zero":
        damaged[start:stop] = bytes(len(piece))
      case "splice":
        other = rng.randrange(len(damaged) + 1)
        damaged[start:stop] = damaged[other : other + len(piece)]
      case "remove":
        del damaged[start:stop]
  return bytes(damaged)


def mutated_tree(tree: Any, rng: random.Random) -> Any:
  """The tree with one to three of its nodes changed; the tree itself stays."""
  tree = [copy.deepcopy(tree)]  # a parent for the root
  for _ in range(rng.randint(1, 3)):
    places = list(_places(tree))
    parent, key = rng.choice(places)
    value = parent[key]
    match rng.choice(("replace", "replace", "nest", "delete", "scale", "swap")):
      case "delete" if parent is not tree:
        del parent[key]
      case "nest":
        parent[key] = rng.choice(([value], {"x": value}, _NESTED))
      case "scale" if isinstance(value, int | float):
        try:
          parent[key] = value * rng.choice((-1, 2, 0.5, 10**3, 10**9))
        except OverflowError:  # an odd value of before
          parent[key] = -1
      case "swap":
        other, name = rng.choice(places)
        parent[key] = copy.deepcopy(other[name])
      case _:
        parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
  return tree[0]


def mutated_json(tree: Any, rng: random.Random) -> str:
  """As `mutated_tree`, written as JSON; sometimes nested too deep to parse."""
  text = json.dumps(mutated_tree(tree, rng))
  deep = "[" * _DEPTH + "]" * _DEPTH
  return text.replace(json.dumps(_NESTED), deep)


def _places(node):
  """(container, key) of every node below this one."""
  items = node.items() if isinstance(node, dict) else enumerate(node)
  for key, value in list(items):
    yield node, key
    if isinstance(value, dict | list):
      yield from _places(value)
