r"""Trains several students at once, which share images and teachers.

  python -m vitkd_jax.pack \
      -- --config=configs/quickstart.py:method=nkd --workdir=runs/nkd \
      -- --config=configs/quickstart.py:method=both --workdir=runs/both

After each "--" come the options of a training, as vitkd_jax.train takes them.
Every step reads its images once and applies each teacher once, for all of them;
otherwise each is the run that it would be alone, with its own workdir, and can
be gone on with alone. They must agree in config.data, config.augment, the seed,
the batch and what they say of a teacher.

Exit status: 0 if all have ended or after SIGTERM, 1 if one failed, 2 if some
were refused and the others ended, 130 after Ctrl-C. A line "error: WORKDIR:
REASON" tells of each that did not end well.
"""

from collections.abc import Iterator, Sequence
import contextlib
import os
import shlex

import jax

from vitkd_jax import errors
from vitkd_jax.cluster import allocator, console, preemption
from vitkd_jax.commandline import arguments, command
from vitkd_jax.training import session


def main(argv: Sequence[str]) -> None:
  """The command line.

  Args:
    argv: the program's name and the trainings, each with "--" before it.
  """
  members = parse(argv[1:])
  console.hush_repeats()
  allocator.keep_memory()
  with preemption.listening():
    command.join()
    if jax.process_count() > 1:
      raise command.RefusedError(
        "expected one process, got "
        f"{jax.process_count()}: students train side by side in one; for every "
        "process a pack of its own, give --num-processes=1"
      )
    _train(members)


def parse(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
  """The trainings of a command line: (workdir, its other options) of each.

  Args:
    argv: the trainings, each but the first with "--" before it.

  Raises:
    command.RefusedError: an option is missing or is not a training's, or two
      trainings have one workdir.
  """
  groups: list[list[str]] = [[]]
  for argument in argv:
    if argument == "--":
      groups.append([])
    else:
      groups[-1].append(argument)
  found: dict[str, list[str]] = {}
  for group in filter(None, groups):
    own = {name: "" for name in ("config", "workdir")}
    overrides = []
    for option in _joined(group):
      name, _, value = option.removeprefix("--").partition("=")
      if name in own and option.startswith("--"):
        own[name] = value
      elif option.startswith("--config."):
        overrides.append(option)
      else:
        raise command.RefusedError(
          "expected --config=FILE, --workdir=DIR or --config.SECTION.KEY=VALUE "
          f'after "--", got {option!r}'
        )
    for name, value in own.items():
      command.require(name, value)
    workdir = os.path.expanduser(own["workdir"])
    if workdir in found:
      raise command.RefusedError(
        f"expected trainings in different workdirs, got {workdir} twice"
      )
    found[workdir] = [own["config"], *overrides]
  if len(found) < 2:
    raise command.RefusedError(
      'expected at least two trainings, each after a "--", got '
      f"{len(found) or 'none'}; see --help"
    )
  return list(found.items())


def _train(members: Sequence[tuple[str, list[str]]]) -> None:
  """Trains them, and says how each has ended that did not end well."""
  starts = []
  for workdir, (file, *overrides) in members:
    with _of(workdir):
      config = arguments.load(file, overrides)
    line = _alone(workdir, (file, *overrides))
    starts.append(session.Start(config, workdir, line, keep_compiled=True))
  ends = session.train(starts)
  bad = {
    workdir: end
    for (workdir, _), end in zip(members, ends, strict=True)
    if isinstance(end, Exception)
  }
  _conclude(bad, len(members))


def _conclude(bad: dict[str, Exception], count: int) -> None:
  """Says how each has ended that did not end well, and raises."""
  stopped = [x for x in bad.values() if isinstance(x, errors.PreemptedError)]
  failed = {name: x for name, x in bad.items() if x not in stopped}
  for workdir, error in failed.items():
    console.complain(f"error: {workdir}: {error}")
  for error in failed.values():
    if not isinstance(error, errors.RefusedError | errors.FailedError):
      raise error  # a bug, or all memory is in use
  if stopped:
    raise errors.PreemptedError(
      "stopped, and the states are saved; the same command resumes",
      stopped[0].status,
    )
  if failed:
    said = f"{len(failed)} of {count} trainings did not end well, see above"
    refused = all(isinstance(x, ValueError) for x in failed.values())
    raise (errors.RefusedError if refused else errors.FailedError)(said)


@contextlib.contextmanager
def _of(workdir: str) -> Iterator[None]:
  """A context whose refusals name the training."""
  try:
    yield
  except command.RefusedError as error:
    raise command.RefusedError(f"{workdir}: {error}") from error


def _joined(options: Sequence[str]) -> list[str]:
  """Options with their values: ["--a", "b"] is ["--a=b"]."""
  found: list[str] = []
  for option in options:
    if found and not option.startswith("-") and "=" not in found[-1]:
      found[-1] += f"={option}"
    else:
      found.append(option)
  return found


def _alone(workdir: str, options: Sequence[str]) -> str:
  """The command line that trains one of them alone."""
  file, *overrides = options
  return shlex.join(
    [
      *("python", "-m", "vitkd_jax.train", f"--config={file}"),
      *(f"--workdir={workdir}", *overrides),
    ]
  )


if __name__ == "__main__":
  command.define_join()
  command.run(main, with_config=False, allow_positional=True)
