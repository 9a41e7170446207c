"""What the commands share: flags, the config, and errors.

A user's mistake ends with one sentence on stderr and exit status 2; a
traceback means a bug.
"""

from collections.abc import Callable, Sequence
import contextlib
import errno
import io
import os
import shlex
import sys
import traceback
from typing import Any

from absl import app, flags, logging

from vitkd_jax import errors
from vitkd_jax.cluster import console, preemption, rendezvous, startup
from vitkd_jax.commandline import arguments

# Flags defined here belong to the entry point that asks for them.
flags.disclaim_key_flags()

require = arguments.require
config = arguments.config
define_path = arguments.define_path
define_paths = arguments.define_paths
# Raised by entry points and by the training, which imports none of them.
FailedError = errors.FailedError
RefusedError = errors.RefusedError
refusing = errors.refusing


def define_join() -> None:
  """Defines the flags that `join` reads."""
  flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0; default: found on TPU, Slurm and Kubernetes",
  )
  flags.DEFINE_integer(
    "num-processes",
    None,
    "number of processes in the run; default: found, else 1",
  )
  flags.DEFINE_integer(
    "process-id", None, "index of this process; default: found"
  )
  flags.DEFINE_float(
    "join-timeout", 300.0, "seconds to wait for the other processes"
  )


def join() -> None:
  """Joins this process to the others of the run, see `startup.start`.

  Raises:
    RefusedError: the flags are incomplete, or JAX cannot start.
    errors.FailedError: the other processes did not come.
  """
  given: Any = flags.FLAGS
  try:
    startup.start(
      given["coordinator"].value,
      given["num-processes"].value,
      given["process-id"].value,
      timeout=given["join-timeout"].value,
    )
  except ValueError as error:
    raise RefusedError(str(error)) from error
  except rendezvous.MissingError as error:
    raise errors.FailedError(str(error)) from error
  preemption.heed()


def line() -> str:
  """This command line, quoted for a shell."""
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
    main: called with argv.
    with_config: the command has a required flag --config.
    allow_positional: argv may have positional arguments.
  """
  if with_config:
    arguments.define_config()
  # Orbax logs every file at level INFO; --verbosity=0 shows them.
  logging.set_verbosity(logging.WARNING)
  console.open_streams()
  # For a terminal without Unicode, or a name that is not UTF-8.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="replace")
  try:
    app.run(
      lambda argv: _flushed(main, argv),
      flags_parser=lambda argv: arguments.parse(
        argv, with_config=with_config, allow_positional=allow_positional
      ),
    )
  except RefusedError as error:
    _exit(error, 2)
  except errors.FailedError as error:
    _exit(error, 1)
  except errors.PreemptedError as notice:
    stream = console.Stream(sys.stdout, lambda error: None)
    stream.write(f"{notice}\n")
    stream.flush()
    sys.exit(notice.status)
  except KeyboardInterrupt:
    console.complain("error: interrupted")
    # A second Ctrl-C would abort an orderly exit.
    _leave_now(errors.INTERRUPTED)
  except BrokenPipeError:  # such as `| head`
    console.close(sys.stdout)
    _leave(1)
  except Exception as error:
    if "RESOURCE_EXHAUSTED" in str(error):
      _exit(_out_of_memory(error), 1)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
      _exit(
        f"{error}; what was saved is intact: free some space and start again",
        1,
      )
    if without_device := startup.without_device(error):
      _exit(without_device, 2)
    if startup.process_count() == 1:
      raise
    traceback.print_exc()
    _leave(1)


def _flushed(
  main: Callable[[Sequence[str]], None], argv: Sequence[str]
) -> None:
  """Runs `main` and flushes what it printed."""
  with refusing():
    startup.check_environment()
  main(argv)
  sys.stdout.flush()


def _exit(error: object, status: int) -> None:
  console.complain(f"error: {error}")
  _leave(status)


def _out_of_memory(error: Exception) -> str:
  first = str(error).partition("RESOURCE_EXHAUSTED: ")[2].partition("\n")[0]
  return (
    f"out of device memory ({first.rstrip('.')}); use a smaller batch "
    "(--batch-size, or config.run.batch_size), or more gradient-accumulation "
    "steps (config.run.accumulate)"
  )


def _leave(status: int) -> None:
  """Exits; in the middle of a run with several processes, without cleaning up.

  An orderly exit would wait for the other processes, which wait for this one in
  a collective. Without it JAX ends them.
  """
  try:
    sys.stdout.flush()
  except OSError:
    console.close(sys.stdout)
  if startup.process_count() == 1:
    sys.exit(status)
  _leave_now(status)


def _leave_now(status: int) -> None:
  for stream in filter(None, (sys.stdout, sys.stderr)):
    with contextlib.suppress(OSError):
      stream.flush()
  os._exit(status)
