"""The pictures of a report, in the order of its page, and its files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
from typing import Any

from etils import epath

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
    _picture(*accuracy(groups)),
    _picture(
      "final",
      f"Final accuracy{rows}",
      functools.partial(figures.finals, groups),
    ),
    *_losses(groups),
    *_looks(groups),
    _picture(
      "training",
      f"Gradients and speed{best}",
      functools.partial(figures.training, groups),
    ),
  ]
  return [picture for picture in found if picture is not None]


def _losses(
  groups: Sequence[summary.Group],
) -> Sequence[page.Picture | multiples.Tiles | None]:
  if len(groups) > _FIGURES:
    shown = [groups[i] for i in emphasis.leading(groups, _TILES)]
    some = f", the best {_TILES} of {len(groups)}"
    title = "Raw loss terms by method"
    title += some if len(groups) > _TILES else ""
    return [multiples.losses(shown, title)]
  return _of_each(groups, "losses", "Loss terms of {}", figures.losses)


def _looks(
  groups: Sequence[summary.Group],
) -> Sequence[page.Picture | None]:
  if len(groups) > _FIGURES:
    groups = [groups[i] for i in emphasis.leading(groups, _FIGURES)]
  title = "What the terms of {} do to the student"
  return _of_each(groups, "looks", title, figures.looks)


def _of_each(
  groups: Sequence[summary.Group],
  name: str,
  title: str,
  draw: Callable[..., Any],
) -> list[page.Picture | None]:
  """A picture of each method, "{}" in the title being its name."""
  return [
    _picture(
      f"{name}_{index}" if len(groups) > 1 else name,
      title.format(group.name),
      functools.partial(draw, group),
    )
    for index, group in enumerate(groups, 1)
  ]


def accuracy(
  groups: Sequence[summary.Group],
) -> tuple[str, str, rendering.Draw]:
  """Name, title and figure of the accuracy by step.

  Args:
    groups: the runs by method.
  """
  title = f"Accuracy by step{emphasis.best_of(groups)}"
  return "accuracy", title, functools.partial(figures.accuracy, groups)


def each(
  plans: Iterable[tuple[str, str, rendering.Draw]],
) -> list[page.Picture]:
  """The pictures that have something to draw.

  Args:
    plans: of each picture its name, title and figure.
  """
  found = (_picture(*plan) for plan in plans)
  return [picture for picture in found if picture is not None]


def write(
  folder: epath.Path,
  texts: Mapping[str, str],
  drawn: Sequence[page.Picture | multiples.Tiles] = (),
) -> None:
  """Writes texts, and pictures as PNGs, into a folder that is made if missing.

  Args:
    folder: local or remote.
    texts: by file name.
    drawn: of a page; tiles have no file.

  Raises:
    OSError: it cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for picture in drawn:
    if isinstance(picture, page.Picture):
      (folder / f"{picture.name}.png").write_bytes(picture.drawing.png)
  for name, text in texts.items():
    # A path may contain bytes that are not UTF-8.
    (folder / name).write_bytes(text.encode(errors="replace"))


def _picture(
  name: str, title: str, draw: rendering.Draw
) -> page.Picture | None:
  drawing = rendering.both(draw, name)
  return page.Picture(name, title, drawing) if drawing else None
