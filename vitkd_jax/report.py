r"""Compares runs: a table, curves, and a page to look at.

  python -m vitkd_jax.report RUN_DIR [RUN_DIR ...] [--out DIR]

A folder of runs stands for all runs in it. Runs that differ in nothing but the
seed are one method: mean, standard deviation and a band. The report holds
index.html, which needs nothing beside itself, table.md and the PNGs.
"""

from collections.abc import Sequence
import os
import re
import shlex
import sys

from absl import flags
from etils import epath

from vitkd_jax import remote
from vitkd_jax.commandline import command
from vitkd_jax.data import printable
from vitkd_jax.reporting import figures, page, plotting, summary, tables
from vitkd_jax.runs import reading


def report(paths: Sequence[str], out: str | None = None) -> tuple[str, str]:
  """Writes the report of some runs.

  Args:
    paths: workdirs, or folders of workdirs; others are left out with a
      sentence on stderr, as long as one run remains.
    out: a folder, made if it is not there; by default `report` in the workdir
      of a single run, and in the folder that holds several.

  Returns:
    The report's folder, and the tables as Markdown.

  Raises:
    command.RefusedError: no path holds a run with metrics, or one is missing.
  """
  with command.refusing():
    folders = _workdirs(paths)
    runs = _read(folders)
  target = epath.Path(out) if out else _default_out(paths, runs)
  groups = summary.group(runs)
  made = tables.make(groups)
  pictures = _pictures(groups)
  markdown = "\n".join(table.markdown() for table in made)
  shown = "python -m vitkd_jax.report " + shlex.join([*paths])
  files = {f"{picture.name}.png": picture.light for picture in pictures}
  index = page.render(groups, made, pictures, shown)
  # A path may hold bytes that are no UTF-8.
  files["table.md"] = markdown.encode(errors="replace")
  files["index.html"] = index.encode(errors="replace")
  try:
    target.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
      (target / name).write_bytes(content)
  except OSError as error:
    raise command.RefusedError(
      f"cannot write to {target}: {error.strerror}; name another folder with "
      "--out"
    ) from error
  return str(target), markdown


def _workdirs(paths):
  """The paths, a folder of workdirs replaced by those in it."""
  found = []
  for path in paths:
    folder = epath.Path(path)
    if not folder.exists():
      raise ValueError(f"there is no folder {path}")
    inside = []
    if folder.is_dir() and not (folder / "config.json").exists():
      inside = [p.parent for p in folder.glob("*/config.json")]
      inside.sort(key=lambda p: _natural(p.name))
    found += [str(p) for p in inside] or [path.rstrip("/") or path]
  # A run counts once, however its path is written.
  return list({_real(path): path for path in found}.values())


def _real(path):
  return path if remote.is_remote(path) else os.path.realpath(path)


def _natural(name):
  """A key that puts run_9 before run_10."""
  parts = re.split(r"(\d+)", name)
  return [(part.zfill(20) if part.isdigit() else part) for part in parts]


def _read(folders):
  names = _names(folders)
  runs, refused = [], []
  for folder, name in zip(folders, names, strict=True):
    try:
      runs.append(reading.read(folder, name))
    except reading.NotARunError as error:
      refused.append(str(error))
  if not runs:
    more = f" (and {len(refused) - 1} more like it)" if refused[1:] else ""
    raise ValueError(refused[0] + more)
  for sentence in refused:
    print(f"left out: {printable.printable(sentence)}", file=sys.stderr)
  return runs


def _names(folders):
  """The last parts of the paths, as many as make them different."""
  parts = [epath.Path(remote.absolute(folder)).parts for folder in folders]
  for depth in range(1, max(map(len, parts)) + 1):
    names = ["/".join(p[-depth:]) for p in parts]
    if len(set(names)) == len(names):
      return names
  return [str(folder) for folder in folders]


def _default_out(paths, runs):
  if len(runs) == 1 and len(paths) == 1:
    single = runs[0].path
    return epath.Path(single) / "report"
  above = [set(epath.Path(remote.absolute(run.path)).parents) for run in runs]
  common = max(set.intersection(*above), key=lambda p: len(p.parts))
  return common / "report"


def _pictures(groups):
  plans = [
    ("accuracy", "Accuracy by step", lambda t: figures.accuracy(groups, t)),
    ("final", "Where they ended", lambda t: figures.finals(groups, t)),
    *(
      (
        f"losses_{index}" if len(groups) > 1 else "losses",
        f"Loss terms of {group.name}",
        lambda t, g=group: figures.losses(g, t),
      )
      for index, group in enumerate(groups, 1)
    ),
    ("training", "Gradients and pace", lambda t: figures.training(groups, t)),
  ]
  pictures = []
  for name, title, draw in plans:
    drawn = [plotting.png(draw, theme) for theme in plotting.THEMES]
    if drawn[0] is not None:
      pictures.append(page.Picture(name, title, *drawn))
  return pictures


def _define_flags():
  """The flags; not on import, for other entry points have an --out, too."""
  command.define_path(
    "out",
    None,
    "folder of the report; default: report/ in a run, or beside several",
  )


def main(argv):
  """The command line."""
  if len(argv) < 2:
    raise command.RefusedError("name one or more workdirs of runs; see --help")
  out, markdown = report(argv[1:], flags.FLAGS.out)
  print(markdown)
  shown = out if remote.is_remote(out) else os.path.relpath(out)
  print(f"report: {shown}/index.html")


if __name__ == "__main__":
  _define_flags()
  command.run(main, with_config=False, allow_positional=True)
