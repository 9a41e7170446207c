"""Which file --config means: one of the user's, or one of the package's own."""

import importlib
import importlib.util
import os
import pathlib
import sys

from vitkd_jax import check

# Config files, like commands, stand above the package and are run by path.
_OWN = pathlib.Path(__file__).parents[1] / "configs"


def names() -> list[str]:
  """Names of the package's own configs, such as "quickstart"."""
  return sorted(
    path.relative_to(_OWN).with_suffix("").as_posix()
    for path in _OWN.rglob("*.py")
    if "\ndef get_config(" in path.read_text()
  )


def find(argument: str) -> str:
  """The value of --config, with a path in the place of a name.

  A file at the path comes first. Else `NAME`, `NAME.py` and `configs/NAME.py`
  are the package's own config of that name, in any working directory.

  Args:
    argument: a path or a name and, after a colon, the config's arguments.

  Raises:
    ValueError: it is neither.
  """
  path, colon, rest = os.path.expanduser(argument).partition(":")
  if os.path.isfile(path):
    return path + colon + rest
  name = path.removeprefix("configs/").removesuffix(".py")
  known = names()
  if name not in known:
    raise ValueError(
      f"no config file {path}, and none of the package's own has that name;"
      f" {check.nearest(name, known)}"
    )
  return f"{_OWN / name}.py{colon}{rest}"


def described() -> str:
  """What may be given as --config, in a sentence."""
  return (
    "A config is a path or the name of one of the package's own: "
    f"{', '.join(names())}."
  )


def provide() -> None:
  """Lets users' configs import the package's as `configs`, their older name."""
  if importlib.util.find_spec("configs") is None:
    sys.modules["configs"] = importlib.import_module("vitkd_jax.configs")
