"""The pictures of a report, and its files."""

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


def results(groups: Sequence[summary.Group]) -> list[page.Picture]:
  """What the methods reach; without what has nothing to draw.

  Args:
    groups: the runs by method.
  """
  title = f"Final accuracy{emphasis.rows_of(groups)}"
  final = ("final", title, functools.partial(figures.finals, groups))
  return each([accuracy(groups), final])


def training(
  groups: Sequence[summary.Group],
) -> list[page.Picture | multiples.Tiles]:
  """How the methods got there; without what has nothing to draw.

  Args:
    groups: the runs by method.
  """
  found = [
    *_losses(groups),
    *_looks(groups),
    _picture(
      "training",
      f"Gradients and speed{emphasis.best_of(groups)}",
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
  texts: Mapping[str, str | bytes],
  blocks: Sequence[page.Block] = (),
) -> None:
  """Writes files, and pictures as PNGs, into a folder that is made if missing.

  Args:
    folder: local or remote.
    texts: contents by file name.
    blocks: of a page; its pictures have a file each.

  Raises:
    OSError: it cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for picture in blocks:
    if isinstance(picture, page.Picture):
      (folder / f"{picture.name}.png").write_bytes(picture.drawing.png)
  for name, text in texts.items():
    if isinstance(text, str):  # of a path, which may be no UTF-8
      text = text.encode(errors="replace")
    (folder / name).write_bytes(text)


def _picture(
  name: str, title: str, draw: rendering.Draw
) -> page.Picture | None:
  drawing = rendering.both(draw, name)
  return page.Picture(name, title, drawing) if drawing else None
