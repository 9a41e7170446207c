"""Findings of an examination, printed as they come."""

import collections
from collections.abc import Iterator
import dataclasses
from typing import Any

import ml_collections
import rich.console
import rich.table
import rich.text

from vitkd_jax.data import printable
from vitkd_jax.estimate import topology

_MARKS = {
  None: rich.text.Text(""),
  True: rich.text.Text("ok", "green"),
  False: rich.text.Text("WRONG", "red"),
}
_WIDTHS = {"mark": 5, "what": 22}


@dataclasses.dataclass(frozen=True)
class Finding:
  """One line of an examination.

  Attributes:
    what: what was examined.
    found: the result, in words.
    good: whether it is as it should be; None for mere information.
  """

  what: str
  found: str
  good: bool | None = None


class Shown:
  """Prints findings one by one, in columns.

  Attributes:
    wrong: what has been found to be wrong so far.
  """

  def __init__(self) -> None:
    self.wrong: list[str] = []
    self._console = rich.console.Console(highlight=False, markup=False)

  def show(self, finding: Finding | str) -> None:
    """Prints a finding, or announces what is examined next.

    Args:
      finding: the finding, or a description of what comes next.
    """
    if isinstance(finding, str):
      self._row("", "", rich.text.Text(f"({finding} ...)", "dim"))
      return
    if finding.good is False:
      self.wrong.append(finding.what)
    found = printable.printable(finding.found)
    self._row(_MARKS[finding.good], finding.what, rich.text.Text(found))

  def _row(self, *cells: str | rich.text.Text) -> None:
    table = rich.table.Table(box=None, pad_edge=False, show_header=False)
    for width in _WIDTHS.values():
      table.add_column(width=width)
    table.add_column()
    table.add_row(*cells)
    self._console.print(table)
    self._console.file.flush()


def mebibytes(size: float) -> str:
  """A size in MiB, in words.

  Args:
    size: in bytes.
  """
  return f"{size / 2**20:.1f} MiB"


def examine_slice(
  config: ml_collections.ConfigDict, name: str
) -> tuple[list[Finding], dict[str, Any]]:
  """The TPU compiler's estimates of a config's step on a slice.

  Args:
    config: a training's config.
    name: slice name, see `topology.find`.

  Returns:
    The findings, and the report they come from, see `topology.examine`.

  Raises:
    ValueError: the config cannot be built, or the slice is unknown.
  """
  report = topology.examine(config, name)
  return list(of_report(report)), report


def of_report(report: dict[str, Any]) -> Iterator[Finding]:
  """The findings of a report.

  Args:
    report: from `topology.examine`.
  """
  chip = topology.CHIPS[report["slice"].partition(":")[0]]
  yield Finding(
    "slice",
    f"{report['slice']}: {report['chips']} chips of {chip.hbm_gb} GB",
  )
  yield Finding(
    "batch",
    f"{report['batch_size']} images, {report['images_per_device']} per chip; "
    f"losses {', '.join(report['terms'])}; fsdp={report['fsdp']}",
  )
  for name, size in report["memory"].items():
    yield Finding(f"  {name}", f"{mebibytes(size):>12}")
  if not report["fits"]:
    yield Finding("memory of a chip", report["refusal"], False)
    return
  total = report["memory_total"] / topology.GIB
  yield Finding(
    "memory of a chip", f"{total:.2f} GiB of {chip.hbm_gb} GB", True
  )
  yield from _collectives(report["collectives"])
  yield Finding(
    "work",
    f"{report['flops'] / 1e9:.1f} GFLOP per step and chip in matrix products: "
    f"{report['flops'] / chip.peak * 1e3:.1f} ms at the peak of "
    f"{chip.peak / 1e12:.0f} TFLOP/s",
  )
  once = report["loops_counted_once"]
  yield Finding(
    "cycles",
    f"{report['cycles'] / 1e6:.1f} million by the compiler's estimate, without "
    f"collectives: {report['cycles'] / chip.clock * 1e3:.1f} ms at "
    f"{chip.clock / 1e9:.2f} GHz"
    + (f"; {once} loops of unknown length counted once" if once else ""),
  )
  yield Finding("compiled in", f"{report['compile_seconds']:.0f} s")


def _collectives(found: list[dict[str, Any]]) -> Iterator[Finding]:
  kinds: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
  for one in found:
    kinds[one["kind"]].append(one)
  if not kinds:
    yield Finding("collectives", "none")
  for kind, ones in kinds.items():
    # Smaller ones are flags and counters.
    large = [one for one in ones if one["bytes"] >= 2**10]
    size = sum(one["bytes"] * one["times"] for one in ones)
    yield Finding(
      kind,
      f"{sum(one['times'] for one in large)} of "
      f"{sum(one['arrays'] for one in large)} arrays, "
      f"{mebibytes(size)} per step, and {len(ones) - len(large)} smaller than "
      "1 KiB",
    )
