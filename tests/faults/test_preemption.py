"""Notices of preemption: one common step saved, status 0 (faults 4, 11)."""

import os
import signal
import time

import numpy as np
import pytest
import runner

pytestmark = pytest.mark.slow


def preempted_at(output):
  """The step that all processes name; asserts that they agree."""
  lines = [line for line in output.splitlines() if "preempted: " in line]
  steps = {line.partition("the state of step ")[2].split()[0] for line in lines}
  assert len(steps) == 1, output
  return int(steps.pop()), len(lines)


def test_in_training_and_in_an_evaluation(start, unbroken, tmp_path):
  workdir = tmp_path / "run"
  with start(workdir, processes=2, devices=1) as training:
    training.until_step(7)
    os.kill(training.trainers()[1], signal.SIGTERM)
    output = training.end(0, timeout=600)  # seconds where the cores are free
  step, processes = preempted_at(output)
  assert processes == 2
  assert step >= 7
  assert max(runner.saved_steps(workdir)) == step
  assert f"saved the checkpoint of step {step}" in output

  slowly = {"FAULT": "slow_eval"}
  with start(workdir, processes=2, devices=1, env=slowly) as training:
    training.until("evaluating")
    os.kill(training.trainers()[0], signal.SIGTERM)
    output = training.end(0)
  assert f"resumed from the checkpoint of step {step}" in output
  assert preempted_at(output) == (30, 2)
  assert "eval_top1" not in runner.metrics(workdir)[30]

  with start(workdir, processes=2, devices=1) as training:
    output = training.end(0)
  assert "resumed from the checkpoint of step 30" in output
  found, wanted = runner.metrics(workdir), runner.metrics(unbroken(1, 2))
  # The evaluation that was cut short was made up for.
  for step in (30, 60):
    assert wanted[step]["eval_top1"] == found[step]["eval_top1"]
  assert sorted(found) == sorted(wanted) == list(range(1, 61))
  np.testing.assert_allclose(
    [found[i]["loss"] for i in found],
    [wanted[i]["loss"] for i in found],
    rtol=1e-5,
  )


def test_while_it_compiles(start, tmp_path):
  workdir = tmp_path / "run"
  with start(workdir, cache=tmp_path / "cache") as training:
    training.until("fashion_mini: ")
    training.process.send_signal(signal.SIGTERM)
    output = training.end(0)
  assert preempted_at(output) == (0, 1)
  assert runner.saved_steps(workdir) == [0]
  with start(workdir, "--config.run.epochs=3.0") as training:
    training.until_step(1)
    assert "resumed from the checkpoint of step 0" in training.output


def test_twice_and_to_the_whole_group_with_workers(start, unbroken, tmp_path):
  workdir, workers = tmp_path / "run", "--config.data.num_workers=1"
  with start(workdir, workers) as training:
    training.until_step(7)
    read = training.workers()
    assert len(read) == 1
    os.killpg(training.process.pid, signal.SIGTERM)
    time.sleep(0.2)
    os.killpg(training.process.pid, signal.SIGTERM)
    output = training.end(0)
    assert runner.gone(read, within=120)
  step, _ = preempted_at(output)
  assert max(runner.saved_steps(workdir)) == step
  with start(workdir) as training:
    training.end(0)
  assert runner.metrics(workdir) == runner.metrics(unbroken(1, 2))
