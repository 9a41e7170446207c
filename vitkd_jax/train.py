r"""Trains a student, alone or with a frozen teacher.

  python -m vitkd_jax.train --config configs/quickstart.py:method=both \
      --workdir runs/both --config.run.epochs=3

The workdir gets config.json, metrics.jsonl, TensorBoard events, checkpoints/
and, at the end, student.safetensors. The same command resumes a stopped run.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import os
from typing import Any

from absl import flags
import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np

from vitkd_jax import errors, remote, weights
from vitkd_jax.cluster import (
  allocator,
  compiler,
  console,
  preemption,
  sharding,
  startup,
  watchdog,
)
from vitkd_jax.commandline import command
from vitkd_jax.data import preprocess
from vitkd_jax.runs import checkpoint, history, lock, reading
from vitkd_jax.runs import metrics as writers
from vitkd_jax.runs import workdir as workdirs
from vitkd_jax.training import (
  defaults,
  experiment,
  inputs,
  loop,
  profiling,
  teachers,
)
from vitkd_jax.training import fields as student_fields
from vitkd_jax.training import state as states
from vitkd_jax.weights import files, saving

# Longest refusal that process 0 broadcasts, in bytes.
_MOST_BYTES = 2048


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
  with contextlib.ExitStack() as stack:
    with command.refusing():
      config = defaults.completed(config)
      config, notes = reading.carried_on(workdir, config)
      parts = experiment.build(config, **_earlier(workdir))
      if isinstance(parts.inputs, inputs.Inputs):
        parts.inputs.open()
      _claim(workdir, config, parts, stack)
    try:
      compiling = _keep_compiled(workdir, stack) if keep_compiled else None
      return _train(
        config, workdir, parts, notes, compiling or contextlib.nullcontext
      )
    except OSError as error:  # a full disk, a share that went away
      raise errors.FailedError(
        f"cannot read or write a file of the run: {error}; its checkpoints are "
        "intact"
      ) from error


def _train(
  config: ml_collections.ConfigDict,
  workdir: str,
  parts: experiment.Experiment,
  notes: Sequence[str],
  compiling: Callable[[], contextlib.AbstractContextManager],
) -> dict[str, float]:
  """Trains in a workdir that this run has claimed."""
  checkpoints = checkpoint.Checkpoints(
    workdirs.checkpoint_dir(workdir), keep=parts.run.keep
  )
  dog = watchdog.Watchdog(workdir, jax.process_index(), parts.run.step_timeout)
  with dog, checkpoints:
    with command.refusing():
      restored = checkpoints.restore(
        parts.state_shapes(), parts.state_shardings()
      )
      if restored is None and parts.start is not None:
        parts.start.params()
    state = parts.create_state() if restored is None else restored.state
    first_step = _agreed(int(state.step))
    with writers.Writer(
      workdir,
      first_step=first_step,
      total_steps=parts.total_steps,
      tracker=parts.run.tracker,
      config=config.to_dict(),
      quiet=jax.process_index() > 0,
    ) as writer:
      writer.line(_headline(parts, state))
      for note in notes:
        writer.line(note)
      for name, said in parts.teacher_notes.items():
        for note in said:
          path = config.teachers[name].weights
          writer.line(f"teacher {path}: {note}")
      if parts.start is not None and restored is None:
        begun = parts.start
        for note in (f"{begun.pin}", *begun.notes):
          writer.line(f"student starts from {begun.keys.init}: {note}")
      if restored is not None:
        writer.line(f"resumed from the checkpoint of step {first_step}")
      if 0 < parts.run.profile_at <= first_step:
        writer.line(f"no trace: step {parts.run.profile_at} is already done")
      profile = profiling.Profile(
        workdir,
        parts.run.profile_at if jax.process_index() == 0 else 0,
        writer.line,
      )
      with profile:
        state, result = loop.Loop(
          parts, checkpoints, writer, dog, profile, compiling
        ).run(
          state,
          saved=restored is not None,
          evaluated=restored is None or restored.evaluated,
        )
      dog.beat("the export", long=True)
      path = _export(workdir, config, parts, state)
      writer.line(f"student written to {path}")
  return result


def _earlier(workdir: str) -> dict[str, Any]:
  """What `experiment.build` takes of the earlier starts of a run."""
  record = reading.record(workdir) or {}
  pins, init = record.get("teachers") or {}, record.get("init")
  return dict(
    pinned={name: teachers.Pin(**pin) for name, pin in pins.items()},
    started=teachers.Pin(**init) if init else None,
    resumes=workdirs.has_checkpoint(workdir),
  )


def _claim(
  workdir: str,
  config: ml_collections.ConfigDict,
  parts: experiment.Experiment,
  stack: contextlib.ExitStack,
) -> None:
  """Claims the workdir for this run until `stack` closes."""
  claim = functools.partial(
    workdirs.claim,
    workdir,
    config,
    {name: dataclasses.asdict(x) for name, x in parts.teacher_pins.items()},
    command.line(),
    init=dataclasses.asdict(parts.start.pin) if parts.start else None,
    default=defaults.default,
    about={
      "preprocess": dataclasses.asdict(_images(parts)),
      "class_names": parts.info.class_names,
    },
  )
  claim(write=False)
  refusal = ""
  if jax.process_index() == 0:
    try:
      stack.enter_context(lock.hold(workdir))
      claim()
      files.remove_unfinished(workdirs.export_path(workdir))
    except (ValueError, OSError) as error:
      refusal = str(error)
  startup.meet("claim")
  refusal = _said_by_the_first(refusal)
  if refusal:
    raise ValueError(refusal)
  if reading.record(workdir) is None:
    raise ValueError(
      f"process {jax.process_index()} cannot see the config.json that process "
      f"0 wrote to {workdir}: all processes must share the workdir"
    )
  claim(write=False)


def _said_by_the_first(text: str) -> str:
  """Process 0's text, broadcast to every process."""
  if jax.process_count() == 1:
    return text
  content = text.encode()[:_MOST_BYTES].ljust(_MOST_BYTES, b"\0")
  told = multihost_utils.broadcast_one_to_all(np.frombuffer(content, np.uint8))
  return np.asarray(told).tobytes().rstrip(b"\0").decode(errors="ignore")


def _agreed(step: int) -> int:
  """The step to resume from, once every process has found the same."""
  if jax.process_count() == 1:
    return step
  found = np.ravel(multihost_utils.process_allgather(np.int32(step)))
  if (found != step).any():
    raise errors.FailedError(
      f"the processes restored different steps, {found.tolist()}: some cannot "
      "read a checkpoint that others can"
    )
  return step


def _export(
  workdir: str,
  config: ml_collections.ConfigDict,
  parts: experiment.Experiment,
  state: states.TrainState,
) -> str:
  """Writes the student, or its moving average if it has one; the path."""
  student = state.params["student"] if state.ema is None else state.ema
  student = jax.jit(lambda x: x, out_shardings=sharding.replicated(parts.mesh))(
    student
  )
  path = workdirs.export_path(workdir)
  # Restarting a finished run leaves its file, and its hash, as they are.
  if jax.process_index() == 0 and not saving.holds(path, student):
    fields = student_fields.model(config.student.to_dict())
    weights.save(
      path,
      jax.device_get(student),
      variant=fields.pop("variant"),
      format="flat",
      preprocess=_images(parts),
      class_names=parts.info.class_names,
      **fields,
    )
  return path


def _images(parts: experiment.Experiment) -> preprocess.Preprocess:
  assert isinstance(parts.inputs, inputs.Inputs)  # see `train`
  return parts.inputs.eval_images(*parts.objective.student_stats)


def _headline(parts: experiment.Experiment, state: states.TrainState) -> str:
  sizes = {
    name: sum(x.size for x in jax.tree.leaves(tree))
    for name, tree in state.params.items()
  }
  terms = (f"{t} x {w}" for t, w in parts.objective.described().items())
  return (
    f"{parts.info.name}: {parts.total_steps} steps of {parts.run.batch_size} "
    f"images on {parts.mesh.size} {jax.devices()[0].platform} device(s) in "
    f"{jax.process_count()} process(es); student {sizes['student']:,} "
    f"parameters, methods {sizes['methods']:,}; losses {', '.join(terms)}"
  )


def _keep_compiled(
  workdir: str, stack: contextlib.ExitStack
) -> Callable[[], contextlib.AbstractContextManager] | None:
  """Makes the context in which programs compile into the workdir's cache.

  What compiles outside it, as evaluations do, is recorded as `stack` closes.
  """
  # JAX adds its options as attributes at run time.
  folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
  if folder is not None:
    # The user's own, whose other programs are not ours to delete.
    return None
  run = history.identity(reading.record(workdir) or {})
  workdir = remote.absolute(workdir)
  cache = compiler.CompilationCache(
    os.path.join(workdir, "compilation_cache"), run
  )
  stack.callback(cache.record)
  return cache.compiling


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
