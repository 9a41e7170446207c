r"""Trains a student, alone or with a frozen teacher.

  python -m vitkd_jax.train --config configs/quickstart.py:method=both \
      --workdir runs/both --config.run.epochs=3

The workdir gets config.json, metrics.jsonl, TensorBoard events, checkpoints/
and, at the end, student.safetensors. The same command resumes a stopped run.
"""

from collections.abc import Sequence

from absl import flags
import jax
import ml_collections

from vitkd_jax import errors
from vitkd_jax.cluster import allocator, console, preemption, startup
from vitkd_jax.commandline import command
from vitkd_jax.runs import workdir as workdirs
from vitkd_jax.training import session


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  *,
  keep_compiled: bool = False,
) -> dict[str, float]:
  """Trains to the end, resuming the run in the workdir if there is one.

  Args:
    config: see `experiment.build`.
    workdir: a folder shared by all processes, made if necessary.
    keep_compiled: cache compiled programs in the workdir for the next start;
      applies to the rest of the process.

  Returns:
    The last evaluation: {"eval_top1": ..., ...}.

  Raises:
    command.RefusedError: the config is wrong, or the workdir holds another run
      or is in use.
    errors.FailedError: too many consecutive updates were not finite, the input
      failed, or a checkpoint could not be written.
    errors.PreemptedError: the run was told to stop; the state is saved.
  """
  start = session.Start(config, workdir, command.line(), keep_compiled)
  (end,) = session.train([start])
  if isinstance(end, Exception):
    raise end
  return end


def main(argv: Sequence[str]) -> None:
  """The command line.

  Args:
    argv: the program's name.
  """
  del argv
  workdir = flags.FLAGS.workdir
  command.require("workdir", workdir)
  console.hush_repeats()
  allocator.keep_memory()
  with preemption.listening():
    command.join()
    train(command.config(), workdir, keep_compiled=True)
    if flags.FLAGS.cleanup:
      _clean_up(workdir)


def _clean_up(workdir: str) -> None:
  """Deletes what the run has written, once no process writes any more."""
  startup.meet("cleanup")
  if jax.process_index() > 0:
    return
  try:
    left = workdirs.delete(workdir)
  except OSError as error:
    raise errors.FailedError(
      f"the run has ended, but --cleanup cannot delete {workdir}: {error}"
    ) from error
  kept = f" but {', '.join(left[:5])}, which it did not write" if left else ""
  print(f"deleted everything in {workdir}{kept}")


def define_flags() -> None:
  """Defines the options of the command line, but for the config's."""
  command.define_path("workdir", None, "folder of the run, local or gs://")
  flags.DEFINE_boolean(
    "cleanup", False, "delete what the run has written once it has ended well"
  )
  command.define_join()


if __name__ == "__main__":
  define_flags()
  command.run(main, with_config=True)
