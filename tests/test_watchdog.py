"""A process that does not get on ends, and says where it was."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

CODE = """
import ctypes, sys, threading, time
from vitkd_jax.cluster import watchdog
watchdog._GRACE_SECONDS = 5
watchdog._LONG = 99
other = threading.Thread(target=time.sleep, args=(60,), daemon=True)
other.start()
def stuck_here():
  if sys.argv[2] == "python":
    time.sleep(60)
  elif sys.argv[2] == "interpreter":  # holds its lock
    ctypes.PyDLL(None).sleep(60)
seconds = float(sys.argv[3])
with watchdog.Watchdog(sys.argv[1], 3, seconds) as dog:
  dog.beat("compilation", long=True)  # the watch begins with a far deadline
  began, step = time.monotonic(), 0
  while time.monotonic() < began + 1.2 * seconds:  # beyond the limit, in all
    dog.beat(f"step {step}")
    step += 1
    time.sleep(0.05)
  dog.beat("the last step")
  stuck_here()
print("over")
"""


def run(folder, how, seconds):
  return subprocess.run(
    [sys.executable, "-c", CODE, str(folder), how, str(seconds)],
    capture_output=True,
    text=True,
    check=False,
    timeout=600,
  )


def test_stuck_in_python(tmp_path):
  done = run(tmp_path / "new", "python", 2)
  assert done.returncode == 1
  assert "process 3 was stuck in the last step for 2 s" in done.stderr
  assert done.stdout == ""
  stacks = (tmp_path / "new" / "stacks-process-3.txt").read_text()
  assert "stuck_here" in stacks
  assert stacks.count("most recent call first") >= 3  # main, other, watchdog


def test_stuck_in_the_interpreter(tmp_path):
  done = run(tmp_path, "interpreter", 2)
  assert done.returncode == -signal.SIGUSR2
  said, _, stacks = done.stderr.partition("\n")
  assert said.startswith("error: process 3 was stuck, and its interpreter too")
  assert "stuck_here" in stacks


PAUSED = """
import pathlib, sys, time
from vitkd_jax.cluster import watchdog
watchdog._GRACE_SECONDS = 1
with watchdog.Watchdog(sys.argv[1], 0, 5) as dog:
  print("ready", flush=True)
  while not pathlib.Path(sys.argv[1], "enough").exists():
    dog.beat("a step")
    time.sleep(0.05)
print("over")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what stopped")
def test_a_stopped_process_is_not_stuck(tmp_path):
  with subprocess.Popen(
    [sys.executable, "-c", PAUSED, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(9)  # longer than the limit and the grace
    stat = pathlib.Path(f"/proc/{process.pid}/stat").read_text()
    assert stat.rpartition(")")[2].split()[0] == "T"
    process.send_signal(signal.SIGCONT)
    (tmp_path / "enough").touch()
    assert process.stdout.read() == "over\n"
  assert process.returncode == 0


def test_work_that_goes_on_is_left_alone(tmp_path):
  # A pause between two beats as long as this is not to be expected.
  done = run(tmp_path, "no", 10)
  assert done.returncode == 0
  assert done.stdout == "over\n"
  assert list(tmp_path.iterdir()) == []


def test_zero_never_ends(tmp_path):
  done = run(tmp_path, "no", 0)
  assert done.returncode == 0, done.stderr
