"""How pictures look: themes, panels of one width, and labelled curves."""

from collections.abc import Callable, Sequence
import dataclasses
import io
import textwrap
import warnings

import matplotlib
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker
from matplotlib.backends import backend_agg
import numpy as np

from vitkd_jax.data import printable


@dataclasses.dataclass(frozen=True)
class Theme:
  """How a picture looks; the hues are Okabe and Ito's, safe for all eyes.

  Attributes:
    paper: colour of the ground.
    ink: of text.
    muted: of what stands back, the baseline too.
    grid: of lines behind the curves.
    hues: of the curves.
    narrow: for a phone: half as wide, so that text is twice as large there.
  """

  paper: str
  ink: str
  muted: str
  grid: str
  hues: tuple[str, ...]
  narrow: bool = False

  @property
  def width(self) -> float:
    """Of a figure, in inches: 960 pixels of a page, or 350 of a phone."""
    return 4.2 if self.narrow else 8.4

  def columns(self, count: int) -> int:
    """In how many columns so many panels stand."""
    return 1 if self.narrow else min(count, 2)

  def wrapped(self, text: str, count: int) -> str:
    """A label in lines, beside one of so many panels."""
    return wrapped(text, self.letters(count), 3 if self.narrow else 2)

  def letters(self, count: int) -> int:
    """Of a line of a label, beside one of so many panels."""
    return 15 if self.narrow else {1: 34, 2: 21}[self.columns(count)]

  def hue(self, index: int) -> str:
    """The colour of the curve of that number; grey is the baseline's."""
    return self.hues[index % len(self.hues)]


LIGHT = Theme(
  paper="#ffffff",
  ink="#1c2024",
  muted="#667078",
  grid="#e4e8eb",
  hues=("#0072b2", "#d55e00", "#008a64", "#b5588f", "#b07c00", "#3d9bd1"),
)
DARK = Theme(
  paper="#16191d",
  ink="#e8eaed",
  muted="#98a2ab",
  grid="#2a2f35",
  hues=("#56b4e9", "#ff8a3d", "#2fc79a", "#e39cc6", "#e6b422", "#8ab6ff"),
)
# In the order in which a page takes them.
THEMES = (
  LIGHT,
  DARK,
  dataclasses.replace(LIGHT, narrow=True),
  dataclasses.replace(DARK, narrow=True),
)
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
# Inches: a label's line, and what surrounds a panel.
_LINE = 0.175
_LEFT, _TOP, _BOTTOM = 0.6, 0.45, 0.55
_LETTER = 0.078


def png(
  draw: Callable[[Theme], mpl_figure.Figure | None], theme: Theme
) -> bytes | None:
  """A picture as the bytes of a PNG; None where there is nothing to draw."""
  style = {
    "text.parse_math": False,  # $ may stand in any name
    "font.size": 10,
    "text.color": theme.ink,
    "axes.edgecolor": theme.grid,
    "axes.facecolor": theme.paper,
    "axes.labelcolor": theme.muted,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titlepad": 12,
    "figure.facecolor": theme.paper,
    "grid.color": theme.grid,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "xtick.color": theme.muted,
    "ytick.color": theme.muted,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
  }
  with matplotlib.rc_context(style), warnings.catch_warnings():
    # A box is drawn for a letter that no font here has.
    warnings.filterwarnings("ignore", "Glyph .* missing from")
    warnings.filterwarnings("ignore", "Matplotlib currently does not support")
    figure = draw(theme)
    if figure is None:
      return None
    backend_agg.FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=160)
  return content.getvalue()


@dataclasses.dataclass(frozen=True)
class Curve:
  """A metric of one method by step, over its seeds.

  Attributes:
    name: what stands beside its end.
    color: of line and label.
    dash: matplotlib's line style.
    steps: int64 [T].
    values: float64 [n, T], of n seeds.
  """

  name: str
  color: str
  dash: object
  steps: np.ndarray
  values: np.ndarray

  @property
  def mean(self) -> np.ndarray:
    """Over the seeds, float64 [T]."""
    return self.values.mean(0)

  @property
  def last(self) -> float:
    """The mean at the end."""
    return self.mean[-1]


def panels(
  theme: Theme,
  count: int,
  height: float,
  labels: Sequence[str],
  *,
  extra: int = 0,
  left: float = _LEFT,
) -> tuple[mpl_figure.Figure, list[mpl_axes.Axes]]:
  """A figure of one panel, or of rows of two, and its axes in a list.

  Room for the labels, `extra` letters longer, is beside each panel, and all
  figures are as wide, so that a page shows them at one scale.
  """
  columns = theme.columns(count)
  rows = -(-count // columns)
  letters = min(max(map(len, labels)) + extra, theme.letters(count))
  right = 0.3 + _LETTER * letters
  height = min(height, 0.7 * theme.width)
  lines = sum(
    theme.wrapped(label + extra * "x", count).count("\n") + 1
    for label in labels
  )
  height = max(height, lines * _LINE * 1.1)
  cell_width, cell_height = theme.width / columns, height + _TOP + _BOTTOM
  figure = mpl_figure.Figure(figsize=(theme.width, rows * cell_height))
  grid = figure.subplots(
    rows,
    columns,
    squeeze=False,
    gridspec_kw={
      "left": left / theme.width,
      "right": 1 - right / theme.width,
      "top": 1 - _TOP / (rows * cell_height),
      "bottom": _BOTTOM / (rows * cell_height),
      "wspace": (left + right) / (cell_width - left - right),
      "hspace": (_TOP + _BOTTOM) / height,
    },
  )
  return figure, list(grid.ravel())


def draw(axes: mpl_axes.Axes, curves: Sequence[Curve]) -> None:
  """Lines, with a band of one standard deviation where there are seeds."""
  for curve in curves:
    marker = "o" if len(curve.steps) == 1 else None
    axes.plot(
      curve.steps, curve.mean, color=curve.color, ls=curve.dash, marker=marker,
      ms=5,
    )  # fmt: skip
    if len(curve.values) > 1:
      deviation = curve.values.std(0, ddof=1)
      low, high = curve.mean - deviation, curve.mean + deviation
      axes.fill_between(
        curve.steps, low, high, color=curve.color, alpha=0.18, lw=0
      )
  width = axes.get_window_extent().width / axes.figure.dpi
  ticks = min(5, int(width / 0.65))
  axes.xaxis.set_major_locator(ticker.MaxNLocator(ticks, integer=True))
  axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
  axes.margins(x=0.01)
  axes.set_xlim(left=0)


def error_scale(axes: mpl_axes.Axes, curves: Sequence[Curve]) -> None:
  """Accuracy in percent, spread out towards 100 as its error's logarithm."""
  values = np.concatenate([curve.mean for curve in curves])
  values = values[np.isfinite(values)]
  low, high = (values.min(), values.max()) if values.size else (0, 100)
  if high < 60:  # nothing to spread out
    axes.set_ylim(0, None)
    return
  floor = 0.02

  def forward(y):
    return -np.log10(np.maximum(100 - np.asarray(y, float), floor))

  def backward(z):
    return 100 - 10.0 ** -np.asarray(z, float)

  axes.set_yscale("function", functions=(forward, backward))
  top = 100 - max(floor, 0.85 * (100 - high))
  axes.set_ylim(max(0, low - 0.06 * (100 - low)), top)
  ticks = np.array(
    [0, 20, 40, 50, 60, 65, 70, 75, 78, 80, 82, 84, 86, 88, 90, 92, 94]
  )
  ticks = np.append(ticks, [95, 96, 97, 98, 98.5, 99, 99.3, 99.5, 99.7, 99.9])
  axes.set_yticks(_apart(ticks, forward, axes.get_ylim()))
  axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
  axes.yaxis.set_minor_locator(ticker.NullLocator())


def _apart(ticks, forward, limits):
  """Those ticks within the limits that are far enough from each other."""
  low, high = forward(limits[0]), forward(limits[1])
  kept = []
  for tick in ticks[(ticks >= limits[0]) & (ticks <= limits[1])]:
    if not kept or forward(tick) - forward(kept[-1]) > 0.07 * (high - low):
      kept.append(tick)
  return kept


def log_scale(axes: mpl_axes.Axes, curves: Sequence[Curve]) -> None:
  """A logarithmic y axis where anything is positive."""
  values = np.concatenate([curve.mean for curve in curves])
  values = values[np.isfinite(values) & (values > 0)]
  if not values.size:
    return
  axes.set_yscale("log")
  if values.max() < 10 * values.min():  # a decade's ticks would leave one
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
  axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
  axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def label(
  axes: mpl_axes.Axes, curves: Sequence[Curve], text: Callable[[Curve], str]
) -> None:
  """Puts each curve's text beside its end, apart where they would touch."""
  width, height = axes.get_window_extent().size / axes.figure.dpi
  gap = _LINE / height
  to_axes = axes.transData + axes.transAxes.inverted()
  ends = []
  for curve in curves:
    finite = np.flatnonzero(np.isfinite(curve.mean))
    if not finite.size:
      continue
    point = (curve.steps[finite[-1]], curve.mean[finite[-1]])
    lines = text(curve).splitlines()
    ends.append((to_axes.transform(point), lines, curve.color))
  ends.sort(key=lambda end: end[0][1])
  places = _spread(
    [end[0][1] for end in ends], [gap * len(end[1]) for end in ends]
  )
  for ((x, y), lines, color), place in zip(ends, places, strict=True):
    axes.annotate(
      "\n".join(lines), (x, y), (1 + 0.13 / width, place),
      xycoords="axes fraction", textcoords="axes fraction", color=color,
      fontsize=9, va="center", linespacing=1.1, annotation_clip=False,
      arrowprops={
        "arrowstyle": "-", "color": color, "lw": 0.7, "alpha": 0.6,
        "shrinkA": 2, "shrinkB": 2,
        "relpos": (0, 0.5),
      },
    )  # fmt: skip


def _spread(wanted, sizes):
  """Centres near those wanted (rising), so that the sizes do not overlap."""
  # Blocks of touching labels, each near the mean of what its labels want.
  blocks: list[tuple[list, list]] = []
  for centre, size in zip(wanted, sizes, strict=True):
    blocks.append(([centre], [size]))
    while len(blocks) > 1 and _bottom(*blocks[-1]) < _top(*blocks[-2]):
      centres, more = blocks.pop()
      blocks[-1][0].extend(centres)
      blocks[-1][1].extend(more)
  places = []
  for centres, block_sizes in blocks:
    at = _bottom(centres, block_sizes)
    for size in block_sizes:
      places.append(at + size / 2)
      at += size
  return places


def _bottom(centres, sizes):
  """Of a block; not below the axes, where the ticks' numbers are."""
  wanted = float(np.mean(centres)) - sum(sizes) / 2
  return max(min(wanted, 1.05 - sum(sizes)), 0.0)


def _top(centres, sizes):
  return _bottom(centres, sizes) + sum(sizes)


def wrapped(text: str, width: int, lines: int = 2) -> str:
  """The text in so many lines of `width` letters; its middle may be left out.

  Names that differ at their ends stay different.
  """
  text = printable.printable(text)
  found = textwrap.wrap(text, width)
  if len(found) > lines:
    found = [*found[: lines - 1], "…" + text[1 - width :]]
  return "\n".join(found)
