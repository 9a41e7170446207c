"""A lab's own pictures: gains with intervals, gain against cost."""

from matplotlib import figure as mpl_figure
import numpy as np

from vitkd_jax.labs import results as labs
from vitkd_jax.labs import shown
from vitkd_jax.reporting import plotting


def gains(
  results: labs.Results, theme: plotting.Theme
) -> mpl_figure.Figure | None:
  """Each arm's difference, its interval and its seeds, sorted by the mean.

  Args:
    results: of a lab.
    theme: colours and width.
  """
  rows = [x for x in results.compared if x.difference.seeds]
  if not rows:
    return None
  rows.sort(key=lambda x: -x.difference.mean)
  letters = 13 if theme.narrow else 34
  reference = results.lab.reference
  names = [
    plotting.wrapped(
      x.arm + ("" if x.against == reference else f" - {x.against}"), letters
    )
    for x in rows
  ]
  longest = max(len(line) for name in names for line in name.splitlines())
  figure, (axes,) = plotting.panels(
    theme,
    1,
    sum(0.2 + 0.14 * name.count("\n") + 0.12 for name in names),
    ["+12.34 ± 0.12"],
    left=0.25 + 0.086 * longest,
  )
  axes.grid(axis="y", visible=False)
  axes.grid(axis="x")
  axes.axvline(0, color=theme.muted, lw=1.2)
  for y, row in enumerate(rows):
    found = row.difference
    color = _color(row, theme)
    seeds = list(row.by_seed.values())
    axes.plot(seeds, [y] * len(seeds), "o", ms=4, alpha=0.35, mew=0, c=color)
    if found.margin is not None:
      ends = (found.mean - found.margin, found.mean + found.margin)
      axes.plot(ends, [y, y], color=color, lw=2)
    axes.plot([found.mean], [y], "o", ms=7, mew=0, color=color)
    axes.text(
      1.02, y, shown.margin(found), transform=axes.get_yaxis_transform(),
      color=color, va="center", fontsize=9,
    )  # fmt: skip
  # Two seeds may have an interval of 50 points, which would hide the others.
  seen = [v for row in rows for v in row.by_seed.values()]
  widths = [x.difference.margin or 0.0 for x in rows]
  room = max(max(seen) - min(seen), 0.1) + float(np.median(widths))
  axes.set_xlim(min(*seen, 0) - room / 2, max(*seen, 0) + room / 2)
  axes.set_yticks(range(len(rows)), names)
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.set_title(f"points above {reference}: mean, 95 % interval, seeds")
  return figure


# Arms that can all be named in a figure.
_FEW = 10


def costs(
  results: labs.Results, theme: plotting.Theme
) -> mpl_figure.Figure | None:
  """Each arm's gain against the time of its step.

  Of many arms those are named that no cheaper one beats, and the worst.

  Args:
    results: of a lab.
    theme: colours and width.
  """
  relative = shown.relative_costs(results)
  points = [
    (relative[row.arm], row.difference.mean, row)
    for row in results.compared
    if row.arm in relative
    and row.difference.seeds
    and row.against == results.lab.reference
  ]
  if len(points) < 2:
    return None
  points.sort(key=lambda point: (point[0], -point[1]))
  best, named = 0.0, [min(points, key=lambda point: point[1])]
  for point in points:
    if point[1] > best:
      best = point[1]
      named.append(point)
  if len(points) <= _FEW:
    named = points
  figure, (axes,) = plotting.panels(theme, 1, 3.6, ["x"])
  axes.axhline(0, color=theme.muted, lw=1.2)
  for cost, gain, row in points:
    axes.plot([cost], [gain], "o", ms=7, mew=0, color=_color(row, theme))
  axes.margins(x=0.2 if theme.narrow else 0.12, y=0.12)
  for cost, gain, row in named:
    axes.annotate(
      plotting.wrapped(row.arm, 20), (cost, gain), (0, 7),
      textcoords="offset points", ha="center", fontsize=9,
      color=_color(row, theme),
    )  # fmt: skip
  axes.set_title("gain in points of top-1")
  axes.set_xlabel(f"time of a step, {results.lab.reference}'s = 1")
  return figure


def _color(row: labs.Compared, theme: plotting.Theme) -> str:
  """Blue for a gain, orange for a loss, grey for what is not decided."""
  if row.said.startswith("gains"):
    return theme.hue(0)
  return theme.hue(1) if row.said.startswith("loses") else theme.muted
