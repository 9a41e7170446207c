"""Ctrl-C and a closed terminal: saved, as before a preemption."""

import os
import signal

import pytest
import runner
import test_preemption

pytestmark = pytest.mark.slow


def test_ctrl_c_saves_and_its_status_is_an_interrupts(
  start, unbroken, tmp_path
):
  """To the whole group with its workers, as a terminal sends it."""
  workdir, workers = tmp_path / "run", "--config.data.num_workers=1"
  with start(workdir, workers) as training:
    training.until_step(7)
    os.killpg(training.process.pid, signal.SIGINT)
    output = training.end(130)
  assert (
    "interrupted: saving the state; press Ctrl-C again to exit at once"
    in output
  )
  assert "Traceback" not in output
  said = "interrupted: the state of step "
  step = int(output.partition(said)[2].split()[0])
  assert step >= 7
  assert max(runner.saved_steps(workdir)) == step
  with start(workdir) as training:
    assert f"resumed from the checkpoint of step {step}" in training.end()
  assert runner.metrics(workdir) == runner.metrics(unbroken(1, 2))


def test_ctrl_c_while_it_compiles_leaves_promptly(start, tmp_path):
  with start(tmp_path / "run", cache=tmp_path / "cache") as training:
    training.until("fashion_mini: ")
    training.process.send_signal(signal.SIGINT)
    output = training.end(130)
  assert "error: interrupted" in output
  assert "compiled the step" not in output
  assert "Traceback" not in output


def test_a_closed_terminal_saves_on_all_processes(start, tmp_path):
  workdir = tmp_path / "run"
  # Far longer than the processes take to agree on a step, on whatever machine.
  long = "--config.run.epochs=300.0"
  with start(workdir, long, processes=2, devices=1) as training:
    training.until_step(7)
    os.killpg(training.process.pid, signal.SIGHUP)
    output = training.end(0)
  step, processes = test_preemption.preempted_at(output)
  assert processes == 2
  assert max(runner.saved_steps(workdir)) == step
