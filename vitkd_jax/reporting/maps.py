"""Figures of an inspection: what maps look like, beside a teacher's."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import figure as mpl_figure
from matplotlib import patches
import numpy as np

from vitkd_jax.reporting import plotting, scales

Found = Mapping[str, Any]


def cka(found: Found, theme: plotting.Theme) -> mpl_figure.Figure | None:
  """Alignment of the student's blocks with the teacher's; None without one.

  Args:
    found: from `diagnostics.running.inspect`.
    theme: colours and width.
  """
  if "cka" not in found:
    return None
  matrix = np.array(found["cka"])
  rows, columns = matrix.shape
  side = min(0.6, (theme.width - 0.7) / max(columns, 1))
  figure = mpl_figure.Figure(
    figsize=(theme.width, side * rows + 1.1), layout="constrained"
  )
  axes = figure.subplots()
  axes.grid(False)
  axes.spines[:].set_visible(False)
  room = side * 72  # points
  for (row, column), value in np.ndenumerate(matrix):
    # Not a picture of pixels, so that its colours are the page's.
    axes.add_patch(
      patches.Rectangle(
        (column - 0.5, row - 0.5), 1, 1, fc=theme.hue(0), ec=theme.paper,
        lw=0.8, alpha=float(np.clip(value, 0, 1)),
      )
    )  # fmt: skip
    if room > 16:
      axes.text(
        column, row, f"{value:.2f}", ha="center", va="center",
        fontsize=min(9, room / 3),
        color=theme.paper if value > 0.6 else theme.ink,
      )  # fmt: skip
  for row, values in enumerate(matrix):
    places = range(columns), [row] * columns
    axes.scatter(
      *places, c=values, visible=False, label=f"student's block {row}"
    )
  axes.set_xlim(-0.5, columns - 0.5)
  axes.set_ylim(rows - 0.5, -0.5)
  axes.set_aspect("equal", anchor="W")
  axes.set_xticks(range(columns))
  axes.set_yticks(range(rows))
  axes.set_xlabel("block of the teacher", loc="left")
  axes.set_ylabel("block of the student", loc="top")
  axes.set_title("alignment (CKA), 1 at most")
  return figure


def missing(found: Found, theme: plotting.Theme) -> mpl_figure.Figure | None:
  """What the student has of the teacher's blocks, and what it could hold.

  Args:
    found: from `diagnostics.running.inspect`.
    theme: colours and width.
  """
  pairs = found.get("pairs")
  if not pairs:
    return None
  blocks = np.array([pair["teacher"] for pair in pairs])
  curves = [
    plotting.Curve(
      name,
      theme.hue(index),
      "-",
      blocks,
      100 * np.array([[pair[key] for pair in pairs]]),
    )
    for index, (name, key) in enumerate(
      (("a linear layer makes", "explained"), ("the width holds", "possible"))
    )
  ]
  figure, (axes,) = plotting.panels(theme, 1, 3.0, [c.name for c in curves])
  plotting.draw(axes, curves)
  axes.fill_between(
    blocks, curves[0].mean, curves[1].mean, color=theme.hue(1), alpha=0.15, lw=0
  )
  axes.set_ylim(0, 102)
  axes.set_xlabel("block of the teacher")
  axes.set_title("share of the variance of the teacher's map, %")
  plotting.label(axes, curves, lambda c: theme.wrapped(c.name, 1))
  return figure


def spectra(found: Found, theme: plotting.Theme) -> mpl_figure.Figure | None:
  """Dimensions that hold 95 % of the energy, and tokens' norms, by block.

  Args:
    found: from `diagnostics.running.inspect`.
    theme: colours and width.
  """
  panels = []
  for title, of, log in (
    ("dimensions of 95 % of the energy", lambda b: b["dimensions"][1], False),
    ("the same, within an image", lambda b: b["image_dimensions"][1], False),
    ("norm of a token (log)", lambda b: b["norm"], True),
    (
      "share of the finest half of frequencies, %",
      lambda b: 100 * sum(b["frequencies"][len(b["frequencies"]) // 2 :]),
      False,
    ),
  ):
    curves = [
      plotting.Curve(
        name,
        theme.hue(index),
        "-",
        _depths(model["blocks"]),
        np.array([[float(of(block)) for block in model["blocks"]]]),
      )
      for index, (name, model) in enumerate(found["models"].items())
    ]
    panels.append((title, log, curves))
  figure, grid = plotting.panels(theme, 4, 2.2, list(found["models"]))
  for axes, (title, log, curves) in zip(grid, panels, strict=True):
    for curve in curves:
      axes.plot(
        curve.steps, curve.mean, color=curve.color, marker="o", ms=3,
        label=curve.name,
      )  # fmt: skip
    if log:
      scales.log_scale(axes, curves)
    else:
      axes.set_ylim(bottom=0)
    _say(axes, theme, title, "relative depth", curves)
  return figure


def frequencies(
  found: Found, theme: plotting.Theme
) -> mpl_figure.Figure | None:
  """Shares of the maps' energy by spatial frequency, for some blocks.

  Args:
    found: from `diagnostics.running.inspect`.
    theme: colours and width.
  """
  models = found["models"]
  figure, grid = plotting.panels(theme, len(models), 2.4, ["block 11"])
  for axes, (name, model) in zip(grid, models.items(), strict=True):
    blocks = model["blocks"]
    some = np.linspace(0, len(blocks) - 1, min(len(blocks), 4))
    curves = [
      plotting.Curve(
        f"block {block}",
        theme.hue(index),
        "-",
        np.arange(1, len(blocks[block]["frequencies"]) + 1),
        100 * np.array([blocks[block]["frequencies"]]),
      )
      for index, block in enumerate(some.round().astype(int))
    ]
    plotting.draw(axes, curves)
    scales.log_scale(axes, curves)
    title = f"share of the {name}'s energy, % (log)"
    _say(axes, theme, title, "cycles an image", curves)
  return figure


def attention(found: Found, theme: plotting.Theme) -> mpl_figure.Figure | None:
  """Mean distance and entropy of every head by block; None without heads.

  Args:
    found: from `diagnostics.running.inspect`.
    theme: colours and width.
  """
  models = {
    name: model["attention"]
    for name, model in found["models"].items()
    if "attention" in model
  }
  if not models:
    return None
  figure, grid = plotting.panels(theme, 2, 2.6, list(models))
  titles = {
    "distance": "attention distance, pixels",
    "entropy": "entropy, nats",
  }
  for axes, (key, title) in zip(grid, titles.items(), strict=True):
    curves = []
    for index, (name, blocks) in enumerate(models.items()):
      depth = _depths(blocks)
      heads = np.array([block[key] for block in blocks])
      axes.plot(
        np.repeat(depth, heads.shape[1]), heads.ravel(), "o", ms=3.5, mew=0,
        alpha=0.5, color=theme.hue(index), label=f"head of the {name}",
      )  # fmt: skip
      mean = heads.mean(1)[None]
      curves.append(plotting.Curve(name, theme.hue(index), "-", depth, mean))
      axes.plot(depth, mean[0], color=theme.hue(index), label=f"{name}, mean")
    axes.set_ylim(bottom=0)
    _say(axes, theme, title, "relative depth", curves)
  return figure


def reliability(
  found: Found, theme: plotting.Theme
) -> mpl_figure.Figure | None:
  """Accuracy by confidence.

  Args:
    found: from `diagnostics.running.inspect`.
    theme: colours and width.
  """
  models = found["models"]
  figure, (axes,) = plotting.panels(theme, 1, 3.2, ["teacher 12.3 %"])
  axes.plot([0, 100], [0, 100], color=theme.muted, lw=1)
  curves = []
  for index, (name, model) in enumerate(models.items()):
    shown = model["calibration"]
    points = [
      (100 * c, 100 * a, n)
      for c, a, n in zip(
        shown["confidence"], shown["accuracy"], shown["counts"], strict=True
      )
      if c is not None
    ]
    x, y, counts = np.array(points).T
    axes.plot(x, y, lw=1, alpha=0.6, color=theme.hue(index), label=name)
    # Bins of few images say little.
    sizes = 8 + 300 * counts / counts.sum()
    axes.scatter(
      x, y, sizes, color=theme.hue(index), lw=0, alpha=0.8, clip_on=False
    )
    label = f"{name} {100 * shown['error']:.1f} %"
    curves.append(plotting.Curve(label, theme.hue(index), "-", x, y[None]))
  axes.set_xlim(0, 100)
  axes.set_ylim(0, 100)
  axes.set_xlabel("confidence, %")
  axes.set_title("accuracy, %, and calibration error")
  plotting.label(axes, curves, lambda c: theme.wrapped(c.name, 1))
  return figure


def _depths(blocks: Sequence[Any]) -> np.ndarray:
  """The relative depth of each block, in which models compare."""
  return np.arange(1, len(blocks) + 1) / len(blocks)


def _say(
  axes: Any,
  theme: plotting.Theme,
  title: str,
  across: str,
  curves: Sequence[plotting.Curve],
) -> None:
  """Names a panel, its horizontal axis and its curves, two panels a row."""
  axes.set_title(title)
  axes.set_xlabel(across)
  plotting.label(axes, curves, lambda c: theme.wrapped(c.name, 2))
