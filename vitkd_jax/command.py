"""What the command lines share: flags, the config, and refusals.

A user's mistake ends with one sentence on stderr and exit status 2; a
traceback means a defect of ours.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import difflib
import errno
import os
import re
import shlex
import sys
import traceback

from absl import app, flags, logging
import ml_collections
from ml_collections import config_flags

from vitkd_jax.training import endings, startup

# Flags defined here are those of the entry point that asks for them.
flags.disclaim_key_flags()

_CONFIG = "config"
# Keys of a config that hold paths.
_PATHS = (("data", "data_dir"), ("teacher", "weights"))
# What entry points raise; the training, which imports none, raises it, too.
FailedError = endings.FailedError


class RefusedError(ValueError):
  """What the user asked for does not fit; the message is the whole answer."""


@contextlib.contextmanager
def refusing() -> Iterator[None]:
  """A context whose errors are the user's: they become RefusedErrors."""
  try:
    yield
  except (ValueError, OSError, ImportError) as error:  # a bucket's client
    raise RefusedError(str(error)) from error


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


def define_join() -> None:
  """Defines the flags that `join` reads."""
  flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0; default: found on TPU, Slurm and Kubernetes",
  )
  flags.DEFINE_integer(
    "num_processes", None, "of the run; default: found, else 1"
  )
  flags.DEFINE_integer("process_id", None, "of this process; default: found")
  flags.DEFINE_float(
    "join_timeout", 300.0, "seconds to wait for the other processes"
  )


def join() -> None:
  """Joins this process to the others of the run, see `startup.start`."""
  given = flags.FLAGS
  try:
    startup.start(
      given.coordinator,
      given.num_processes,
      given.process_id,
      timeout=given.join_timeout,
    )
  except ValueError as error:
    raise RefusedError(str(error)) from error
  except startup.MissingError as error:
    raise endings.FailedError(str(error)) from error


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


def line() -> str:
  """The command line as a user would type it again."""
  spec = sys.modules["__main__"].__spec__
  program = f"python -m {spec.name}" if spec else sys.argv[0]
  return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def run(
  main: Callable[[Sequence[str]], None],
  *,
  with_config: bool,
  allow_positional: bool = False,
) -> None:
  """Parses the command line, runs `main`, and exits.

  Args:
    main: takes argv.
    with_config: there is a flag --config, and it is required.
    allow_positional: argv may hold more than options.
  """
  if with_config:
    config_flags.DEFINE_config_file(
      _CONFIG,
      None,
      "config file, and its argument behind a colon; --config.section.key=value"
      " overrides a value",
      lock_config=True,
    )
  # Orbax tells of every file at the level "info"; --verbosity brings it back.
  logging.set_verbosity(logging.WARNING)
  if sys.stdout:  # a terminal of few characters, or a name that is not UTF-8
    sys.stdout.reconfigure(errors="replace")
  try:
    app.run(
      main,
      flags_parser=lambda argv: _parse(argv, with_config, allow_positional),
    )
  except RefusedError as error:
    _exit(error, 2)
  except endings.FailedError as error:
    _exit(error, 1)
  except endings.PreemptedError as notice:
    print(notice, flush=True)
  except KeyboardInterrupt:
    print("error: interrupted", file=sys.stderr)
    _leave_now(130)  # a second Ctrl-C would abort an orderly exit
  except BrokenPipeError:  # `| head` has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes at its exit
    _leave(1)
  except Exception as error:
    if "RESOURCE_EXHAUSTED" in str(error):
      _exit(_out_of_memory(error), 1)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
      _exit(
        f"{error}; what was saved is intact: free some room, start again", 1
      )
    if startup.process_count() == 1:
      raise
    traceback.print_exc()
    _leave(1)


def _exit(error, status):
  print(f"error: {error}", file=sys.stderr)
  _leave(status)


def _out_of_memory(error):
  first = str(error).partition("RESOURCE_EXHAUSTED: ")[2].partition("\n")[0]
  return (
    f"the memory of a device does not suffice ({first.rstrip('.')}); take "
    "fewer images at once (--batch-size, or config.run.batch_size), or work a "
    "batch off in parts (config.run.accumulate)"
  )


def _leave(status):
  """Ends this process; in the middle of a run, the other ones, too.

  An orderly exit would wait until they come to theirs, and they wait for this
  one in a collective. Without it JAX ends them.
  """
  if startup.process_count() == 1:
    sys.exit(status)
  _leave_now(status)


def _leave_now(status):
  for stream in filter(None, (sys.stdout, sys.stderr)):
    with contextlib.suppress(OSError):
      stream.flush()
  os._exit(status)


def _parse(argv, with_config, allow_positional):
  # Configs share a module beside them, wherever they are called from.
  sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
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
      yield from (f for f in defined if not f.name.startswith(f"{_CONFIG}."))


def _help(config_given, with_config):
  from vitkd_jax import manual  # all that a config's sections go to

  found, file = None, None
  if with_config and config_given:
    found = config()
    file = config_flags.get_config_filename(flags.FLAGS[_CONFIG])
    file = file.partition(":")[0]
  ours = [flag for flag in _ours() if flag.name != _CONFIG]
  page = manual.text(ours, found, file, with_config=with_config)
  print(page, end="", flush=True)
  sys.exit(0)


def _check_config(flag):
  require(_CONFIG, flag.present)
  path = config_flags.get_config_filename(flag).partition(":")[0]
  if not os.path.isfile(path):
    raise RefusedError(
      f"there is no config file {path}; the ones that come with the project "
      "are in configs/"
    )
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
