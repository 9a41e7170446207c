"""Draws which folder of the package imports which: docs/import_graph.svg.

python -m docs.import_graph
"""

import ast
import pathlib

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

_PACKAGE = pathlib.Path(__file__).parents[1] / "vitkd_jax"
_OUT = pathlib.Path(__file__).parent / "import_graph.svg"
# From the top down, side by side what do not know each other.
_ROWS = (
  ("commands",),
  ("commandline",),
  ("reporting", "estimate"),
  ("training",),
  ("evaluation",),
  ("runs",),
  ("cluster", "weights"),
  ("distill", "data"),
  ("models", "remote", "check", "errors"),
)


def edges() -> dict[tuple[str, str], int]:
  """{(importer, imported): number of importing files} between folders."""
  found: dict[tuple[str, str], int] = {}
  for path in sorted(_PACKAGE.rglob("*.py")):
    own = _room(path.relative_to(_PACKAGE).with_suffix("").parts[0])
    tree = ast.parse(path.read_text())
    names = {
      f"{node.module}.{alias.name}".split(".")[1]
      for node in ast.walk(tree)
      if isinstance(node, ast.ImportFrom)
      and f"{node.module}".partition(".")[0] == "vitkd_jax"
      for alias in node.names
    }
    for name in {_room(name) for name in names} - {own, "commands"}:
      found[own, name] = found.get((own, name), 0) + 1
  return found


def _room(name):
  return name if any(name in row for row in _ROWS) else "commands"


def draw() -> None:
  """Writes the picture."""
  places = {
    name: ((i + 0.5) / len(row), -float(depth))
    for depth, row in enumerate(_ROWS)
    for i, name in enumerate(row)
  }
  matplotlib.rcParams["svg.hashsalt"] = "vitkd_jax"  # the same bytes each time
  figure, axes = plt.subplots(figsize=(9, 8), layout="constrained")
  for (start, end), number in sorted(edges().items()):
    bend = 0.12 if places[start][0] <= places[end][0] else -0.12
    axes.annotate(
      "",
      places[end],
      places[start],
      arrowprops=dict(
        arrowstyle="-|>",
        color="0.55",
        linewidth=0.5 + 0.25 * min(number, 10),
        shrinkA=16,
        shrinkB=16,
        connectionstyle=f"arc3,rad={bend}",
      ),
    )
  for name, place in places.items():
    axes.text(
      *place,
      name,
      ha="center",
      va="center",
      bbox=dict(boxstyle="round,pad=0.4", facecolor="white", edgecolor="0.2"),
    )
  axes.set(xlim=(0, 1), ylim=(0.5 - len(_ROWS), 0.5))
  axes.axis("off")
  figure.savefig(_OUT, metadata={"Date": None})


if __name__ == "__main__":
  draw()
