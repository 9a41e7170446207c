"""Small multiples: the loss terms of many methods, a tile each."""

from collections.abc import Sequence
import dataclasses

from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from vitkd_jax.reporting import plotting, rendering, scales, summary

# Inches, of a tile; and intervals of its thinned curves.
_WIDTH, _HEIGHT, _INTERVALS = 2.3, 1.45, 40


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Panels of one scale.

  Attributes:
    title: what they show.
    legend: {curve: its colour}, of all tiles.
    tiles: (method, SVG) of each; see `rendering.svg`.
  """

  title: str
  legend: dict[str, str]
  tiles: Sequence[tuple[str, str]]


def losses(groups: Sequence[summary.Group], title: str) -> Tiles | None:
  """The raw loss terms of each group; None without any.

  Args:
    groups: the runs by method.
    title: what they show.
  """
  theme = plotting.NARROW
  names = dict.fromkeys(term for g in groups for term in g.loss_weights)
  colors = {term: theme.hue(i) for i, term in enumerate(names)}
  dashes = {
    term: plotting.DASHES[i // len(theme.hues) % len(plotting.DASHES)]
    for i, term in enumerate(names)
  }
  found = []
  for group in groups:
    curves = [
      plotting.Curve(term, colors[term], dashes[term], *curve)
      for term in group.loss_weights
      if (curve := group.curve(term))
    ]
    if curves:
      found.append((group.name, curves))
  if not found:
    return None
  with rendering.style(theme):
    tiles = _drawn(found)
  return Tiles(title, colors, tiles)


def _drawn(
  found: Sequence[tuple[str, Sequence[plotting.Curve]]],
) -> list[tuple[str, str]]:
  figure = mpl_figure.Figure(figsize=(_WIDTH, _HEIGHT))
  axes = figure.add_axes((0.19, 0.17, 0.69, 0.78))
  every = [curve for _, curves in found for curve in curves]
  axes.set_xlim(0, max(curve.steps[-1] for curve in every))
  axes.set_ylim(*_limits(every))
  scales.log_scale(axes, every)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(2, integer=True))
  axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
  axes.tick_params(labelsize=8)
  tiles = []
  for index, (name, curves) in enumerate(found):
    lines = [
      axes.plot(*_thinned(c), color=c.color, ls=c.dash, lw=1.1)[0]
      for c in curves
    ]
    tiles.append((name, rendering.svg(figure, f"tile-{index}")))
    for line in lines:
      line.remove()
  return tiles


def _thinned(curve: plotting.Curve) -> tuple[np.ndarray, np.ndarray]:
  at = plotting.thinning.kept(curve.steps, curve.mean, _INTERVALS)
  return curve.steps[at], curve.mean[at]


def _limits(curves: Sequence[plotting.Curve]) -> tuple[float, float]:
  """Of all tiles, so that they compare; one run's explosion is cut off."""
  values = np.concatenate([_thinned(curve)[1] for curve in curves])
  values = values[np.isfinite(values) & (values > 0)]
  if not values.size:
    return 0, 1
  low, high = np.percentile(values, (0.5, 99.5))
  return low / 1.15, high * 1.15
