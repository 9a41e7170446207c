"""Parses a command line into flags and a config, or refuses it."""

from collections.abc import Iterator, Sequence
import os
import re
import sys
import traceback
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

from vitkd_jax import check
from vitkd_jax.commandline import config_files, elsewhere
from vitkd_jax.errors import RefusedError

# Flags defined here belong to the entry point that asks for them.
flags.disclaim_key_flags()

_CONFIG = "config"


def require(flag: str, value: object) -> None:
  """Checks that a flag was given.

  Args:
    flag: name of the flag.
    value: its value.

  Raises:
    RefusedError: the value is empty.
  """
  if not value:
    raise RefusedError(f"--{flag} is missing; see --help")


def config() -> ml_collections.ConfigDict:
  """The command line's config, with its overrides."""
  return _expanded(flags.FLAGS[_CONFIG].value)


def _expanded(found: Any) -> ml_collections.ConfigDict:
  """A config whose paths are without ~."""
  places = [(found.get("data"), "data_dir"), (found.get("teacher"), "weights")]
  teachers = found.get("teachers") or {}
  places += [(teacher, "weights") for teacher in teachers.values()]
  for section, key in places:
    if section and section.get(key):
      section[key] = os.path.expanduser(section[key])
  return found


def load(file: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """The config of a file, as --config with these overrides would give it.

  Args:
    file: path or name, with arguments after a colon.
    overrides: of the form --config.section.key=value.

  Raises:
    RefusedError: the file or an override is wrong.
  """
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    _CONFIG, None, "", flag_values=values, lock_config=True
  )
  argv = [sys.argv[0], f"--{_CONFIG}={_file(file)}", *overrides]
  saved, sys.argv = sys.argv, argv  # where the flag finds its overrides
  try:
    values(argv)
  except Exception as error:  # a config file may raise anything
    unknown = overrides and _unknown_key(overrides, load(file))
    if not unknown and isinstance(error, flags.Error):
      unknown = _last_line(error)
    raise RefusedError(unknown or _of_config(error)) from error
  finally:
    sys.argv = saved
  _check_config(values[_CONFIG])
  return _expanded(values[_CONFIG].value)


class _Path(flags.ArgumentParser):
  """Expands ~, which a shell does not expand after an equals sign."""

  def parse(self, argument: str) -> str:
    """The path with ~ expanded."""
    return os.path.expanduser(argument)

  def flag_type(self) -> str:
    """The type in words."""
    return "path"


def define_path(
  name: str,
  default: str | None,
  meaning: str,
  values: flags.FlagValues = flags.FLAGS,
) -> None:
  """Defines a flag for a path, local or remote.

  Args:
    name: name of the flag.
    default: default path.
    meaning: help text.
    values: where the flag is defined.
  """
  flags.DEFINE(
    _Path(), name, default, meaning, values, flags.ArgumentSerializer()
  )


def define_paths(
  name: str, meaning: str, values: flags.FlagValues = flags.FLAGS
) -> None:
  """Defines a flag for paths that may be given again.

  Args:
    name: name of the flag.
    meaning: help text.
    values: where the flag is defined.
  """
  flags.DEFINE_multi(
    _Path(), flags.ArgumentSerializer(), name, None, meaning, values
  )


def define_config() -> None:
  """Defines --config, and an option for each key of its file."""
  config_flags.DEFINE_config_file(
    _CONFIG,
    None,
    "config file and, after a colon, its arguments; --config.section.key=value"
    " overrides a value",
    lock_config=True,
  )


def parse(
  argv: Sequence[str], *, with_config: bool, allow_positional: bool
) -> list[str]:
  """Sets the flags; returns the program's name and the positional arguments.

  With --help it prints the help and exits.

  Args:
    argv: the command line.
    with_config: the command has a required flag --config.
    allow_positional: argv may have positional arguments.

  Raises:
    RefusedError: the command line is wrong; one sentence says why.
  """
  config_files.provide()
  argv, wants_help = _read(argv)
  ours = argv[: argv.index("--")] if "--" in argv else argv
  given = any(re.match(f"--?{_CONFIG}(=|$)", arg) for arg in ours)
  # There the config's flag looks for overrides, also behind "--".
  saved, sys.argv = sys.argv, ours
  try:
    rest = flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    name = error.flagname
    if with_config and name.startswith(f"{_CONFIG}."):
      require(_CONFIG, given)  # without it no key is known
    near = check.nearest(f"--{name}", [f"--{flag.name}" for flag in _ours()])
    raise RefusedError(
      f"unknown option --{name}; {near}; see --help"
    ) from error
  except flags.Error as error:
    raise RefusedError(_last_line(error)) from error
  except Exception as error:  # a config file may raise anything
    raise RefusedError(_bad_override(ours) or _of_config(error)) from error
  finally:
    sys.argv = saved
  if len(rest) > 1 and not allow_positional:
    raise RefusedError(
      f"expected options such as --name=value, got argument {rest[1]!r}"
    )
  if with_config and (given or not wants_help):
    _check_config(flags.FLAGS[_CONFIG])
  if wants_help:
    _help(given, with_config)
  return [rest[0], *map(os.path.expanduser, rest[1:])]


def _read(argv: Sequence[str]) -> tuple[list[str], bool]:
  """The arguments with flags as defined, and whether they ask for help."""
  argv = list(argv)
  end = argv.index("--") if "--" in argv else len(argv)
  read, wants_help = [argv[0]], False
  for arg in argv[1:end]:
    if read[-1] in (f"-{_CONFIG}", f"--{_CONFIG}"):
      read.append(_file(arg))
      continue
    option = re.match("(--?)?([^=]*)(.*)", arg, re.S)
    assert option is not None  # it matches any text
    dashes, name, value = option.groups()
    if dashes and name in ("help", "helpshort", "h", "?"):
      wants_help = True
      continue
    if dashes and "." not in name:
      # --batch-size and --batch_size are the same.
      spellings = (name, name.replace("-", "_"), name.replace("_", "-"))
      name = next(filter(_known, spellings), name)
    if name == _CONFIG and dashes and value:
      value = f"={_file(value[1:])}"
    read.append(f"{dashes or ''}{name}{value}")
  return [*read, *argv[end:]], wants_help


def _file(argument: str) -> str:
  try:
    return config_files.find(argument)
  except ValueError as error:
    raise RefusedError(str(error)) from error


def hyphenated(args: Sequence[str]) -> list[str]:
  """Arguments whose options are spelt with hyphens: --data_dir is --data-dir.

  Args:
    args: the command line without the program's name.
  """
  return [
    re.sub(r"^--[^=]+", lambda option: option[0].replace("_", "-"), arg)
    for arg in args
  ]


def _known(name: str) -> bool:
  return name in flags.FLAGS or (
    name.startswith("no")
    and name[2:] in flags.FLAGS
    and flags.FLAGS[name[2:]].boolean
  )


def _ours() -> Iterator[flags.Flag]:
  """This command's own flags, in order, without its libraries' flags."""
  modules = flags.FLAGS.flags_by_module_dict()
  for name, defined in modules.items():
    if name == sys.argv[0] or name.startswith("vitkd_jax."):
      yield from (
        flag
        for flag in defined
        if not flag.name.startswith(f"{_CONFIG}.")
        and not flag.help.startswith("Alias for ")  # an older spelling
      )


def _help(config_given: bool, with_config: bool) -> None:
  from vitkd_jax.commandline import manual

  found, file = None, None
  if with_config and config_given:
    found = config()
    file = config_flags.get_config_filename(flags.FLAGS[_CONFIG])
    file = file.partition(":")[0]
  ours = [flag for flag in _ours() if flag.name != _CONFIG]
  page = manual.text(ours, found, file, with_config=with_config)
  print(page, end="", flush=True)
  sys.exit(0)


def _check_config(flag: flags.FlagHolder | Any) -> None:
  require(_CONFIG, flag.present)
  if not isinstance(flag.value, ml_collections.ConfigDict):
    path = config_flags.get_config_filename(flag).partition(":")[0]
    raise RefusedError(
      f"expected get_config of {path} to return an ml_collections.ConfigDict, "
      f"got {type(flag.value).__name__}"
    )


def _last_line(error: Exception) -> str:
  """A message without the traceback that ml_collections adds to it."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  lines = [line for line in lines if not line.startswith("Pass --help")]
  return re.sub(r"^\w*Error: ", "", lines[-1]) if lines else str(error)


def _of_config(error: Exception) -> str:
  """What a config file raised and where, unless it is meant for users."""
  if isinstance(error, SyntaxError):
    return f"{error.filename}, line {error.lineno}: {error.msg}"
  text = _last_line(error)
  if isinstance(error, ValueError):
    return text
  at = traceback.extract_tb(error.__traceback__)[-1]
  return f"{text} ({type(error).__name__} at {at.filename}, line {at.lineno})"


def _bad_override(argv: Sequence[str]) -> str | None:
  """Which --config.SECTION.KEY is unknown, and the nearest known one."""
  overrides = [a for a in argv if a.startswith(f"--{_CONFIG}.")]
  files = [a for a in argv if a not in overrides]
  saved, sys.argv = sys.argv, files
  try:
    flags.FLAGS.unparse_flags()
    flags.FLAGS(files)
    tree = config()
  except Exception:
    return None
  finally:
    sys.argv = saved
  return _unknown_key(overrides, tree)


def _unknown_key(
  overrides: Sequence[str], tree: ml_collections.ConfigDict
) -> str | None:
  """Which override names no key of a config, and the nearest key."""
  for override in overrides:
    node: Any = tree
    path = override.partition("=")[0].split(".")[1:]
    for depth, key in enumerate(path):
      if not isinstance(node, ml_collections.ConfigDict):
        return f"config.{'.'.join(path[:depth])} is a value and has no {key!r}"
      if key not in node:
        name = ".".join(path[: depth + 1])
        ours = elsewhere.ours(".".join(path), frozenset(_keys(tree)))
        near = check.nearest(key, node)
        said = f"here it is config.{ours}" if ours else near
        return f"unknown config key config.{name}; {said}"
      node = node[key]
  return None


def _keys(tree: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
  """Full names of a config's keys, sections among them."""
  for key, value in tree.items():
    yield prefix + key
    if isinstance(value, ml_collections.ConfigDict):
      yield from _keys(value, f"{prefix}{key}.")
