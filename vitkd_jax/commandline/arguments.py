"""From the words of a command line to flags and a config, or a refusal."""

from collections.abc import Sequence
import difflib
import os
import pathlib
import re
import sys
import traceback

from absl import flags
import ml_collections
from ml_collections import config_flags

# Flags defined here are those of the entry point that asks for them.
flags.disclaim_key_flags()

_CONFIG = "config"
# Keys of a config that hold paths.
_PATHS = (("data", "data_dir"), ("teacher", "weights"))

# Of a checkout, or where packages are installed.
_ROOT = str(pathlib.Path(__file__).parents[2])


class RefusedError(ValueError):
  """What the user asked for does not fit; the message is the whole answer."""


def require(flag: str, value: object) -> None:
  """Raises RefusedError for a flag that was not given."""
  if not value:
    raise RefusedError(f"--{flag} is missing; see --help")


def config() -> ml_collections.ConfigDict:
  """The config of the command line, with its overrides."""
  found = flags.FLAGS[_CONFIG].value
  for section, key in _PATHS:
    if (found.get(section) or {}).get(key):
      found[section][key] = os.path.expanduser(found[section][key])
  return found


class _Path(flags.ArgumentParser):
  """Expands ~, which a shell leaves alone behind an equals sign."""

  def parse(self, argument):
    """The path as the system takes it."""
    return os.path.expanduser(argument)

  def flag_type(self):
    """In words."""
    return "path"


def define_path(
  name: str,
  default: str | None,
  meaning: str,
  values: flags.FlagValues = flags.FLAGS,
) -> None:
  """Defines a flag that holds a path, local or a URL."""
  flags.DEFINE(
    _Path(), name, default, meaning, values, flags.ArgumentSerializer()
  )


def define_config() -> None:
  """Defines --config, and with its file an option for each key."""
  config_flags.DEFINE_config_file(
    _CONFIG,
    None,
    "config file, and its argument behind a colon; --config.section.key=value"
    " overrides a value",
    lock_config=True,
  )


def parse(
  argv: Sequence[str], *, with_config: bool, allow_positional: bool
) -> list[str]:
  """Sets the flags; returns the program's name and what is no option.

  Asked for help it prints that and exits.

  Args:
    argv: the command line.
    with_config: there is a flag --config, and it is required.
    allow_positional: argv may hold more than options.

  Raises:
    RefusedError: the command line does not fit, in one sentence.
  """
  # Configs share a module beside them, wherever they are called from.
  sys.path.append(_ROOT)
  argv, wants_help = _read(argv)
  given = any(re.match(f"--?{_CONFIG}(=|$)", arg) for arg in argv)
  try:
    rest = flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    name = error.flagname
    if with_config and name.startswith(
      f"{_CONFIG}."
    ):  # not unknown, if there were a config
      require(_CONFIG, given)
    names = [flag.name for flag in _ours()]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    raise RefusedError(
      f"unknown option --{name}; the nearest is --{near[0]}; see --help"
      if near
      else f"unknown option --{name}; see --help"
    ) from error
  except flags.Error as error:
    raise RefusedError(_last_line(error)) from error
  except Exception as error:  # a config file may raise anything
    raise RefusedError(_bad_override(argv) or _of_config(error)) from error
  if len(rest) > 1 and not allow_positional:
    raise RefusedError(
      f"unexpected argument {rest[1]!r}; options are --name=value"
    )
  if with_config and (given or not wants_help):
    _check_config(flags.FLAGS[_CONFIG])
  if wants_help:
    _help(given, with_config)
  return [rest[0], *map(os.path.expanduser, rest[1:])]


def _read(argv):
  """The arguments as the flags are spelt, and whether help is asked for."""
  end = argv.index("--") if "--" in argv else len(argv)
  read, wants_help = [argv[0]], False
  for arg in argv[1:end]:
    dashes, name, value = re.match("(--?)?([^=]*)(.*)", arg, re.S).groups()
    if dashes and name in ("help", "helpshort", "h", "?"):
      wants_help = True
      continue
    if dashes and "." not in name:
      # --batch-size and --batch_size are the same.
      spellings = (name, name.replace("-", "_"), name.replace("_", "-"))
      name = next(filter(_known, spellings), name)
    if name == _CONFIG and value.startswith("=~"):
      value = "=" + os.path.expanduser(value[1:])
    read.append(f"{dashes or ''}{name}{value}")
  return read + argv[end:], wants_help


def hyphenated(args: Sequence[str]) -> list[str]:
  """Arguments whose options are spelt with hyphens: --data_dir is --data-dir.

  Args:
    args: the command line without the program's name.
  """
  return [
    re.sub(r"^--[^=]+", lambda option: option[0].replace("_", "-"), arg)
    for arg in args
  ]


def _known(name):
  return name in flags.FLAGS or (
    name.startswith("no")
    and name[2:] in flags.FLAGS
    and flags.FLAGS[name[2:]].boolean
  )


def _ours():
  """This command's flags, in their order; not those of its libraries."""
  modules = flags.FLAGS.flags_by_module_dict()
  for name, defined in modules.items():
    if name == sys.argv[0] or name.startswith("vitkd_jax."):
      yield from (
        flag
        for flag in defined
        if not flag.name.startswith(f"{_CONFIG}.")
        and not flag.help.startswith("Alias for ")  # an older spelling
      )


def _help(config_given, with_config):
  from vitkd_jax.commandline import manual

  found, file = None, None
  if with_config and config_given:
    found = config()
    file = config_flags.get_config_filename(flags.FLAGS[_CONFIG])
    file = file.partition(":")[0]
  ours = [flag for flag in _ours() if flag.name != _CONFIG]
  page = manual.text(
    ours, found, file, with_config=with_config, where=where_configs_are()
  )
  print(page, end="", flush=True)
  sys.exit(0)


def where_configs_are() -> str:
  """Half a sentence on the project's own configs."""
  folder = os.path.join(_ROOT, "configs")
  if os.path.isfile(os.path.join(folder, "quickstart.py")):
    return f"the project's own are in {os.path.relpath(folder)}/"
  return (
    "the project's own are in the folder configs/ of its repository, which is "
    "not installed with the package"
  )


def _check_config(flag):
  require(_CONFIG, flag.present)
  path = config_flags.get_config_filename(flag).partition(":")[0]
  if not os.path.isfile(path):
    raise RefusedError(f"there is no config file {path}; {where_configs_are()}")
  if not isinstance(flag.value, ml_collections.ConfigDict):
    raise RefusedError(
      f"get_config of {path} returned {type(flag.value).__name__}; wanted an "
      "ml_collections.ConfigDict"
    )


def _last_line(error):
  """A message without the traceback that ml_collections puts into it."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  lines = [line for line in lines if not line.startswith("Pass --help")]
  return re.sub(r"^\w*Error: ", "", lines[-1]) if lines else str(error)


def _of_config(error):
  """What a config file raised; where, unless it was written for users."""
  if isinstance(error, SyntaxError):
    return f"{error.filename}, line {error.lineno}: {error.msg}"
  text = _last_line(error)
  if isinstance(error, ValueError):
    return text
  at = traceback.extract_tb(error.__traceback__)[-1]
  return f"{text} ({type(error).__name__} at {at.filename}, line {at.lineno})"


def _bad_override(argv):
  """Says which --config.key is unknown, and the nearest that is known."""
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
  for override in overrides:
    node, path = tree, override.partition("=")[0].split(".")[1:]
    for depth, key in enumerate(path):
      if not isinstance(node, ml_collections.ConfigDict):
        return f"config.{'.'.join(path[:depth])} is a value and has no {key!r}"
      if key not in node:
        near = difflib.get_close_matches(key, list(node), n=1, cutoff=0.0)
        return f"unknown config key config.{'.'.join(path[: depth + 1])}" + (
          f"; the nearest is {near[0]!r}" if near else "; that section is empty"
        )
      node = node[key]
  return None
