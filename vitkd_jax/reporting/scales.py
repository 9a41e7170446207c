"""Scales of the y axis: an accuracy's error, and a logarithm."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import ticker
import numpy as np

from vitkd_jax.reporting import plotting


def error_scale(axes: mpl_axes.Axes, curves: Sequence[plotting.Curve]) -> None:
  """Scales accuracy by the logarithm of its error, which spreads it near 100.

  Args:
    axes: to scale.
    curves: its curves, in percent.
  """
  values = np.concatenate([curve.mean for curve in curves])
  values = values[np.isfinite(values)]
  low, high = (values.min(), values.max()) if values.size else (0, 100)
  if high < 60:  # nothing to spread out
    axes.set_ylim(0, None)
    return
  floor = 0.02

  def forward(y: Any) -> np.ndarray:
    return -np.log10(np.maximum(100 - np.asarray(y, float), floor))

  def backward(z: Any) -> np.ndarray:
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


def _apart(
  ticks: np.ndarray,
  forward: Callable[[Any], np.ndarray],
  limits: tuple[float, float],
) -> list[float]:
  """The ticks within the limits, without those too close to the previous."""
  low, high = forward(limits[0]), forward(limits[1])
  kept: list[float] = []
  for tick in ticks[(ticks >= limits[0]) & (ticks <= limits[1])]:
    if not kept or forward(tick) - forward(kept[-1]) > 0.07 * (high - low):
      kept.append(tick)
  return kept


def log_scale(axes: mpl_axes.Axes, curves: Sequence[plotting.Curve]) -> None:
  """Makes the y axis logarithmic if any value is positive.

  Args:
    axes: to scale.
    curves: its curves.
  """
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
