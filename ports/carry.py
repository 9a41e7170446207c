"""Copies the objective into another code base, as a package of its own.

  python ports/carry.py FOLDER PACKAGE

  python ports/carry.py ~/big_vision/big_vision/models/proj/vitkd \
      big_vision.models.proj.vitkd

FOLDER gets `distill/objective.py` and `data/augment.py` with all that they
import of vitkd_jax, under the name PACKAGE: methods, losses, views and
augmentation. They need jax, flax, einops and numpy. A folder with other files
in it is refused; one that this wrote is written anew.
"""

import ast
from collections.abc import Iterator, Sequence
import pathlib
import re
import shutil
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[1] / "vitkd_jax"
ROOTS = ("distill/objective.py", "data/augment.py")
# Says that a folder was written by this, and when to write it anew.
_MARK = "CARRIED.md"
_TEXT = """# {package}

Copied from vitkd_jax by ports/carry.py. Change it there, and copy it anew: what
is changed here is lost then.
"""


def files(roots: Sequence[str] = ROOTS) -> list[pathlib.Path]:
  """The files to copy, relative to the package, in order.

  Args:
    roots: files that are wanted, and with them all that they import.
  """
  found: set[pathlib.Path] = set()
  left = [pathlib.Path(name) for name in roots]
  while left:
    path = left.pop()
    if path not in found:
      found.add(path)
      left += imports(SOURCE / path)
  for path in list(found):
    found |= {parent / "__init__.py" for parent in path.parents}
  return sorted(found)


def imports(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Files of the package that one imports, at the top or in a function.

  Args:
    path: of the file, anywhere.
  """
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      names += [str(node.module)]
    for name in names:
      parts = name.split(".")
      if parts[0] != "vitkd_jax" or len(parts) == 1:
        continue
      place = pathlib.Path(*parts[1:])
      for file in (place.with_suffix(".py"), place / "__init__.py"):
        if (SOURCE / file).is_file():
          yield file


def carry(
  folder: pathlib.Path, package: str, roots: Sequence[str] = ROOTS
) -> list[pathlib.Path]:
  """Copies the files, under the name of another package.

  Args:
    folder: of the package.
    package: its dotted name.
    roots: see `files`.

  Returns:
    The files that were written.

  Raises:
    ValueError: the name is none of a package, or the folder holds other files.
  """
  if not all(part.isidentifier() for part in package.split(".")):
    raise ValueError(
      f"expected the dotted name of a package, such as "
      f"big_vision.models.proj.vitkd, got {package!r}"
    )
  if (
    folder.exists() and not (folder / _MARK).exists() and any(folder.iterdir())
  ):
    raise ValueError(
      f"{folder} holds files that are not from here; name a new folder"
    )
  shutil.rmtree(folder, ignore_errors=True)
  written = []
  for path in files(roots):
    text = re.sub(r"\bvitkd_jax\b", package, (SOURCE / path).read_text())
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)
    written.append(folder / path)
  (folder / _MARK).write_text(_TEXT.format(package=package))
  return written


def main(argv: list[str]) -> int:
  """Runs the command line.

  Args:
    argv: its arguments.
  """
  if len(argv) != 2 or argv[0].startswith("-"):
    print(__doc__.strip(), file=sys.stderr)
    return 0 if argv[:1] in (["--help"], ["-h"]) else 2
  folder = pathlib.Path(argv[0]).expanduser()
  try:
    written = carry(folder, argv[1])
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"{len(written)} files of {argv[1]} are in {folder}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
