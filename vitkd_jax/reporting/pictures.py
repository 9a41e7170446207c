"""The pictures of a report, in the order of its page."""

from collections.abc import Sequence
import functools

from vitkd_jax.reporting import (
  emphasis,
  figures,
  multiples,
  page,
  rendering,
  summary,
)

# Up to so many methods have a figure of their loss terms each.
_FIGURES = 6
# More tiles would make the page too large.
_TILES = 240


def make(
  groups: Sequence[summary.Group],
) -> list[page.Picture | multiples.Tiles]:
  """The pictures of a report; those without anything to draw are left out.

  Args:
    groups: the runs by method.
  """
  best, rows = emphasis.best_of(groups), emphasis.rows_of(groups)
  found = [
    _picture(
      "accuracy",
      f"Accuracy by step{best}",
      functools.partial(figures.accuracy, groups),
    ),
    _picture(
      "final",
      f"Final accuracy{rows}",
      functools.partial(figures.finals, groups),
    ),
    *_losses(groups),
    _picture(
      "training",
      f"Gradients and speed{best}",
      functools.partial(figures.training, groups),
    ),
  ]
  return [each for each in found if each is not None]


def _losses(
  groups: Sequence[summary.Group],
) -> Sequence[page.Picture | multiples.Tiles | None]:
  if len(groups) > _FIGURES:
    shown = [groups[i] for i in emphasis.leading(groups, _TILES)]
    some = f", the best {_TILES} of {len(groups)}"
    title = "Raw loss terms by method"
    title += some if len(groups) > _TILES else ""
    return [multiples.losses(shown, title)]
  return [
    _picture(
      f"losses_{index}" if len(groups) > 1 else "losses",
      f"Loss terms of {group.name}",
      functools.partial(figures.losses, group),
    )
    for index, group in enumerate(groups, 1)
  ]


def _picture(
  name: str, title: str, draw: rendering.Draw
) -> page.Picture | None:
  drawing = rendering.both(draw, name)
  return page.Picture(name, title, drawing) if drawing else None
