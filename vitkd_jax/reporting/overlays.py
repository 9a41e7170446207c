"""Figures of sample images, and of what is laid over them."""

from collections.abc import Mapping
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import colors as mpl_colors
from matplotlib import figure as mpl_figure
from matplotlib import gridspec
import numpy as np

from vitkd_jax.reporting import plotting

Found = Mapping[str, Any]
# Error maps over images, at most.
_ROWS = 6


def samples(found: Found, theme: plotting.Theme) -> mpl_figure.Figure | None:
  """Images, and where the models look.

  Args:
    found: from `diagnostics.running.inspect`.
    theme: colours and width.
  """
  shown = found.get("gallery")
  if not shown or not shown["attention"]:
    return None
  rows = {}
  for name, looked in shown["attention"].items():
    rows[f"{name}, rollout"] = (looked, 1.0)
    rows[f"{name}, last"] = (shown["last"][name], 1.0)
  shades = [(0, 0, 0, 0.6), (*mpl_colors.to_rgb(theme.hue(1)), 0.6)]
  return _rows(theme, shown["image"], rows, shades)


def lacks(found: Found, theme: plotting.Theme) -> mpl_figure.Figure | None:
  """Where in images the student lacks the teacher's maps.

  Args:
    found: from `diagnostics.running.inspect`.
    theme: colours and width.
  """
  shown = found.get("gallery")
  if not shown or "lacking" not in shown:
    return None
  rows = {f"block {shown['teacher']}": shown["lacking"]}
  return _failing(shown["image"], rows, theme)


def made(found: Found, theme: plotting.Theme) -> mpl_figure.Figure | None:
  """Where in images the trained modules of methods fail.

  Args:
    found: from `diagnostics.running.inspect`.
    theme: colours and width.
  """
  shown = found.get("gallery")
  if not shown or not shown.get("made"):
    return None
  names = [*shown["made"]][-_ROWS:]
  rows = {name: shown["made"][name] for name in names}
  return _failing(shown["image"], rows, theme)


def _failing(
  images: np.ndarray, maps: Mapping[str, Any], theme: plotting.Theme
) -> mpl_figure.Figure:
  """Errors [K, h, w] by name, over images; the largest has the whole colour."""
  rows = {name: (x, float(np.max(x))) for name, x in maps.items()}
  hue = mpl_colors.to_rgb(theme.hue(1))
  shades = [(*hue, 0), (*hue, 0.9)]
  return _rows(theme, images, rows, shades, with_values=True)


def _rows(
  theme: plotting.Theme,
  images: np.ndarray,
  rows: Mapping[str, tuple[np.ndarray, float]],
  shades: Any,
  *,
  with_values: bool = False,
) -> mpl_figure.Figure:
  """Images, and below each its maps [K, h, w], which have a largest value."""
  images = images[: 3 if theme.narrow else None]
  height, width = images.shape[1:3]
  side = theme.width / (len(images) + 0.3) * height / width
  figure = mpl_figure.Figure(
    figsize=(theme.width, side * (1 + len(rows))), layout="constrained"
  )
  grid = figure.add_gridspec(1 + len(rows), len(images))
  colors = mpl_colors.LinearSegmentedColormap.from_list("", shades)
  # Image by image, so that those of a narrow figure are the first.
  for column, image in enumerate(images):
    axes = _cell(figure, grid[0, column], image)
    axes.set_ylabel("" if column else "image")
    for row, (title, (maps, most)) in enumerate(rows.items(), 1):
      axes = _cell(figure, grid[row, column], image)
      axes.set_ylabel("" if column else title)
      axes.imshow(
        maps[column], cmap=colors, vmin=0, vmax=most,
        extent=(0, width, height, 0), interpolation="bilinear",
      )  # fmt: skip
      if with_values:
        _mark(axes, title, maps[column], (height, width))
  return figure


def _cell(
  figure: mpl_figure.Figure, place: gridspec.SubplotSpec, image: np.ndarray
) -> mpl_axes.Axes:
  axes = figure.add_subplot(place)
  height, width = image.shape[:2]
  axes.imshow(image, extent=(0, width, height, 0))
  axes.set_xticks([])
  axes.set_yticks([])
  axes.spines[:].set_visible(False)
  return axes


def _mark(
  axes: mpl_axes.Axes, title: str, values: np.ndarray, size: tuple[int, int]
) -> None:
  """Gives the values of a map to the page's pointer."""
  (rows, columns), (height, width) = values.shape, size
  y, x = np.indices(values.shape).reshape(2, -1) + 0.5
  places = x * width / columns, y * height / rows
  axes.scatter(*places, c=values.ravel(), visible=False, label=title)
