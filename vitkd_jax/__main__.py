"""The console script `vitkd`: `vitkd NAME` is `python -m vitkd_jax.NAME`."""

import platform
import runpy
import sys

import vitkd_jax
from vitkd_jax import check

COMMANDS = {
  "prepare": "write a dataset that trainings read",
  "doctor": "check a config, its data and its teachers before a training",
  "train": "train a student; the same command resumes",
  "pack": "train several students at once, with one pass of their teacher",
  "report": "compare runs in tables and figures",
  "lab": "train arms over seeds, and say what they show",
  "evaluate": "score weights on a dataset",
  "inspect": "show what a model's maps look like, and which it lacks",
  "convert": "write weights as another library has them",
}


def main() -> None:
  """Runs the command that the first argument names."""
  given = sys.argv[1:]
  if not given or given[0] in ("-h", "--help", "help"):
    print(_usage(), file=sys.stdout if given else sys.stderr)
    sys.exit(0 if given else 2)
  if given[0] == "--version":
    print(_versions())
    return
  if given[0] == "--completion":
    from vitkd_jax.commandline import completion

    print(completion.script(COMMANDS))
    return
  name = given[0]
  if name not in COMMANDS:
    print(
      f"error: expected a command, got {name!r}; "
      f"{check.nearest(name, COMMANDS)}",
      file=sys.stderr,
    )
    sys.exit(2)
  sys.argv[1:] = given[1:]
  # As its own main module, which worker processes import by its name.
  runpy.run_module(f"vitkd_jax.{name}", run_name="__main__", alter_sys=True)


def _usage() -> str:
  width = max(map(len, COMMANDS))
  lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
  return "\n".join(
    [
      "usage: vitkd COMMAND ...",
      "       vitkd COMMAND --help",
      "       vitkd --version",
      "       vitkd --completion   shell code, see its first line",
      "",
      *lines,
    ]
  )


def _versions() -> str:
  import jax

  from vitkd_jax.cluster import startup
  from vitkd_jax.data import datasets

  try:
    kinds = sorted({device.device_kind for device in jax.devices()})
    devices = f"{jax.device_count()} device(s): {', '.join(kinds)}"
  except Exception as error:
    # Which version it is, is asked for most where nothing works.
    devices = startup.without_device(error)
    if not devices:
      raise
  return (
    f"vitkd_jax {vitkd_jax.__version__}, jax {jax.__version__}, Python "
    f"{platform.python_version()}\n"
    f"{devices}\n"
    f"datasets: the package's own, and {datasets.default_data_dir()}"
  )


if __name__ == "__main__":
  main()
