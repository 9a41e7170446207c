"""Who dies with whom, and what is left (faults 8, 9, 10, 13, 16, 17)."""

import os
import pathlib
import signal
import socket
import time

import pytest
import runner

pytestmark = pytest.mark.slow


def free_port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def test_a_peer_that_dies_ends_the_other(start, tmp_path):
  """Without a launcher: JAX's heartbeat alone."""
  address = f"--coordinator=127.0.0.1:{free_port()}"
  env = {"HEARTBEAT": "8"}
  options = (address, "--num_processes=2", "--config.run.epochs=300.0")
  with (
    start(
      tmp_path / "run", *options, "--process_id=0", devices=1, env=env
    ) as first,
    start(
      tmp_path / "run", *options, "--process_id=1", devices=1, env=env
    ) as second,
  ):
    first.until_step(3)
    second.process.kill()
    assert first.process.wait(300) != 0
    assert not runner.alive(first.process.pid)


def test_the_launcher_ends_the_others(start, tmp_path):
  """And until then process 0's clock decides when all of them save."""
  options = (
    "--config.run.epochs=300.0",
    "--config.run.checkpoint_every=0",
    "--config.run.checkpoint_minutes=0.001",
  )
  with start(tmp_path / "run", *options, processes=2, devices=1) as training:
    training.until("saved the checkpoint of step")
    trainers = training.trainers()
    assert len(trainers) == 2
    os.kill(trainers[1], signal.SIGKILL)
    training.end(128 + signal.SIGKILL, timeout=300)
    assert runner.gone(trainers, within=30)


def test_one_that_comes_late_to_the_first_step_is_waited_for(start, tmp_path):
  with start(
    tmp_path / "run",
    "--config.run.epochs=1.0",
    processes=2,
    devices=2,
    env={"FAULT": "late:0"},
  ) as training:
    training.end()


def test_one_that_hangs_ends_all_with_its_stacks(start, tmp_path):
  workdir = tmp_path / "run"
  with start(
    workdir,
    "--config.run.step_timeout=30.0",
    processes=2,
    devices=1,
    env={"FAULT": "sleep:8"},
  ) as training:
    training.until_step(6)
    output = training.end(1)
  assert "was stuck in step" in output
  stacks = (workdir / "stacks-process-1.txt").read_text()
  assert "trainer.py" in stacks  # which sleeps
  assert "_noted" in stacks
  assert "loop.py" in stacks
  assert stacks.count("most recent call first") > 3  # of all threads


def shared_memory():
  """Names in /dev/shm; nothing else on this machine should make some now."""
  return set(os.listdir("/dev/shm"))


def test_workers_and_trainers_die_together(start, unbroken, tmp_path):
  workdir, workers = tmp_path / "run", "--config.data.num_workers=1"
  before = shared_memory()
  with start(workdir, workers) as training:
    training.until_step(6)
    (worker,) = training.workers()
    os.kill(worker, signal.SIGKILL)
    output = training.end(1, timeout=300)
  assert "\nerror: the input stopped: " in output
  assert "Traceback" not in output

  with start(workdir, workers) as training:
    training.until_step(12)
    (worker,) = training.workers()
    os.kill(training.process.pid, signal.SIGKILL)
    assert runner.gone([worker], within=120)
    # Within the context, which ends Python's resource tracker, too.
    deadline = time.monotonic() + 120
    while shared_memory() - before and time.monotonic() < deadline:
      time.sleep(0.1)
    assert not shared_memory() - before

  with start(workdir) as training:
    assert "resumed from the checkpoint of step" in training.end()
  assert runner.metrics(workdir) == runner.metrics(unbroken(1, 2))


def test_a_full_disk_is_told_within_one_save(start, unbroken, tmp_path):
  workdir = tmp_path / "run"
  with start(workdir, env={"FAULT": "full:8"}) as training:
    output = training.end(1)
  assert "\nerror: a checkpoint could not be written" in output
  assert "Traceback" not in output
  assert runner.saved_steps(workdir) == [5]
  assert "saved the checkpoint of step 5" in output
  assert "saved the checkpoint of step 10" not in output
  assert max(runner.losses(workdir)) <= 15
  with start(workdir) as training:  # somebody made room
    assert "resumed from the checkpoint of step 5" in training.end()
  assert runner.metrics(workdir) == runner.metrics(unbroken(1, 2))


def test_a_full_disk_is_told_within_one_log(start, unbroken, tmp_path):
  workdir = tmp_path / "run"
  with start(workdir, env={"FAULT": "tight:8"}) as training:
    output = training.end(1)
  *_, last = output.splitlines()
  assert last.startswith("error: cannot read or write a file of the run: ")
  assert "Traceback" not in output
  assert max(runner.losses(workdir)) <= 10
  with start(workdir) as training:
    assert "resumed from the checkpoint of step 5" in training.end()
  assert runner.metrics(workdir) == runner.metrics(unbroken(1, 2))


@pytest.mark.parametrize(
  "redirect, told",
  [
    (">/dev/full 2>&1", "No space left on device"),
    ("> >(true) 2>&1", "Broken pipe"),
    ("<&- >&- 2>&-", None),
  ],
)
def test_a_run_outlives_its_console(start, unbroken, tmp_path, redirect, told):
  workdir = tmp_path / "run"
  with start(workdir, redirect=redirect) as training:
    training.end()
  assert runner.metrics(workdir) == runner.metrics(unbroken(1, 2))
  log = (workdir / "train.log").read_text()
  assert "student written to" in log
  assert ("lost the console" in log) == bool(told)
  assert (told or "") in log


def test_a_missing_process_is_named(start, tmp_path):
  address = f"--coordinator=127.0.0.1:{free_port()}"
  options = (address, "--num_processes=3", "--join_timeout=60")
  with (
    start(tmp_path / "run", *options, "--process_id=0") as first,
    start(tmp_path / "run", *options, "--process_id=2") as third,
  ):
    said = [training.end(1, timeout=300) for training in (first, third)]
  for output in said:
    assert "timed out after 60 s" in output
    assert "waiting for 1 of 3 processes: 1;" in output
  assert not pathlib.Path(tmp_path / "run").exists()
