"""The values of a figure's points, for the page's pointer and for readers."""

from collections.abc import Iterator
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
import numpy as np

from vitkd_jax.reporting import plotting

# Points of a curve, evenly spaced ones of more; and curves that a text names.
_POINTS, _NAMED = 100, 12
Panel = list[dict[str, Any]]


def values(figure: mpl_figure.Figure) -> list[Panel]:
  """The points of each panel's labelled lines, and of its labelled scatters.

  Args:
    figure: drawn within `rendering.style`. A scatter may be invisible: its
      array holds the values of a picture made otherwise.

  Returns:
    Of each panel that has any its curves: "name", "color" (CSS), "along" (what
    x is), "x" and "y" in words, and "at", the points' places as shares of the
    panel's width and height.
  """
  return [list(_curves(axes)) for axes in _panels(figure)]


def boxes(figure: mpl_figure.Figure) -> list[list[float]]:
  """Left, top, width and height of each panel of `values`, in points.

  Args:
    figure: that has been drawn.
  """
  scale = 72 / figure.dpi
  height = figure.bbox.height
  found = (axes.get_window_extent() for axes in _panels(figure))
  return [
    [
      round(scale * x, 1)
      for x in (box.x0, height - box.y1, box.width, box.height)
    ]
    for box in found
  ]


def described(figure: mpl_figure.Figure) -> str:
  """What the figure's curves end at, a sentence for each panel with a title.

  Args:
    figure: see `values`.
  """
  said = []
  for axes, curves in zip(_panels(figure), values(figure), strict=True):
    title = axes.get_title(loc="left")
    if not title:
      continue
    ends = [f"{curve['name']} {curve['y'][-1]}" for curve in curves]
    more = [f"and {len(ends) - _NAMED} more"] if len(ends) > _NAMED else []
    along = f", at {curves[0]['along']} {curves[0]['x'][-1]}"
    said.append(f"{title}{along}: {', '.join([*ends[:_NAMED], *more])}.")
  return " ".join(said)


def _panels(figure: mpl_figure.Figure) -> list[mpl_axes.Axes]:
  return [axes for axes in figure.axes if any(True for _ in _curves(axes))]


def _curves(axes: mpl_axes.Axes) -> Iterator[dict[str, Any]]:
  for line in axes.lines:
    points = np.array(line.get_data(), np.float64).T
    yield from _curve(axes, line, points, points[:, 1], line.get_color())
  for scatter in axes.collections:
    shown = scatter.get_array()
    if shown is not None:
      points = np.asarray(scatter.get_offsets(), np.float64)
      yield from _curve(axes, scatter, points, shown, plotting.LIGHT.ink)


def _curve(
  axes: mpl_axes.Axes, artist: Any, points: np.ndarray, shown: Any, color: Any
) -> Iterator[dict[str, Any]]:
  name = str(artist.get_label())
  good = np.flatnonzero(np.isfinite(points).all(1))
  if name.startswith("_child") or not good.size:  # it was given no label
    return
  if artist in axes.lines:
    few = np.linspace(0, len(good) - 1, min(_POINTS, len(good)))
    good = good[few.round().astype(int)]
  places = (axes.transData - axes.transAxes).transform(points[good])
  yield {
    "name": name,
    "color": plotting.LIGHT.variables.get(str(color), str(color)),
    "along": axes.get_xlabel().partition(",")[0],
    "x": [_number(x) for x in points[good, 0]],
    "y": [_number(y) for y in np.asarray(shown)[good]],
    "at": places.round(4).tolist(),
  }


def _number(value: float) -> str:
  whole = float(value).is_integer() and abs(value) < 1e9
  return f"{value:,.0f}" if whole else f"{value:.4g}"
