"""A start of a run: claims its workdir, trains, exports the student."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import functools
import os
from typing import Any

import jax
import ml_collections

from vitkd_jax import errors, remote, weights
from vitkd_jax.cluster import (
  agreement,
  compiler,
  sharding,
  startup,
  watchdog,
)
from vitkd_jax.data import preprocess
from vitkd_jax.runs import checkpoint, history, lock, reading
from vitkd_jax.runs import metrics as writers
from vitkd_jax.runs import workdir as workdirs
from vitkd_jax.training import (
  defaults,
  experiment,
  feeds,
  inputs,
  loop,
  packing,
  profiling,
  sections,
  teachers,
)
from vitkd_jax.training import fields as student_fields
from vitkd_jax.training.state import TrainState
from vitkd_jax.weights import files, saving


@dataclasses.dataclass(frozen=True)
class Start:
  """A start of a run.

  Attributes:
    config: see `experiment.build`.
    workdir: a folder shared by all processes, made if necessary.
    command: the command line that starts it, to be recorded.
    keep_compiled: cache compiled programs in the workdir for the next start;
      applies to the rest of the process.
  """

  config: ml_collections.ConfigDict
  workdir: str
  command: str
  keep_compiled: bool = False


def train(starts: Sequence[Start]) -> list[dict[str, float] | Exception]:
  """Trains to the ends, resuming the runs in their workdirs.

  Args:
    starts: one, or several in different workdirs that run side by side and
      share images and teachers.

  Returns:
    Of each the last evaluation, {"eval_top1": ..., ...}, or the exception that
    ended it, see `vitkd_jax.train.train`. Of those that do not go with the
    first, a RefusedError.
  """
  if len(starts) == 1:
    own = _Session(starts[0])
    return packing.drive([own.wishes()], own.compiling)
  limits = [
    start.config.run.get("step_timeout", sections.Run.step_timeout)
    for start in starts
  ]
  # A step of theirs takes as long as one of each.
  limit = sum(limits) if all(limits) else 0.0
  with watchdog.Watchdog(starts[0].workdir, 0, limit) as dog:
    pack = packing.Pack(dog)
    sessions = [_Session(start, pack) for start in starts]
    wishes = [own.wishes() for own in sessions]
    return packing.drive(wishes, sessions[0].compiling, dog)


class _Session:
  """A start of a run, alone or in a pack."""

  def __init__(self, start: Start, pack: packing.Pack | None = None):
    self._config, self._workdir = start.config, start.workdir
    self._command, self._keeps = start.command, start.keep_compiled
    self._pack = pack
    self._cache: compiler.CompilationCache | None = None

  @contextlib.contextmanager
  def compiling(self) -> Iterator[None]:
    """The context in which the run's steps compile."""
    if self._cache is None:
      yield
      return
    with self._cache.compiling():
      yield

  def wishes(self) -> packing.Wishes:
    """Trains to the end; returns the last evaluation. See `train`."""
    workdir = self._workdir
    with contextlib.ExitStack() as stack:
      with errors.refusing():
        config = defaults.completed(self._config)
        config, notes = reading.carried_on(workdir, config)
        parts = experiment.build(config, **_earlier(workdir))
        if self._pack is not None:
          parts = self._pack.join(config.to_dict(), parts)
        if isinstance(parts.inputs, inputs.Inputs):
          parts.inputs.open()
        _claim(workdir, config, parts, self._command, stack)
      try:
        if self._keeps:
          self._cache = _keep_compiled(workdir, stack)
        return (yield from self._train(config, parts, notes))
      except OSError as error:  # a full disk, a share that went away
        raise errors.FailedError(
          f"cannot read or write a file of the run: {error}; its checkpoints "
          "are intact"
        ) from error

  def _train(
    self,
    config: ml_collections.ConfigDict,
    parts: experiment.Experiment,
    notes: Sequence[str],
  ) -> packing.Wishes:
    """Trains in a workdir that this run has claimed."""
    workdir, pack = self._workdir, self._pack
    checkpoints = checkpoint.Checkpoints(
      workdirs.checkpoint_dir(workdir), keep=parts.run.keep
    )
    with contextlib.ExitStack() as stack:
      dog = (
        pack.dog
        if pack
        else stack.enter_context(
          watchdog.Watchdog(
            workdir, jax.process_index(), parts.run.step_timeout
          )
        )
      )
      stack.enter_context(checkpoints)
      with errors.refusing():
        restored = checkpoints.restore(
          parts.state_shapes(), parts.state_shardings()
        )
        if restored is None and parts.start is not None:
          parts.start.params()
      state = parts.create_state() if restored is None else restored.state
      first_step = agreement.agreed(int(state.step))
      with writers.Writer(
        workdir,
        first_step=first_step,
        total_steps=parts.total_steps,
        tracker=parts.run.tracker,
        config=config.to_dict(),
        quiet=jax.process_index() > 0,
        name=_name(workdir) if pack else "",
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
          start_feed = pack.feeds.start if pack else feeds.start
          training = loop.Loop(
            parts, checkpoints, writer, dog, profile, start_feed
          )
          state, result = yield from training.run(
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
  command: str,
  stack: contextlib.ExitStack,
) -> None:
  """Claims the workdir for this run until `stack` closes."""
  claim = functools.partial(
    workdirs.claim,
    workdir,
    config,
    {name: dataclasses.asdict(x) for name, x in parts.teacher_pins.items()},
    command,
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
      refusal = errors.sentence(error)
  startup.meet("claim")
  refusal = agreement.of_the_first(refusal.encode()).decode()
  if refusal:
    raise ValueError(refusal)
  if reading.record(workdir) is None:
    raise ValueError(
      f"process {jax.process_index()} cannot see the config.json that process "
      f"0 wrote to {workdir}: all processes must share the workdir"
    )
  claim(write=False)


def _export(
  workdir: str,
  config: ml_collections.ConfigDict,
  parts: experiment.Experiment,
  state: TrainState,
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


def _headline(parts: experiment.Experiment, state: TrainState) -> str:
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
) -> compiler.CompilationCache | None:
  """The workdir's cache of compiled programs.

  What compiles outside its context, as evaluations do, is recorded as `stack`
  closes.
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
  return cache


def _name(workdir: str) -> str:
  """The last two folders of a run's place, such as "vitkd/seed_0"."""
  return "/".join(workdir.rstrip("/").split("/")[-2:])
