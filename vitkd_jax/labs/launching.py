"""Trains the runs of a lab, some at a time, each or each pack in a process."""

import collections
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import datetime
import itertools
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from typing import Any

from vitkd_jax.labs import machine, plan, records
from vitkd_jax.runs import lock

_Pack = tuple[plan.Run, ...]

# Between two looks at the runs' progress.
_LOOK_SECONDS = 5.0


@dataclasses.dataclass
class _Child:
  """A process, of one training or of several side by side."""

  runs: _Pack
  slot: int
  process: subprocess.Popen
  waiter: threading.Thread
  output: Any
  began: float
  earlier: dict[plan.Run, float]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a lab's trainings ended.

  Attributes:
    failed: {run: why} of those that failed.
    left: runs that were not started, or that were told to stop.
    stopped: number of the signal that told the lab to stop; None without.
  """

  failed: dict[plan.Run, str]
  left: tuple[plan.Run, ...]
  stopped: int | None = None


def train(
  runs: Sequence[plan.Run],
  *,
  jobs: int,
  say: Callable[[str, bool], None],
  budget: float | None = None,
  pack: int = 1,
  together: Callable[[plan.Run, plan.Run], bool] = lambda one, other: False,
) -> Outcome:
  """Trains runs to their ends.

  SIGTERM, SIGINT and SIGHUP go to the trainings, which save their states. If
  the lab itself is killed, its trainings go on, and the next start waits for
  them.

  Args:
    runs: to train, in this order; finished ones are passed over.
    jobs: number of trainings at a time.
    say: gets the state of the lab, a line, and whether a run has ended since
      the last one.
    budget: seconds; no run is started that would not end in time, and no seed
      whose runs would not all end in time. None for no bound.
    pack: number of trainings in a process, side by side.
    together: whether two runs can be side by side.
  """
  return _Launcher(runs, jobs, say, budget, pack, together).run()


class _Launcher:
  """The trainings of a lab that wait, run and have ended."""

  def __init__(
    self,
    runs: Sequence[plan.Run],
    jobs: int,
    say: Callable[[str, bool], None],
    budget: float | None,
    pack: int,
    together: Callable[[plan.Run, plan.Run], bool],
  ):
    self._pack, self._together = pack, together
    self._all, self._jobs, self._say = runs, jobs, say
    self._deadline = None if budget is None else time.monotonic() + budget
    # Of the finished runs; asking for each at every look would be slow on gs://.
    self._times: dict[plan.Run, float | None] = {}
    self._waiting = collections.deque(r for r in runs if not self._done(r))
    self._running: dict[_Pack, _Child] = {}
    self._ended: queue.SimpleQueue[_Pack | None] = queue.SimpleQueue()
    self._failed: dict[plan.Run, str] = {}
    self._left: list[plan.Run] = []
    # Those of the waiting runs that another process trains.
    self._held: list[plan.Run] = []
    self._signal: int | None = None
    self._said: Any = None

  def run(self) -> Outcome:
    with self._signals():
      try:
        self._start_some()
        while self._running or self._waiting:
          self._tell()
          try:
            ended = self._ended.get(timeout=_LOOK_SECONDS)
          except queue.Empty:
            ended = None
          if ended is not None:
            self._end(ended)
          self._start_some()
      finally:
        for child in self._running.values():  # after an error of our own
          child.process.send_signal(signal.SIGTERM)
    self._tell()
    return Outcome(
      failed=self._failed,
      left=tuple(self._left),
      stopped=self._signal,
    )

  @contextlib.contextmanager
  def _signals(self) -> Iterator[None]:
    """A context in which signals go to the trainings."""

    def stop(number: int, _: Any) -> None:
      self._signal = number
      for child in list(self._running.values()):
        child.process.send_signal(number)
      self._ended.put(None)  # so that the loop looks at once

    previous = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's
        previous[number] = signal.signal(number, stop)
    try:
      yield
    finally:
      for number, handler in previous.items():
        signal.signal(number, handler)

  def _done(self, run: plan.Run) -> bool:
    if run not in self._times and plan.finished(run):
      self._times[run] = records.seconds(run)
    return run in self._times

  def _start_some(self) -> None:
    held = self._held = []
    while self._waiting and len(self._running) < self._jobs:
      if self._signal is not None or not self._fits(self._waiting[0]):
        self._left += self._waiting
        self._waiting.clear()
        break
      run = self._waiting.popleft()
      if self._done(run):  # by another process in the meantime
        continue
      if lock.is_held(run.workdir):
        held.append(run)
        continue
      self._start((run, *self._beside(run)))
    self._waiting.extend(held)

  def _beside(self, run: plan.Run) -> list[plan.Run]:
    """Takes those that are to be trained beside a run."""
    found: list[plan.Run] = []
    for other in list(self._waiting):
      if len(found) + 1 >= self._pack:
        break
      if (
        self._together(run, other)
        and not self._done(other)
        and not lock.is_held(other.workdir)
        and self._fits(other, (run, *found))
      ):
        found.append(other)
        self._waiting.remove(other)
    return found

  def _fits(self, run: plan.Run, beside: _Pack = ()) -> bool:
    """Whether the budget is enough for a run, and for all of its seed."""
    if self._deadline is None:
      return True
    left = self._deadline - time.monotonic()
    if left <= 0:
      return False
    needed = records.expected(run, self._times)
    # Beside others it ends when they do.
    if needed is not None and needed * (1 + len(beside)) > left:
      return False
    # The first seed is trained as far as the time goes.
    begun = [*beside, *itertools.chain(*self._running)]
    if run.seed == 0 or any(r.seed == run.seed for r in begun):
      return True
    if any(r.seed == run.seed for r in self._times):
      return True
    same = [r for r in self._waiting if r.seed == run.seed]
    times = [records.expected(r, self._times) or 0.0 for r in same]
    return sum(times) / self._jobs <= left

  def _start(self, runs: _Pack) -> None:
    slot = min(
      set(range(self._jobs)) - {c.slot for c in self._running.values()}
    )
    output = tempfile.TemporaryFile()  # noqa: SIM115, closed at its end
    earlier = {r: records.record(r).get("seconds") or 0.0 for r in runs}
    with machine.cores(slot, self._jobs):
      process = subprocess.Popen(
        plan.command(runs),
        env={**os.environ, **machine.device(slot, self._jobs)},
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        # A terminal's Ctrl-C comes to us alone, so that each gets it once.
        process_group=0,
      )

    def wait() -> None:
      process.wait()
      self._ended.put(runs)

    waiter = threading.Thread(target=wait, daemon=True)
    self._running[runs] = _Child(
      runs, slot, process, waiter, output, time.monotonic(), earlier
    )
    waiter.start()
    if self._signal is not None:  # it came while the process started
      process.send_signal(self._signal)

  def _end(self, runs: _Pack) -> None:
    child = self._running.pop(runs)
    child.waiter.join()
    spent = (time.monotonic() - child.began) / len(runs)
    child.output.seek(0)
    said = child.output.read().decode(errors="replace").splitlines()
    child.output.close()
    for run in runs:
      records.add(run, child.earlier[run] + spent)
      self._conclude(run, child, said)

  def _conclude(
    self, run: plan.Run, child: _Child, said: Sequence[str]
  ) -> None:
    """Finds out how a run of a process has ended."""
    status = child.process.returncode
    # In a pack others may have failed.
    if (status == 0 or len(child.runs) > 1) and self._done(run):
      return
    if status == 0 or self._signal is not None:  # it has saved its state
      self._left.append(run)
      return
    why = _why(said, status, run)
    if lock.IN_USE in why:  # another process was quicker
      self._waiting.append(run)
      return
    self._failed[run] = why
    if status == 2:  # refused, as its arm's other seeds would be
      same = [r for r in self._waiting if r.arm == run.arm]
      self._failed |= dict.fromkeys(same, why)
      for other in same:
        self._waiting.remove(other)

  def _tell(self) -> None:
    done = len(self._times)
    parts = [f"{done} of {len(self._all)} runs done"]
    if self._failed:
      parts.append(f"{len(self._failed)} failed")
    for run in itertools.chain(*self._running):
      parts.append(f"{run}{records.progress(run)}")
    if self._held:
      parts.append(f"{self._held[0]} is being trained by another process")
    if left := self._time_left():
      parts.append(f"{left} left")
    ended = done, len(self._failed), len(self._left)
    self._say(", ".join(parts), ended != self._said)
    self._said = ended

  def _time_left(self) -> str:
    if not self._running and not self._waiting:
      return ""
    total = 0.0
    began = {r: child for runs, child in self._running.items() for r in runs}
    for run in (*began, *self._waiting):
      needed = records.expected(run, self._times)
      if needed is None:
        return ""
      spent = 0.0
      if child := began.get(run):
        spent = (time.monotonic() - child.began) / len(child.runs)
      total += max(needed - spent, 0.0)
    return str(datetime.timedelta(seconds=round(total / self._jobs)))


def _why(said: Sequence[str], status: int, run: plan.Run) -> str:
  """The last error that a process printed of a run, or its last line."""
  lines = [line for line in said if line.strip()]
  found = [line for line in lines if line.startswith("error: ")]
  own = f"error: {run.workdir}: "
  if mine := [line for line in found if line.startswith(own)]:
    return mine[-1].removeprefix(own)
  last = (found or lines or [""])[-1].removeprefix("error: ")
  return last or f"ended with exit status {status} and said nothing"
