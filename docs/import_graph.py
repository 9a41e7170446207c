"""Draws which folder of the package imports which: docs/import_graph.svg.

python -m docs.import_graph
"""

import ast
import collections
import pathlib

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

_PACKAGE = pathlib.Path(__file__).parents[1] / "vitkd_jax"
_OUT = pathlib.Path(__file__).parent / "import_graph.svg"
# From the top down; what has no name here is a command.
_ROOMS = (
  "commands",
  "commandline",
  "reporting",
  "estimate",
  "training",
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


def counts() -> np.ndarray:
  """Files of each folder (rows) that import each other folder (columns)."""
  found: collections.Counter = collections.Counter()
  for path in sorted(_PACKAGE.rglob("*.py")):
    own = _room(path.relative_to(_PACKAGE).with_suffix("").parts[0])
    names = {
      _room(f"{node.module}.{alias.name}".split(".")[1])
      for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, ast.ImportFrom)
      and f"{node.module}".partition(".")[0] == "vitkd_jax"
      for alias in node.names
    }
    found.update((own, name) for name in names - {own, "commands"})
  return np.array([[found[a, b] for b in _ROOMS] for a in _ROOMS])


def _room(name):
  return name if name in _ROOMS else "commands"


def draw() -> None:
  """Writes the picture."""
  table, size = counts(), len(_ROOMS)
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
  axes.set_xticks(range(size), _ROOMS, rotation=60, ha="left")
  axes.set_yticks(range(size), _ROOMS)
  axes.xaxis.tick_top()
  axes.set_xlabel("is imported")
  axes.set_ylabel("imports")
  axes.xaxis.set_label_position("top")
  axes.tick_params(length=0)
  figure.savefig(_OUT, metadata={"Date": None})
  plt.close(figure)


if __name__ == "__main__":
  draw()
