"""Draws which folder of the package imports which: docs/import_graph.svg.

python -m docs.import_graph
"""

import ast
import collections
from collections.abc import Iterator
import pathlib

import numpy as np

PACKAGE = pathlib.Path(__file__).parents[1] / "vitkd_jax"
_OUT = pathlib.Path(__file__).parent / "import_graph.svg"
# Folders and single files from the top down: each may import those below it,
# and itself. The commands stand above them all, imported by nobody.
LAYERS = (
  "commandline",
  "labs",
  "reporting",
  "estimate",
  "training",
  "diagnostics",
  "evaluation",
  "runs",
  "cluster",
  "weights",
  "distill",
  "data",
  "models",
  "remote",
  "check",
  "errors",
)


def imports(path: pathlib.Path) -> Iterator[str]:
  """Dotted names that a file imports, at the top or within a function.

  Args:
    path: of the file.
  """
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: pathlib.Path) -> Iterator[list[str]]:
  """Parts of the package that a file imports, as ["data", "preprocess"].

  Args:
    path: of the file.
  """
  for name in imports(path):
    first, *rest = name.split(".")
    if first == "vitkd_jax" and rest:
      yield rest


def part(path: pathlib.Path) -> str:
  """The folder or file of the package's first level.

  Args:
    path: of a file in the package.
  """
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


def counts(rooms: tuple[str, ...]) -> np.ndarray:
  """Files of each room (rows) that import each other room (columns).

  Args:
    rooms: "commands", then the layers.
  """
  found: collections.Counter = collections.Counter()
  for path in sorted(PACKAGE.rglob("*.py")):
    own = part(path) if part(path) in rooms else "commands"
    names = {name[0] for name in ours(path)} & set(rooms)
    found.update((own, name) for name in names - {own})
  return np.array([[found[a, b] for b in rooms] for a in rooms])


def draw() -> None:
  """Writes the picture."""
  # Not above: the tests read the layers alone.
  import matplotlib

  matplotlib.use("svg")
  import matplotlib.pyplot as plt

  rooms = ("commands", *LAYERS)
  table, size = counts(rooms), len(rooms)
  matplotlib.rcParams["svg.hashsalt"] = "vitkd_jax"  # the same bytes each time
  figure, axes = plt.subplots(figsize=(8, 7), layout="constrained")
  axes.imshow(
    np.ma.masked_equal(table, 0), cmap="Blues", vmin=-5, vmax=table.max() * 1.5
  )
  for row, column in zip(*np.nonzero(table), strict=True):
    axes.text(column, row, table[row, column], ha="center", va="center")
  lower = np.tril(np.ones_like(table))
  axes.imshow(
    np.ma.masked_equal(lower, 0), cmap="Greys", vmin=0, vmax=12, zorder=0
  )
  axes.set_xticks(range(size), rooms, rotation=60, ha="left")
  axes.set_yticks(range(size), rooms)
  axes.xaxis.tick_top()
  axes.set_xlabel("is imported")
  axes.set_ylabel("imports")
  axes.xaxis.set_label_position("top")
  axes.tick_params(length=0)
  figure.savefig(_OUT, metadata={"Date": None})
  plt.close(figure)


if __name__ == "__main__":
  draw()
