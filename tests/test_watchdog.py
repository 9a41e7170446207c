"""A process that does not get on ends, and says where it was."""

import subprocess
import sys

import pytest

CODE = """
import ctypes, sys, threading, time
from vitkd_jax.training import watchdog
watchdog._GRACE_SECONDS = 5
watchdog._LONG = 99
other = threading.Thread(target=time.sleep, args=(60,), daemon=True)
other.start()
def stuck_here():
  if sys.argv[2] == "python":
    time.sleep(60)
  elif sys.argv[2] == "interpreter":  # holds its lock
    ctypes.PyDLL(None).sleep(60)
with watchdog.Watchdog(sys.argv[1], 3, 2) as dog:
  dog.beat("compilation", long=True)
  time.sleep(0.1)  # the watch begins with a far deadline
  for step in range(6):  # longer than the limit in all
    dog.beat(f"step {step}")
    time.sleep(0.4)
  dog.beat("step 6")
  stuck_here()
print("over")
"""


def run(folder, how):
  return subprocess.run(
    [sys.executable, "-c", CODE, str(folder), how],
    capture_output=True,
    text=True,
    check=False,
    timeout=50,
  )


def test_stuck_in_python(tmp_path):
  done = run(tmp_path / "new", "python")
  assert done.returncode == 1
  assert "process 3 was stuck in step 6 for 2 s" in done.stderr
  assert done.stdout == ""
  stacks = (tmp_path / "new" / "stacks-process-3.txt").read_text()
  assert "stuck_here" in stacks
  assert stacks.count("most recent call first") >= 3  # main, other, watchdog


def test_stuck_in_the_interpreter(tmp_path):
  done = run(tmp_path, "interpreter")
  assert done.returncode == 1
  assert "stuck_here" in done.stderr


def test_work_that_goes_on_is_left_alone(tmp_path):
  done = run(tmp_path, "no")
  assert done.returncode == 0
  assert done.stdout == "over\n"
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [0])
def test_zero_never_ends(tmp_path, seconds):
  code = CODE.replace("3, 2)", f"3, {seconds})")
  done = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path), "no"],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
