"""What an examination found, shown as it comes."""

import dataclasses

import rich.console
import rich.table
import rich.text

from vitkd_jax.data import printable

_MARKS = {
  None: rich.text.Text(""),
  True: rich.text.Text("ok", "green"),
  False: rich.text.Text("WRONG", "red"),
}
_WIDTHS = {"mark": 5, "what": 22}


@dataclasses.dataclass(frozen=True)
class Finding:
  """One line of the examination; `good` is None for mere information."""

  what: str
  found: str
  good: bool | None = None


class Shown:
  """Prints findings one by one, in columns.

  Attributes:
    wrong: what was found to be wrong so far.
  """

  def __init__(self):
    self.wrong: list[str] = []
    self._console = rich.console.Console(highlight=False, markup=False)

  def show(self, finding: Finding | str) -> None:
    """Prints a finding, or in words what begins now."""
    if isinstance(finding, str):
      self._row("", "", rich.text.Text(f"({finding} ...)", "dim"))
      return
    if finding.good is False:
      self.wrong.append(finding.what)
    found = printable.printable(finding.found)
    self._row(_MARKS[finding.good], finding.what, rich.text.Text(found))

  def _row(self, *cells):
    table = rich.table.Table(box=None, pad_edge=False, show_header=False)
    for width in _WIDTHS.values():
      table.add_column(width=width)
    table.add_column()
    table.add_row(*cells)
    self._console.print(table)
    self._console.file.flush()


def mebibytes(size: float) -> str:
  """A number of bytes in words."""
  return f"{size / 2**20:.1f} MiB"
