"""What signals do to a process, without a training."""

import signal
import subprocess
import sys
import time

import pytest

from vitkd_jax.cluster import preemption

# SIGTERM is JAX's, whose place a handler takes that says so at once; not by
# `print`, as the signal may come before the `print` of "ready" has returned.
_HEAD = """
import contextlib, ctypes, os, signal, sys, time
from vitkd_jax.cluster import preemption
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"SIGTERM\\n"))
"""
_SAVING = """
with preemption.listening(), preemption.saving():
  print("ready", flush=True)
  while True:
    time.sleep(0.05)
"""
# A mutex that is locked twice: a call of C that no signal ends.
_STUCK = """
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
preemption._ANSWER_SECONDS = 0.1
with preemption.listening():
  libc.pthread_mutex_lock(mutex)
  with contextlib.suppress(KeyboardInterrupt):  # it came before the call
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
  libc.pthread_mutex_lock(mutex)
"""


@pytest.fixture
def start():
  """Starts a script, and waits until it is ready."""
  processes = []

  def run(script):
    process = subprocess.Popen(
      [sys.executable, "-c", _HEAD + script],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    processes.append(process)
    assert process.stdout.readline() == "ready\n"
    return process

  yield run
  for process in processes:
    process.kill()
    process.communicate()


def test_a_closed_terminal_is_sent_on_as_sigterm(start):
  process = start(_SAVING)
  process.send_signal(signal.SIGHUP)
  assert process.stdout.readline() == "SIGTERM\n"


def test_the_first_ctrl_c_saves_and_the_second_leaves(start):
  process = start(_SAVING)
  process.send_signal(signal.SIGINT)
  assert process.stdout.readline() == "SIGTERM\n"
  said = process.stderr.readline()
  assert (
    said
    == "interrupted: saving the state; press Ctrl-C again to exit at once\n"
  )
  deadline = time.monotonic() + 60
  while process.poll() is None:  # presses of one moment count as one
    assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
  assert process.returncode == 130
  assert process.stderr.read() == "error: interrupted\n"


def test_presses_of_one_moment_are_one(start):
  """A launcher passes on what its children got from the terminal, too."""
  process = start("preemption._ONE_PRESS_SECONDS = 1e9\n" + _SAVING)
  process.send_signal(signal.SIGINT)
  assert process.stdout.readline() == "SIGTERM\n"
  for _ in range(3):
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)  # answered in its turn
    assert process.stdout.readline() == "SIGTERM\n"
  assert process.poll() is None


def test_before_anything_is_worth_saving_it_leaves_out_of_any_call(start):
  process = start(_STUCK)
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=60)
  assert process.returncode == 130
  assert said == "error: interrupted\n"


def test_what_nohup_ignores_stays_ignored():
  before = {n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGINT)}
  try:
    for number in before:
      signal.signal(number, signal.SIG_IGN)
    with preemption.listening():
      assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
      assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def test_handlers_are_put_back():
  numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
  before = [signal.getsignal(number) for number in numbers]
  with preemption.listening():
    assert signal.getsignal(signal.SIGTERM) == before[2]  # it is JAX's
  assert [signal.getsignal(number) for number in numbers] == before
