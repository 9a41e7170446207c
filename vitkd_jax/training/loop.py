"""The training loop: steps, with logs, evaluations and saves in between.

It is a generator: `packing` compiles and computes its steps, alone or together
with those of others.

Processes agree on when to save, stop and end by deciding from the step, from
values that the compiled step replicates, or from one process's broadcast, and
never by their own clocks.
"""

from collections.abc import Callable, Generator
import contextlib
import time
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils
import numpy as np

from vitkd_jax import errors
from vitkd_jax.cluster import preemption, sharding, startup, watchdog
from vitkd_jax.evaluation import running
from vitkd_jax.runs import checkpoint
from vitkd_jax.runs import metrics as writers
from vitkd_jax.training import (
  clock,
  experiment,
  failures,
  feeds,
  inspection,
  packing,
  profiling,
  teacher_check,
)
from vitkd_jax.training import state as states

Report = packing.Report


class Loop:
  """Trains from a given state to the end.

  Args:
    parts: the experiment.
    checkpoints: saves states.
    writer: writes metrics and log lines.
    dog: ends a process that makes no progress.
    profile: traces some steps.
    start_feed: starts its input, see `feeds.start`.

  Raises:
    ValueError: the experiment is planned, without images to train on.
  """

  def __init__(
    self,
    parts: experiment.Experiment,
    checkpoints: checkpoint.Checkpoints,
    writer: writers.Writer,
    dog: watchdog.Watchdog,
    profile: profiling.Profile,
    start_feed: Callable[[experiment.Experiment, int], feeds.Feed],
  ):
    self._parts, self._evaluations = parts, feeds.Evaluations(parts)
    self._checkpoints = checkpoints
    self._writer, self._dog, self._profile = writer, dog, profile
    self._start_feed = start_feed
    self._inspection = inspection.Inspection(parts)
    self._eval_step = parts.make_eval_step()
    self._zero_sums = sharding.place(
      jax.device_get(parts.zero_sums()), sharding.replicated(parts.mesh)
    )

  def run(
    self, state: states.TrainState, *, saved: bool, evaluated: bool
  ) -> packing.Wishes:
    """Trains to the end; yields its wishes.

    Args:
      state: initial state; its buffers are donated.
      saved: there is a checkpoint of it.
      evaluated: it needs no evaluation, or has had it.

    Returns:
      The final state, and its evaluation {"eval_top1": ..., ...}.

    Raises:
      errors.PreemptedError: the run was told to stop; the state is saved.
      errors.FailedError: too many consecutive updates were not finite, a
        checkpoint could not be written, or the input failed.
    """
    first_step = int(state.step)
    self._clock = clock.Clock(first_step)
    self._saved_at = time.monotonic()
    self._last_save = first_step if saved else None
    self._in_flight: int | None = None
    self._stop_if_noticed(first_step, state)
    if first_step >= self._parts.total_steps:
      return state, self._evaluate(first_step, state)
    self._dog.beat("the first batch", long=True)
    if self._parts.data.placement == "device":
      number = self._parts.inputs.num_train
      self._writer.line(f"decoding {number:,} images, kept on the devices")
    with contextlib.closing(self._start_feed(self._parts, first_step)) as feed:
      return (yield from self._train(state, first_step, evaluated, feed))

  def _train(
    self,
    state: states.TrainState,
    first_step: int,
    evaluated: bool,
    feed: feeds.Feed,
  ) -> packing.Wishes:
    parts, total = self._parts, self._parts.total_steps
    given = feed.next()
    startup.meet("first batch")
    for name in teacher_check.with_classes(parts) if first_step == 0 else ():
      self._dog.beat("a teacher's accuracy", long=True)
      score = teacher_check.score(
        parts, name, feed.batch(given), parts.run.accumulate
      )
      for line in teacher_check.lines(name, score):
        self._writer.line(line)
    yield from self._compile(first_step, state, given)
    self._stop_if_noticed(first_step, state)
    if not evaluated and clock.due(first_step, parts.run.eval_every, total):
      # The run was stopped while this state was being evaluated.
      result = self._evaluate(first_step, state)
      self._save(first_step, state, result)
    with preemption.saving():
      return (yield from self._steps(state, first_step, given, feed))

  def _steps(
    self,
    state: states.TrainState,
    first_step: int,
    given: Any,
    feed: feeds.Feed,
  ) -> packing.Wishes:
    parts, total = self._parts, self._parts.total_steps
    self._clock = clock.Clock(first_step)
    before: Report | None = None
    result: dict[str, float] | None = None
    for step in range(first_step + 1, total + 1):
      self._dog.beat(f"step {step}", long=step == first_step + 1)
      if self._profile.begins(step):
        jax.block_until_ready(state)  # keep earlier steps out of the trace
        with self._clock.paused():
          self._profile.start()
      if self._inspection.due(step):
        self._dog.beat("a look at the terms", long=True)
        with self._clock.paused():
          self._inspection.look(self._writer, step, state, given)
      answer = yield packing.Wish(parts, step - 1, state, given, computed=True)
      if answer is None:
        self._stop(step - 1, state)
        raise AssertionError("a training that stops raises")
      state, report = answer
      report["skipped"].copy_to_host_async()
      if step < total:
        with self._clock.waiting():
          given = feed.next()
      sharding.limit_dispatch(parts.mesh, before, report)
      # One step late, so that the host never waits for the device.
      self._check_finite(step - 1, before)
      before = report
      if self._profile.ends(step):
        self._end_trace(state)
      result = self._after(step, state, report)
      self._stop_if_noticed(step, state)
    self._check_finite(total, before)
    self._finish_save()
    assert result is not None  # the last step is always evaluated
    return state, result

  def _end_trace(self, state: states.TrainState) -> None:
    """Ends the trace, if one is running, once `state` has been computed."""
    if self._profile.running:
      jax.block_until_ready(state)
      self._dog.beat("the trace", long=True)
      with self._clock.paused():
        self._profile.stop()

  def _after(
    self, step: int, state: states.TrainState, report: Report
  ) -> dict[str, float] | None:
    """Does what is due after a step; an evaluation's result, if it was due."""
    parts, total, result = self._parts, self._parts.total_steps, None
    logs = step == total or step % parts.run.log_every == 0
    if logs:
      self._log(step, report)
    if clock.due(step, parts.run.eval_every, total):
      result = self._evaluate(step, state)
    if clock.due(step, parts.run.checkpoint_every, total) or (
      logs and self._minutes_are_over()
    ):
      self._save(step, state, result)
    elif self._in_flight is not None and not self._checkpoints.busy():
      self._finish_save()
    return result

  def _compile(
    self, step: int, state: states.TrainState, given: Any
  ) -> Generator[packing.Wish, packing.Answer, None]:
    self._dog.beat("compilation", long=True)
    self._writer.line("compiling the step; that of a large model takes minutes")
    began = time.monotonic()
    yield packing.Wish(self._parts, step, state, given, computed=False)
    seconds = time.monotonic() - began
    self._writer.line(f"compiled the step in {seconds:.1f} s")
    self._checkpoints.prepare(state)
    startup.meet("first step")

  def _stop_if_noticed(self, step: int, state: states.TrainState) -> None:
    """Saves and ends the run if it was interrupted or preempted."""
    if preemption.noticed():
      self._stop(step, state)

  def _stop(self, step: int, state: states.TrainState) -> NoReturn:
    """Saves and ends the run."""
    self._dog.beat("the last checkpoint", long=True)
    if self._last_save != step:
      self._save(step, state, None, evaluated=False)
    self._finish_save()
    preemption.stop(f"the state of step {step} is saved")

  def _minutes_are_over(self) -> bool:
    """Whether a checkpoint is due by process 0's clock."""
    minutes = self._parts.run.checkpoint_minutes
    if not minutes:
      return False
    over = time.monotonic() - self._saved_at > 60 * minutes
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(over)))

  def _log(self, step: int, report: Report) -> None:
    report = jax.device_get(report)
    values = {
      name: float(total / count)
      for name, (total, count) in report["metrics"].items()
      if count
    }
    values["skipped_updates"] = float(report["skipped"][0])
    values |= self._clock.read(
      step, self._parts.total_steps, self._parts.run.batch_size
    )
    self._writer.scalars(step, values)
    if "loss" in values:  # at least one update was applied
      self._writer.progress(step, values)

  def _check_finite(self, step: int, report: Report | None) -> None:
    """Logs a skipped update; raises FailedError after too many in a row."""
    if report is None:
      return
    total, row = map(int, jax.device_get(report["skipped"]))
    if not row:
      return
    names = [*self._parts.objective.terms, "gradient"]
    bad = jax.device_get(report["bad"])
    terms = ", ".join(n for n, b in zip(names, bad, strict=True) if b)
    self._writer.line(
      f"step {step}: {terms} became NaN or infinite; skipped the update "
      f"({row} consecutive, {total} in total)"
    )
    if row >= self._parts.run.max_bad_steps:
      self._finish_save()
      raise errors.FailedError(
        f"{terms} became NaN or infinite at step {step}: {row} consecutive "
        "updates skipped (config.run.max_bad_steps); the checkpoints are "
        "intact; lower the learning rate (config.schedule.peak) or that term's "
        "weight, and start in an empty workdir"
      )

  def _evaluate(self, step: int, state: states.TrainState) -> dict[str, float]:
    self._end_trace(state)  # which covers steps only
    models = {"eval": {"student": state.params["student"]}}
    if state.ema is not None:
      models["eval_ema"] = {"student": state.ema}
    with self._clock.paused():
      sums = self._score(models, lambda: self._stop_if_noticed(step, state))
      values = {
        f"{prefix}_{name}": value
        for prefix, found in sums.items()
        for name, value in self._parts.scores(found).items()
      }
      self._writer.scalars(step, values)
      shown = "  ".join(f"{k} {v:.4f}" for k, v in values.items())
      self._writer.line(f"evaluation at step {step}: {shown}")
    return values

  def _score(
    self, models: dict[str, Any], stop: Callable[[], None]
  ) -> dict[str, Any]:
    """The sums for each model's parameters, in one pass over the images."""
    parts, batches = self._parts, self._evaluations.batches()
    self._dog.beat("an evaluation", long=True)
    first = iter([True])

    def after_batch(sums: dict[str, running.Sums]) -> None:
      del sums
      self._dog.beat("an evaluation", long=next(first, False))
      stop()

    with contextlib.closing(batches), failures.reading():
      return running.run(
        self._eval_step,
        self._zero_sums,
        models,
        batches,
        parts.mesh,
        after_batch,
      )

  def _save(
    self,
    step: int,
    state: states.TrainState,
    result: dict[str, float] | None,
    *,
    evaluated: bool = True,
  ) -> None:
    self._end_trace(state)
    top1 = None
    if result is not None:
      top1 = result.get("eval_ema_top1", result["eval_top1"])
    self._finish_save()
    self._dog.beat("a checkpoint", long=True)
    with self._clock.paused(), failures.saving():
      self._checkpoints.save(step, state, top1=top1, evaluated=evaluated)
    self._in_flight = self._last_save = step
    self._saved_at = time.monotonic()

  def _finish_save(self) -> None:
    """Waits for the save in flight, and then logs that it is saved."""
    if self._in_flight is None:
      return
    with self._clock.paused(), failures.saving():
      self._checkpoints.wait()
    self._writer.line(f"saved the checkpoint of step {self._in_flight}")
    self._in_flight = None
