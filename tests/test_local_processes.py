"""The launcher: numbers, lines, signals and statuses of its processes."""

import contextlib
import os
import pathlib
import runpy
import signal
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "launch" / "local_processes.py"

# The script with signals as in a terminal: nohup and background jobs ignore
# some of them, and what they start does, too.
PLAIN = """
import runpy, signal, sys
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
  signal.signal(number, signal.SIG_DFL)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextlib.contextmanager
def start(code, *options, processes=3):
  """The launcher, which does not outlive the block."""
  with subprocess.Popen(
    [
      sys.executable,
      "-c",
      PLAIN,
      str(SCRIPT),
      str(processes),
      *options,
      "--",
      "-c",
      code,
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env={**os.environ, "XLA_FLAGS": "--other=1"},
  ) as process:
    try:
      yield process
    finally:
      process.terminate()  # killed, it would leave its children


def finish(code, *options, **more):
  """Exit status and output of a launcher that ends of itself."""
  with start(code, *options, **more) as process:
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def test_each_gets_its_number_and_prints_with_it():
  code = """
import os
print("first")
print(os.environ["JAX_PROCESS_ID"], os.environ["JAX_NUM_PROCESSES"],
      os.environ["XLA_FLAGS"], os.environ["JAX_COORDINATOR_ADDRESS"])
print(os.getpgrp() == os.getpid())  # out of reach of a terminal's Ctrl-C
"""
  status, output = finish(code, "--devices=4", "--port=1234")
  assert status == 0
  flags = "--other=1 --xla_force_host_platform_device_count=4"
  assert sorted(output.splitlines()) == sorted(
    line
    for i in range(3)
    for line in (
      f"[{i}] first",
      f"[{i}] {i} 3 {flags} 127.0.0.1:1234",
      f"[{i}] True",
    )
  )


def test_one_failure_ends_all_with_its_status():
  code = """
import os, signal, sys
if os.environ["JAX_PROCESS_ID"] == "1":
  sys.exit(7)
signal.pause()
"""
  status, output = finish(code)
  assert status == 7, output


# A blocked signal is kept until it is waited for, whenever it comes.
WAITS = """
import signal, sys
awaited = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
print("ready", flush=True)
print("caught", signal.sigwait(awaited).name, flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_goes_to_all(name):
  with start(WAITS) as process:
    lines = [process.stdout.readline() for _ in range(3)]
    assert all("ready" in line for line in lines), lines
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=600)
  assert process.returncode == 0
  assert sorted(output.splitlines()) == [
    f"[{i}] caught {name}" for i in range(3)
  ]


def test_a_signal_that_comes_before_the_last_child_reaches_it(monkeypatch):
  """The second child's start is where the signal comes."""
  launcher = runpy.run_path(str(SCRIPT))
  popen, started = subprocess.Popen, []

  def signalled(*args, **options):
    if len(started) == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    started.append(popen(*args, **options))
    return started[-1]

  monkeypatch.setattr(subprocess, "Popen", signalled)
  status = launcher["main"](["3", "--", "-c", "import signal; signal.pause()"])
  assert [child.returncode for child in started] == [-signal.SIGTERM] * 3
  assert status == 128 + signal.SIGTERM


def test_dry_run_starts_nothing(tmp_path):
  status, output = finish(f"open({str(tmp_path / 'file')!r}, 'w')", "--gpus",
                          "--dry-run", "--port=9", processes=2)  # fmt: skip
  assert status == 0
  assert [
    line.count("CUDA_VISIBLE_DEVICES=") for line in output.splitlines()
  ] == [
    1,
    1,
  ]
  assert "CUDA_VISIBLE_DEVICES=1 " in output.splitlines()[1]
  assert not list(tmp_path.iterdir())
