"""What an inspection shows: pictures, tables and a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colors as mpl_colors
from matplotlib import figure as mpl_figure
import numpy as np

from vitkd_jax.reporting import plotting, scales, tables

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
  side = min(0.5, 0.8 * theme.width / max(columns, 1))
  figure = mpl_figure.Figure(
    figsize=(theme.width, side * rows + 1.4), layout="constrained"
  )
  axes = figure.subplots()
  shades = mpl_colors.LinearSegmentedColormap.from_list(
    "", [theme.paper, theme.hue(0)]
  )
  axes.imshow(matrix, cmap=shades, vmin=0, vmax=1)
  axes.grid(False)
  axes.spines[:].set_visible(False)
  for (row, column), value in np.ndenumerate(matrix):
    axes.text(
      column, row, f"{value:.2f}", ha="center", va="center",
      fontsize=8 if columns <= 12 else 5,
      color=theme.paper if value > 0.6 else theme.ink,
    )  # fmt: skip
  axes.set_xticks(range(columns))
  axes.set_yticks(range(rows))
  axes.set_xlabel("block of the teacher")
  axes.set_ylabel("block of the student")
  axes.set_title("alignment (CKA); 1 is the same up to rotation and scale")
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
  axes.set_xlabel("block of the teacher, with the student's at its depth")
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
        # By relative depth, as models differ in it.
        np.arange(1, len(model["blocks"]) + 1) / len(model["blocks"]),
        np.array([[float(of(block)) for block in model["blocks"]]]),
      )
      for index, (name, model) in enumerate(found["models"].items())
    ]
    panels.append((title, log, curves))
  figure, grid = plotting.panels(theme, 4, 2.2, list(found["models"]))
  for axes, (title, log, curves) in zip(grid, panels, strict=True):
    for curve in curves:
      axes.plot(curve.steps, curve.mean, color=curve.color, marker="o", ms=3)
    if log:
      scales.log_scale(axes, curves)
    else:
      axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.set_xlabel("relative depth")
    plotting.label(axes, curves, lambda c: theme.wrapped(c.name, 2))
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
      depth = np.arange(1, len(blocks) + 1) / len(blocks)
      heads = np.array([block[key] for block in blocks])
      axes.plot(
        np.repeat(depth, heads.shape[1]), heads.ravel(), "o", ms=3.5, mew=0,
        alpha=0.5, color=theme.hue(index),
      )  # fmt: skip
      mean = heads.mean(1)[None]
      curves.append(plotting.Curve(name, theme.hue(index), "-", depth, mean))
      axes.plot(depth, mean[0], color=theme.hue(index))
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.set_xlabel("relative depth")
    plotting.label(axes, curves, lambda c: theme.wrapped(c.name, 2))
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
      (100 * c, 100 * a)
      for c, a in zip(shown["confidence"], shown["accuracy"], strict=True)
      if c is not None
    ]
    x, y = np.array(points).T
    axes.plot(x, y, "-o", ms=4, color=theme.hue(index))
    label = f"{name} {100 * shown['error']:.1f} %"
    curves.append(plotting.Curve(label, theme.hue(index), "-", x, y[None]))
  axes.set_xlim(0, 100)
  axes.set_ylim(0, 100)
  axes.set_xlabel("confidence, %")
  axes.set_title("accuracy, %; beside a name its expected calibration error")
  plotting.label(axes, curves, lambda c: theme.wrapped(c.name, 1))
  return figure


def samples(found: Found, theme: plotting.Theme) -> mpl_figure.Figure | None:
  """Images, where the models look, and what the student lacks there.

  Args:
    found: from `diagnostics.running.inspect`.
    theme: colours and width.
  """
  shown = found["gallery"]
  rows = [
    (f"{name} looks at", x, 1.0) for name, x in shown["attention"].items()
  ]
  if "lacking" in shown:
    says = f"lacks of block {shown['teacher']}"
    rows.append((says, shown["lacking"], float(shown["lacking"].max())))
  if not rows:
    return None
  images = shown["image"][: 3 if theme.narrow else None]
  height, width = images.shape[1:3]
  side = theme.width / (len(images) + 0.3) * height / width
  figure = mpl_figure.Figure(
    figsize=(theme.width, side * (1 + len(rows))), layout="constrained"
  )
  grid = figure.subplots(1 + len(rows), len(images), squeeze=False)
  shades = mpl_colors.LinearSegmentedColormap.from_list(
    "", [(0, 0, 0, 0.75), (*mpl_colors.to_rgb(theme.hue(1)), 0.75)]
  )
  extent = (0, width, height, 0)
  for cells, row in zip(grid, [("image", None, 0.0), *rows], strict=True):
    title, maps, most = row
    cells[0].set_ylabel(title)
    for index, axes in enumerate(cells):
      axes.imshow(images[index], extent=extent)
      axes.set_xticks([])
      axes.set_yticks([])
      axes.spines[:].set_visible(False)
      if maps is not None:
        axes.imshow(
          maps[index], cmap=shades, vmin=0, vmax=most, extent=extent,
          interpolation="bilinear",
        )  # fmt: skip
  return figure


PICTURES = {
  "cka": ("Which blocks are alike", cka),
  "missing": ("What the student lacks", missing),
  "spectra": ("Dimensions, norms and frequencies", spectra),
  "attention": ("Where the heads look", attention),
  "reliability": ("What confidence means", reliability),
  "samples": ("Sample images: what features are made of", samples),
}


def make_tables(found: Found) -> list[tables.Table]:
  """The tables of an inspection.

  Args:
    found: from `diagnostics.running.inspect`.
  """
  made = []
  if pairs := found.get("pairs"):
    made.append(
      tables.Table(
        "What the student lacks",
        ("teacher's block", "student's block", "CKA", "explained", "possible",
         "missing"),
        [
          (
            str(pair["teacher"]),
            str(pair["student"]),
            f"{pair['cka']:.3f}",
            f"{pair['explained']:.1%}",
            f"{pair['possible']:.1%}",
            f"{pair['missing']:.1%}",
          )
          for pair in pairs
        ],
        (
          "Explained: share of the variance of the teacher's map that a linear "
          "layer makes of the student's. Possible: the share that any map of "
          "the student's width could hold. Missing: their difference.",
        ),
      )
    )  # fmt: skip
  for name, model in found["models"].items():
    made.append(_blocks(name, model))
  return made


def _blocks(name: str, model: Found) -> tables.Table:
  return tables.Table(
    f"Maps of the {name}, {model['width']} wide",
    ("block", "90 %", "95 %", "99 %", "95 % of an image", "rank", "norm",
     "largest channel"),
    [
      (
        str(index),
        *map(str, block["dimensions"]),
        f"{block['image_dimensions'][1]:.1f}",
        f"{block['rank']:.1f}",
        f"{block['norm']:.3g}",
        f"{block['outlier']:.1%}",
      )
      for index, block in enumerate(model["blocks"])
    ],
    (
      "Dimensions that hold a share of the variance of all tokens; the "
      "effective rank; the norm of a token; the largest channel's share of the "
      "energy.",
    ),
  )  # fmt: skip


def warnings(found: Found) -> list[str]:
  """What looks wrong, a sentence each.

  Args:
    found: from `diagnostics.running.inspect`.
  """
  said = []
  for name, model in found["models"].items():
    for index, block in enumerate(model["blocks"]):
      if block["rank"] < 0.02 * model["width"]:
        said.append(
          f"block {index} of the {name} has collapsed: the effective rank of "
          f"its maps is {block['rank']:.1f} of {model['width']}"
        )
      if block["outlier"] > 0.5:
        said.append(
          f"one channel has {block['outlier']:.0%} of the energy of block "
          f"{index} of the {name}, and of any squared error on it"
        )
  return said


def headline(found: Found, title: str) -> tuple[str, str]:
  """What to do, first.

  Args:
    found: from `diagnostics.running.inspect`.
    title: of the page.
  """
  if "advice" not in found:
    return title, f"{found['images']:,} images."
  because: Sequence[str] = found["advice"]["because"]
  if not because:
    return title, "The student lacks nothing that a linear layer could show."
  return title, "Compare " + "; ".join(because) + "."
