"""What a report shows, in the order of its page."""

from collections.abc import Iterator, Sequence

from vitkd_jax.reporting import (
  beside,
  classes,
  emphasis,
  inspected,
  page,
  pictures,
  summary,
  tables,
)

# More inspections would make the page too large.
_INSPECTIONS = 6


def blocks(
  groups: Sequence[summary.Group],
  evaluations: Sequence[beside.Left] = (),
  inspections: Sequence[beside.Left] = (),
) -> Iterator[page.Block]:
  """The page's tables and pictures, part by part.

  Args:
    groups: the runs by method.
    evaluations: of some of the runs.
    inspections: of some of the runs, of which the first are shown.
  """
  yield page.Part("Results")
  yield tables.methods(groups)
  yield from pictures.results(groups)
  yield page.Part("Training")
  yield from pictures.training(groups)
  yield from _with_rows(tables.losses(groups))
  if by_class := classes.make_tables(evaluations):
    yield page.Part("Classes")
    yield from by_class
  for number, left in enumerate(inspections[:_INSPECTIONS], 1):
    title = f"Maps of {left.run.name}"
    more = len(inspections) - _INSPECTIONS
    others = f" ({more} more inspections are not shown.)" if more > 0 else ""
    yield page.Part(title, inspected.headline(left.found, "")[1] + others)
    yield from inspected.blocks(left.found, f"maps_{number}_")
  yield page.Part("Runs")
  yield tables.runs(groups)
  yield from _with_rows(tables.settings(groups, emphasis.leading(groups, 8)))


def _with_rows(table: tables.Table) -> Iterator[tables.Table]:
  if table.rows:
    yield table
