r"""Compares runs: a table, curves, and a page to look at.

  python -m vitkd_jax.report RUN_DIR [RUN_DIR ...] [--out DIR]

A folder of runs stands for every run in it. Runs that differ only in the seed
are one method: mean, standard deviation and a band. The report has index.html,
which is self-contained, table.md and PNGs. Of many methods, figures show the
best in colour; the tables have all. What `evaluate --out RUN_DIR/NAME` and
`inspect --out RUN_DIR/NAME` left in a run's folder is in the report, too.
"""

from collections.abc import Callable, Iterable, Sequence
import os
import re
import shlex
import sys

from absl import flags
from etils import epath

from vitkd_jax import remote
from vitkd_jax.commandline import command
from vitkd_jax.data import printable
from vitkd_jax.reporting import (
  beside,
  contents,
  page,
  pictures,
  summary,
  tables,
)
from vitkd_jax.runs import reading


def report(paths: Sequence[str], out: str | None = None) -> tuple[str, str]:
  """Writes the report of some runs.

  Args:
    paths: workdirs, or folders of workdirs, local or remote. A path that holds
      no run is named on stderr and left out, unless no run remains.
    out: the report's folder, made if necessary; by default `report` in the
      workdir of a single run, or in the common folder of several.

  Returns:
    The report's folder, and the tables as Markdown.

  Raises:
    command.RefusedError: a path is missing, or none holds a run with metrics.
  """
  with command.refusing():
    folders = _workdirs(paths)
    runs = _read(folders)
  target = epath.Path(out) if out else _default_out(paths, runs)
  groups = summary.group(runs)
  blocks = list(
    contents.blocks(
      groups, _left(runs, beside.evaluations), _left(runs, beside.inspections)
    )
  )
  markdown = "\n".join(table.markdown() for table in tables.make(groups))
  shown = "python -m vitkd_jax.report " + shlex.join([*paths])
  index = page.render(groups, blocks, shown)
  try:
    pictures.write(target, {"table.md": markdown, "index.html": index}, blocks)
  except OSError as error:
    raise command.RefusedError(
      f"cannot write to {target}: {error.strerror}; choose another folder with "
      "--out"
    ) from error
  return str(target), markdown


def _workdirs(paths: Sequence[str]) -> list[str]:
  """The paths, each folder of workdirs replaced by the workdirs in it."""
  found: list[str] = []
  for path in paths:
    folder = epath.Path(path)
    if not folder.exists():
      raise ValueError(f"there is no folder {path}")
    inside = []
    if folder.is_dir() and not (folder / "config.json").exists():
      inside = [p.parent for p in folder.glob("*/config.json")]
      inside.sort(key=lambda p: _natural(p.name))
    found += [str(p) for p in inside] or [path.rstrip("/") or path]
  # A run counts once, however its path is spelt.
  return list({_real(path): path for path in found}.values())


def _real(path: str) -> str:
  return path if remote.is_remote(path) else os.path.realpath(path)


def _natural(name: str) -> list[str]:
  """A sorting key that puts run_9 before run_10."""
  parts = re.split(r"(\d+)", name)
  return [(part.zfill(20) if part.isdigit() else part) for part in parts]


def _read(folders: Sequence[str]) -> list[reading.Run]:
  names = _names(folders)
  runs, refused = [], []
  for folder, name in zip(folders, names, strict=True):
    try:
      runs.append(reading.read(folder, name))
    except reading.NotARunError as error:
      refused.append(str(error))
  if not runs:
    more = f" (and {len(refused) - 1} more such paths)" if refused[1:] else ""
    raise ValueError(refused[0] + more)
  for sentence in refused:
    print(f"left out: {printable.printable(sentence)}", file=sys.stderr)
  return runs


def _left(
  runs: Sequence[reading.Run],
  read: Callable[[reading.Run], Iterable[beside.Left]],
) -> list[beside.Left]:
  """What other commands left in the runs' folders; damaged files are named."""
  found: list[beside.Left] = []
  for run in runs:
    try:
      found += read(run)
    except ValueError as error:
      print(f"left out: {printable.printable(str(error))}", file=sys.stderr)
  return found


def _names(folders: Sequence[str]) -> list[str]:
  """The shortest distinct ends of the paths."""
  parts = [epath.Path(remote.absolute(folder)).parts for folder in folders]
  for depth in range(1, max(map(len, parts)) + 1):
    names = ["/".join(p[-depth:]) for p in parts]
    if len(set(names)) == len(names):
      return names
  return [str(folder) for folder in folders]


def _default_out(
  paths: Sequence[str], runs: Sequence[reading.Run]
) -> epath.Path:
  if len(runs) == 1 and len(paths) == 1:
    single = runs[0].path
    return epath.Path(single) / "report"
  above = [set(epath.Path(remote.absolute(run.path)).parents) for run in runs]
  common = max(set.intersection(*above), key=lambda p: len(p.parts))
  return common / "report"


def _define_flags() -> None:
  """Defines the flags, not on import: other entry points have an --out too."""
  command.define_path(
    "out",
    None,
    "folder for the report; default: report/ in the run, or beside several",
  )


def main(argv: Sequence[str]) -> None:
  """The command line.

  Args:
    argv: the program's name and the paths.
  """
  if len(argv) < 2:
    raise command.RefusedError(
      "expected the workdirs of one or more runs, got none; see --help"
    )
  out, markdown = report(argv[1:], flags.FLAGS.out)
  print(markdown)
  shown = out if remote.is_remote(out) else os.path.relpath(out)
  print(f"report: {shown}/index.html")


if __name__ == "__main__":
  _define_flags()
  command.run(main, with_config=False, allow_positional=True)
