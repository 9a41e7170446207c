"""The report's figures: curves labelled at their ends."""

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from vitkd_jax.reporting import emphasis, plotting, scales, summary


def accuracy(
  groups: Sequence[summary.Group], theme: plotting.Theme
) -> mpl_figure.Figure | None:
  """Top-1 by step of every group; None where none was evaluated.

  Args:
    groups: the runs by method.
    theme: colours and width.
  """
  curves = _curves(groups, "top1", theme, scale=100)
  if not curves:
    return None
  figure, (axes,) = plotting.panels(theme, 1, 4.2, _labels(curves), extra=6)
  plotting.draw(axes, curves)
  axes.set_title("top-1 on the evaluation split, %")
  axes.set_xlabel("step")
  scales.error_scale(axes, curves)
  plotting.label(
    axes, curves, lambda c: theme.wrapped(f"{c.name}  {c.last:.1f}", 1)
  )
  return figure


def finals(
  groups: Sequence[summary.Group], theme: plotting.Theme
) -> mpl_figure.Figure | None:
  """Final top-1 of each run by group; None for fewer than two groups.

  Args:
    groups: the runs by method.
    theme: colours and width.
  """
  colors = _colors(groups, theme)
  rows = []
  for index in emphasis.rows(groups):
    found = groups[index].values(summary.final_top1)
    if len(found):
      rows.append((groups[index], 100 * found, colors[index] or theme.muted))
  if len(rows) < 2:
    return None
  letters = 13 if theme.narrow else 24
  names = [plotting.wrapped(group.name, letters) for group, *_ in rows]
  every = [line for name in names for line in name.splitlines()]
  figure, (axes,) = plotting.panels(
    theme, 1, 0.42 * len(rows), ["12.34 ± 0.12"] * len(every),
    left=0.25 + 0.086 * max(map(len, every)),
  )  # fmt: skip
  axes.grid(axis="y", visible=False)
  axes.grid(axis="x")
  for y, (_, values, color) in enumerate(rows):
    mean, deviation = summary.mean_std(values)
    axes.plot(values, [y] * len(values), "o", ms=6, alpha=0.45, mew=0, c=color)
    axes.plot([mean] * 2, [y - 0.28, y + 0.28], color=color, lw=2.4)
    text = f"{mean:.2f}" + (f" ± {deviation:.2f}" if deviation else "")
    axes.text(
      1.02, y, text, transform=axes.get_yaxis_transform(), color=color,
      va="center",
    )  # fmt: skip
  axes.set_yticks(range(len(rows)), names)
  for label, (*_, color) in zip(axes.get_yticklabels(), rows, strict=True):
    label.set_color(color)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.margins(x=0.08)
  axes.set_title("final top-1, %: seeds, and mean")
  return figure


def losses(
  group: summary.Group, theme: plotting.Theme
) -> mpl_figure.Figure | None:
  """The loss terms of a group, raw and weighted; None without any.

  Args:
    group: the runs of one method.
    theme: colours and width.
  """
  colors = {term: theme.hue(i) for i, term in enumerate(group.loss_weights)}
  panels = []
  for kind in ("", "weighted/"):
    found = [
      _curve(group, f"{kind}{term}", term, colors[term])
      for term in group.loss_weights
    ]
    panels.append([curve for curve in found if curve])
  if not panels[0]:
    return None
  total = _curve(group, "loss", "total", theme.ink)
  if total and len(panels[1]) > 1:
    panels[1].append(total)
  names = max(([c.name for c in p] for p in panels), key=len)
  figure, both = plotting.panels(theme, 2, 2.4, names, extra=7)
  titles = ("raw terms (log scale)", "weighted terms, as summed")
  for axes, curves, title in zip(both, panels, titles, strict=True):
    if not curves:
      continue
    plotting.draw(axes, curves)
    axes.set_title(title)
    axes.set_xlabel("step")
    if axes is both[0]:
      scales.log_scale(axes, curves)
    else:
      axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    plotting.label(
      axes, curves, lambda c: theme.wrapped(f"{c.name}  {c.last:.3g}", 2)
    )
  return figure


def looks(
  group: summary.Group, theme: plotting.Theme
) -> mpl_figure.Figure | None:
  """What each term does to the students of a group; None without looks.

  Args:
    group: the runs of one method, with `config.run.inspect_every`.
    theme: colours and width.
  """
  names = sorted({name for run in group.settled for name in run.series})
  panels = []
  for prefix, title in (
    ("grad_cosine/", "cosine of a term's gradient with the task's"),
    ("cka/", "alignment with the teacher (CKA), student's block"),
    ("rank/", "effective rank of the student's block"),
  ):
    found = [name for name in names if name.startswith(prefix)]
    found.sort(key=lambda name: [int(x) for x in re.findall(r"\d+", name)])
    each = (
      _curve(group, name, _short(name, prefix, found), theme.hue(i))
      for i, name in enumerate(_few(found, 7))
    )
    curves = [curve for curve in each if curve]
    if curves:
      panels.append((prefix, title, curves))
  if not panels:
    return None
  labels = max(([c.name for c in curves] for *_, curves in panels), key=len)
  figure, grid = _grid(theme, len(panels), 2.2, labels, extra=6)
  for axes, (prefix, title, curves) in zip(grid, panels, strict=True):
    plotting.draw(axes, curves)
    axes.set_title(title)
    axes.set_xlabel("step")
    if prefix == "grad_cosine/":
      axes.axhline(0, color=theme.muted, lw=0.8)
    plotting.label(
      axes, curves, lambda c: theme.wrapped(f"{c.name}  {c.last:.2f}", 2)
    )
  return figure


def _few(names: Sequence[str], most: int) -> list[str]:
  """Evenly spaced ones of many names, the first and the last among them."""
  if len(names) <= most:
    return list(names)
  places = np.linspace(0, len(names) - 1, most).round().astype(int)
  return [names[place] for place in places]


def _short(name: str, prefix: str, names: Sequence[str]) -> str:
  """A metric's name without what all of them share."""
  text = name.removeprefix(prefix).replace("block_", "block ")
  teachers = {x.split("/")[1] for x in names if x.count("/") == 2}
  one = prefix == "cka/" and len(teachers) == 1
  return text.partition("/")[2] if one else text


def training(
  groups: Sequence[summary.Group], theme: plotting.Theme
) -> mpl_figure.Figure | None:
  """Gradient norms, learning rate and speed of every group; None without.

  Args:
    groups: the runs by method.
    theme: colours and width.
  """
  panels = []
  for name, title, log in (
    ("grad_norm_student", "gradient norm, student", True),
    ("grad_norm_methods", "gradient norm, the methods' modules", True),
    ("learning_rate", "learning rate", False),
    ("images_per_second", "images per second", False),
  ):
    curves = _curves(groups, name, theme)
    curves = [c for c in curves if np.any(c.values != 0)]
    if curves:
      panels.append((title, log, _merged(curves, theme)))
  if not panels:
    return None
  names = max((_labels(curves) for *_, curves in panels), key=len)
  # Seven characters, such as 0.00125, are beside a learning rate.
  figure, grid = _grid(theme, len(panels), 2.0, names, left=0.8)
  for axes, (title, log, curves) in zip(grid, panels, strict=True):
    plotting.draw(axes, curves)
    axes.set_title(title)
    if log:
      scales.log_scale(axes, curves)
    else:
      axes.set_ylim(bottom=0)
      axes.yaxis.set_major_formatter(ticker.FuncFormatter("{:g}".format))
    plotting.label(axes, curves, lambda c: theme.wrapped(c.name, 2))
  return figure


def _grid(
  theme: plotting.Theme, number: int, *args: Any, **kwargs: Any
) -> tuple[mpl_figure.Figure, Sequence[Any]]:
  """As `plotting.panels`, two in a row, the last one's neighbour left empty."""
  columns = theme.columns(2)
  places = columns * math.ceil(number / columns)
  figure, grid = plotting.panels(theme, places, *args, **kwargs)
  for axes in grid[number:]:
    axes.set_visible(False)
  return figure, grid[:number]


def _colors(
  groups: Sequence[summary.Group], theme: plotting.Theme
) -> list[str | None]:
  """Grey for the one baseline, hues for the others, None for faint ones."""
  base = summary.baseline(groups)
  colors: list[str | None] = [None] * len(groups)
  hues = 0
  for index in emphasis.best(groups):
    if groups[index] is base:
      colors[index] = theme.muted
    else:
      colors[index], hues = theme.hue(hues), hues + 1
  return colors


def _curve(
  group: summary.Group,
  name: str,
  label: str,
  color: str,
  scale: float = 1,
  **look: Any,
) -> plotting.Curve | None:
  found = group.curve(name)
  if found is None:
    return None
  return plotting.Curve(
    label, color, look.pop("dash", "-"), found[0], scale * found[1], **look
  )


def _curves(
  groups: Sequence[summary.Group],
  name: str,
  theme: plotting.Theme,
  scale: float = 1,
) -> list[plotting.Curve]:
  found = []
  places = {i: place for place, i in enumerate(emphasis.best(groups))}
  for i, color in enumerate(_colors(groups, theme)):
    dash = plotting.DASHES[places.get(i, 0) // 7 % len(plotting.DASHES)]
    look = dict(dash=dash, faint=color is None)
    curve = _curve(
      groups[i], name, groups[i].name, color or theme.muted, scale, **look
    )
    found += [curve] if curve else []
  return found


def _labels(curves: Sequence[plotting.Curve]) -> list[str]:
  return [c.name for c in curves if not c.faint] or [""]


def _merged(
  curves: list[plotting.Curve], theme: plotting.Theme
) -> list[plotting.Curve]:
  """The curves, replaced by a single one where all are equal."""
  first, *rest = curves
  if not rest or not all(
    np.array_equal(first.steps, c.steps)
    and np.allclose(first.mean, c.mean, rtol=1e-5, atol=0)
    for c in rest
  ):
    return curves
  return [
    dataclasses.replace(first, name="all methods", color=theme.ink, faint=False)
  ]
