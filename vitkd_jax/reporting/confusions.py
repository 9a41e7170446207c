"""Pictures of what a classifier mistakes for what."""

from collections.abc import Sequence

from matplotlib import colors as mpl_colors
from matplotlib import figure as mpl_figure
from matplotlib import patches, ticker
import numpy as np

from vitkd_jax.reporting import plotting

# Rows of the picture of many classes.
_ROWS = 30


def matrix(
  counts: np.ndarray, names: Sequence[str], theme: plotting.Theme
) -> mpl_figure.Figure:
  """The confusion matrix, each row in percent of its class.

  Args:
    counts: int [C, C], rows the true class, columns the predicted one.
    names: names of the C classes.
    theme: colours.
  """
  number = len(names)
  share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
  named = number <= 30
  side = max(4.5, 0.52 * number) if named else 8
  figure = mpl_figure.Figure(figsize=(side, side), layout="constrained")
  axes = figure.subplots()
  colors = mpl_colors.LinearSegmentedColormap.from_list(
    "", [theme.paper, theme.hue(0)]
  )
  # The few errors would vanish on a linear scale.
  image = axes.imshow(np.sqrt(share), cmap=colors, vmin=0, vmax=10)
  axes.grid(False)
  axes.spines[:].set_visible(False)
  axes.set_xlabel("predicted class")
  axes.set_ylabel("true class")
  axes.xaxis.set_label_position("top")
  axes.xaxis.tick_top()
  if named:
    short = [plotting.wrapped(name, 18, 1) for name in names]
    axes.set_xticks(range(number), short, rotation=45, ha="left")
    axes.set_yticks(range(number), short)
    for i in range(number):  # outline the diagonal, even where it is empty
      axes.add_patch(
        patches.Rectangle(
          (i - 0.5, i - 0.5), 1, 1, fill=False, ec=theme.muted, lw=0.8
        )
      )
    for row, column in np.argwhere(share > 0.5):
      value = share[row, column]
      axes.text(
        column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
        color=theme.paper if value > 30 else theme.ink,
      )  # fmt: skip
  else:
    bar = figure.colorbar(image, shrink=0.5, ticks=[0, 1, 10**0.5, 10])
    bar.set_ticklabels(["0", "1", "10", "100 %"])
    bar.outline.set_visible(False)
  axes.set_title(
    "Predictions by true class, % of the class", color=theme.ink, pad=16
  )
  return figure


def most_frequent(
  confusions: Sequence[Sequence[int]],
  names: Sequence[str],
  theme: plotting.Theme,
) -> mpl_figure.Figure:
  """The most frequent confusions of many classes, as bars.

  Args:
    confusions: [true, predicted, number of images], most frequent first.
    names: names of the classes.
    theme: colours and width.
  """
  rows = confusions[:_ROWS]
  letters = 13 if theme.narrow else 26
  labels = [
    " \u2192 ".join(plotting.wrapped(names[i], letters, 1) for i in row[:2])
    for row in rows
  ]
  left = 0.25 + 0.086 * max(map(len, labels), default=0)
  figure, (axes,) = plotting.panels(
    theme, 1, 0.25 * len(rows), ["1,000"], left=left
  )
  axes.grid(axis="y", visible=False)
  places = range(len(rows))
  axes.barh(places, [count for *_, count in rows], 0.6, color=theme.hue(0))
  for place, (*_, count) in zip(places, rows, strict=True):
    axes.text(count, place, f" {count:,}", color=theme.ink, va="center")
  axes.set_yticks(places, labels)
  axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
  axes.xaxis.set_major_locator(ticker.NullLocator())
  axes.set_title("images, by true \u2192 predicted class")
  return figure
