"""The look of pictures: themes, panels of one width, labelled curves."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import textwrap
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from vitkd_jax.data import printable
from vitkd_jax.reporting import thinning


@dataclasses.dataclass(frozen=True)
class Theme:
  """A picture's colours and width.

  The hues are Okabe and Ito's, which colour-blind readers can tell apart.

  Attributes:
    paper: background colour.
    ink: text colour.
    muted: colour of secondary text and of the baseline.
    grid: colour of the lines behind the curves.
    hues: colours of the curves.
    narrow: half the width, so that text is twice as large on a phone.
  """

  paper: str
  ink: str
  muted: str
  grid: str
  hues: tuple[str, ...]
  narrow: bool = False

  @property
  def width(self) -> float:
    """Inches: 960 pixels on a page, or 350 on a phone."""
    return 4.2 if self.narrow else 8.4

  def columns(self, count: int) -> int:
    """Number of columns for a number of panels.

    Args:
      count: number of panels.
    """
    return 1 if self.narrow else min(count, 2)

  def wrapped(self, text: str, count: int) -> str:
    """A curve's label, wrapped to the room beside a panel.

    Args:
      text: the label.
      count: number of panels in the figure.
    """
    return wrapped(text, self.letters(count), 3 if self.narrow else 2)

  def letters(self, count: int) -> int:
    """Letters per line of a label beside a panel.

    Args:
      count: number of panels in the figure.
    """
    return 16 if self.narrow else {1: 34, 2: 21}[self.columns(count)]

  def hue(self, index: int) -> str:
    """The colour of a curve; the baseline is grey instead.

    Args:
      index: index of the curve.
    """
    return self.hues[index % len(self.hues)]

  @property
  def variables(self) -> dict[str, str]:
    """{colour: the CSS variable that stands for it}, such as "var(--ink)"."""
    names = ("paper", "ink", "muted", "grid")
    found = {getattr(self, name): f"var(--{name})" for name in names}
    hues = {hue: f"var(--hue-{i})" for i, hue in enumerate(self.hues)}
    return found | hues


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
NARROW = dataclasses.replace(LIGHT, narrow=True)
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
# Inches.
_LINE = 0.175
_LEFT, _TOP, _BOTTOM = 0.6, 0.45, 0.55
_LETTER = 0.078
# Intervals of a thinned curve, each of two points: more than a panel of one
# curve has columns of pixels, and fewer where there are many.
_MOST, _FEWEST, _POINTS = 400, 24, 4000


@dataclasses.dataclass(frozen=True)
class Curve:
  """A metric of one method by step, over its seeds.

  Attributes:
    name: label beside its end.
    color: colour of line and label.
    dash: matplotlib's line style.
    steps: int64 [T].
    values: float64 [n, T] of n seeds.
    faint: drawn thin and without a label, as one of many.
  """

  name: str
  color: str
  dash: object
  steps: np.ndarray
  values: np.ndarray
  faint: bool = False

  @functools.cached_property
  def mean(self) -> np.ndarray:
    """Mean over the seeds, float64 [T]."""
    return self.values.mean(0)

  @property
  def last(self) -> float:
    """Mean at the last step."""
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
  """A figure of one panel, or of rows of two, and its axes.

  Figures of a theme have one width, so that a page shows them at one scale.

  Args:
    theme: colours and width.
    count: number of panels.
    height: smallest height of a panel, in inches.
    labels: labels beside a panel's curves.
    extra: letters that are added to each label.
    left: left margin of a panel, in inches.
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
  """Draws curves on axes, with a band of one standard deviation over seeds.

  Args:
    axes: to draw on.
    curves: long ones are thinned, and more so the more there are.
  """
  intervals = min(_MOST, max(_FEWEST, _POINTS // max(len(curves), 1)))
  for curve in curves:
    at = thinning.kept(curve.steps, curve.mean, intervals)
    steps, mean = curve.steps[at], curve.mean[at]
    marker = "o" if len(steps) == 1 else None
    thin: dict[str, Any] = (
      dict(lw=0.8, alpha=0.3, zorder=1.5)
      if curve.faint
      else dict(label=curve.name)
    )
    axes.plot(
      steps, mean, color=curve.color, ls=curve.dash, marker=marker, ms=5,
      **thin,
    )  # fmt: skip
    if len(curve.values) > 1 and not curve.faint:
      deviation = curve.values[:, at].std(0, ddof=1)
      axes.fill_between(
        steps, mean - deviation, mean + deviation, color=curve.color,
        alpha=0.18, lw=0,
      )  # fmt: skip
  width, _ = _inches(axes)
  ticks = min(5, int(width / 0.65))
  axes.xaxis.set_major_locator(ticker.MaxNLocator(ticks, integer=True))
  axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
  axes.margins(x=0.01)
  axes.set_xlim(left=0)


def label(
  axes: mpl_axes.Axes, curves: Sequence[Curve], text: Callable[[Curve], str]
) -> None:
  """Labels each curve beside its end, without overlaps.

  Args:
    axes: to label.
    curves: its curves.
    text: from a curve to its label.
  """
  width, height = _inches(axes)
  gap = _LINE / height
  to_axes = axes.transData + axes.transAxes.inverted()
  ends = []
  for curve in curves:
    if curve.faint:
      continue
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


def _inches(axes: mpl_axes.Axes) -> tuple[float, float]:
  """Width and height of axes."""
  extent, figure = axes.get_window_extent(), axes.figure
  return extent.width / figure.dpi, extent.height / figure.dpi


def _spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
  """Centres close to the wanted ones (ascending), without overlaps."""
  # Blocks of touching labels, each close to the mean of its wanted centres.
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


def _bottom(centres: Sequence[float], sizes: Sequence[float]) -> float:
  """The bottom of a block, kept above the tick labels."""
  wanted = float(np.mean(centres)) - sum(sizes) / 2
  return max(min(wanted, 1.05 - sum(sizes)), 0.0)


def _top(centres: Sequence[float], sizes: Sequence[float]) -> float:
  return _bottom(centres, sizes) + sum(sizes)


def wrapped(text: str, width: int, lines: int = 2) -> str:
  """A text wrapped to a number of lines, without its middle if necessary.

  Args:
    text: to wrap.
    width: letters per line.
    lines: largest number of lines.
  """
  text = printable.printable(text)
  found = textwrap.wrap(text, width)
  if len(found) > lines:
    found = [*found[: lines - 1], "…" + text[1 - width :]]
  return "\n".join(found)
