"""A figure as a PNG, or as an SVG whose colours the page's theme sets."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import io
import json
import re
from typing import Any
import warnings

import matplotlib
from matplotlib import figure as mpl_figure
from matplotlib.backends import backend_agg

from vitkd_jax.reporting import hover, plotting

Draw = Callable[[plotting.Theme], mpl_figure.Figure | None]


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A figure in two widths.

  Attributes:
    wide: SVG for a page 960 pixels wide; see `svg`.
    narrow: SVG for a phone.
    png: the wide one on white.
    values: of the points, see `hover.values`; equal in both widths.
    text: what the figure shows, for screen readers; "" for its title alone.
  """

  wide: str
  narrow: str
  png: bytes
  values: Sequence[hover.Panel] = ()
  text: str = ""


def both(draw: Draw, name: str) -> Drawing | None:
  """A figure, drawn once for each width.

  Args:
    draw: draws the figure, or returns None where there is nothing to draw.
    name: unique in the page.

  Returns:
    The drawing; None where there is nothing to draw.
  """
  with style(plotting.LIGHT):
    figure = draw(plotting.LIGHT)
    if figure is None:
      return None
    wide, image = _boxed(figure, f"{name}-wide"), _png(figure)
    values, text = hover.values(figure), hover.described(figure)
  with style(plotting.NARROW):
    figure = draw(plotting.NARROW)
    assert figure is not None  # the same curves
    narrow = _boxed(figure, f"{name}-narrow")
  return Drawing(wide, narrow, image, values, text)


def _boxed(figure: mpl_figure.Figure, name: str) -> str:
  """As `svg`, with the places of the panels for the page's script."""
  drawn = svg(figure, name)
  boxes = json.dumps(hover.boxes(figure), separators=(",", ":"))
  return drawn.replace("<svg ", f'<svg data-boxes="{boxes}" ', 1)


def png(draw: Draw, theme: plotting.Theme) -> bytes | None:
  """A picture as a PNG.

  Args:
    draw: draws the figure, or returns None where there is nothing to draw.
    theme: colours and width.

  Returns:
    The PNG's bytes; None where there is nothing to draw.
  """
  with style(theme):
    figure = draw(theme)
    return None if figure is None else _png(figure)


def _png(figure: mpl_figure.Figure) -> bytes:
  backend_agg.FigureCanvasAgg(figure)
  content = io.BytesIO()
  figure.savefig(content, format="png", dpi=160)
  return content.getvalue()


def svg(figure: mpl_figure.Figure, name: str) -> str:
  """A figure of `plotting.LIGHT` as an SVG to be put into a page.

  Its colours are the page's `plotting.Theme.variables`, its font the page's,
  and its coordinates are rounded to tenths of a point.

  Args:
    figure: drawn within `style`.
    name: unique in the page.
  """
  content = io.StringIO()
  with matplotlib.rc_context({"svg.hashsalt": name}):
    figure.savefig(content, format="svg")
  text = content.getvalue()
  text = text[text.index("<svg ") :]
  # What may follow from any name is text, and stays between the tags.
  text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
  text = re.sub(r"<[^>]*>\s*", _short_tag, text)
  while (shorter := text.replace("<g></g>", "")) != text:
    text = shorter
  return text


def _short_tag(match: re.Match[str]) -> str:
  tag = " ".join(match[0].split())
  if tag.startswith("<svg "):
    tag = re.sub(r' (width|height|xmlns(:xlink)?|version)="[^"]*"', "", tag)
  elif tag.startswith("<g"):
    tag = re.sub(r' id="[^"]*"', "", tag).replace("<g/>", "")
  elif tag.startswith("<text "):
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(r"font-family: [^;]*; ", "", tag)
  tag = re.sub(r"-?\d+\.\d{3,}", lambda x: f"{float(x[0]):.1f}", tag)
  return re.sub(
    r"((?:fill|stroke): )(#\w{6})",
    lambda x: x[1] + plotting.LIGHT.variables.get(x[2], x[2]),
    tag,
  )


@contextlib.contextmanager
def style(theme: plotting.Theme) -> Iterator[None]:
  """A context in which figures look as a theme says.

  Args:
    theme: colours and width.
  """
  values: dict[Any, Any] = {
    "text.parse_math": False,  # any name may contain $
    "svg.fonttype": "none",
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
  with matplotlib.rc_context(values), warnings.catch_warnings():
    # A letter missing from every font is drawn as a box.
    warnings.filterwarnings("ignore", "Glyph .* missing from")
    warnings.filterwarnings("ignore", "Matplotlib currently does not support")
    yield
