"""Two trainings, one workdir: the second is refused, the first unharmed."""

import os
import signal

import pytest
import runner

pytestmark = pytest.mark.slow


def refused(output):
  """The sentences that processes ended with."""
  return [line for line in output.splitlines() if "is in use by" in line]


def test_the_second_is_refused_and_the_first_goes_on(start, unbroken, tmp_path):
  workdir = tmp_path / "run"
  with start(workdir) as first:
    first.until_step(3)
    os.kill(first.process.pid, signal.SIGSTOP)  # it does not end meanwhile
    with start(workdir) as second:
      (line,) = refused(second.end(2))
    with start(workdir, processes=2, devices=1) as second:
      lines = refused(second.end(2))
    os.kill(first.process.pid, signal.SIGCONT)
    first.end()
  assert f"error: workdir {workdir} is in use by process" in line
  assert f" {first.process.pid} on " in line
  assert len(lines) == 2  # one a process
  assert all(f" {first.process.pid} on " in each for each in lines)
  assert runner.metrics(workdir) == runner.metrics(unbroken(1, 2))


def test_one_that_was_killed_locks_nobody_out(start, tmp_path):
  """Also while its workers, which it could not end, still live."""
  workdir, workers = tmp_path / "run", "--config.data.num_workers=1"
  with start(workdir, workers) as first:
    first.until_step(6)
    (worker,) = first.workers()
    os.kill(worker, signal.SIGSTOP)  # so that it cannot follow
    first.process.kill()
    first.process.wait()
    with start(workdir) as second:
      second.until("fashion_mini: ")
      assert runner.alive(worker)
      second.process.kill()
    os.kill(worker, signal.SIGCONT)
    assert runner.gone([worker], within=30)
