"""Two writers, one workdir."""

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys

import pytest

from vitkd_jax.runs import lock


def test_the_second_is_refused_and_told_who_holds_it(tmp_path):
  workdir = str(tmp_path / "deep" / "run")
  with lock.hold(workdir):
    said = (
      rf"{re.escape(workdir)} is in use by process {os.getpid()} on "
      rf"{re.escape(socket.gethostname())}, since 20\d\d-"
    )
    with pytest.raises(lock.HeldError, match=said), lock.hold(workdir):
      pass
  with lock.hold(workdir):  # the refusal broke nothing, the end released it
    pass


def test_a_failure_within_releases_it(tmp_path):
  with pytest.raises(KeyError), lock.hold(str(tmp_path)):
    raise KeyError
  with lock.hold(str(tmp_path)):
    pass


_HOLDER = """
import subprocess, sys, time
from vitkd_jax.runs import lock
with lock.hold(sys.argv[1]):
  # A child that gets every file that children get, and outlives its parent.
  child = subprocess.Popen(
    [sys.executable, "-c", "import sys; sys.stdin.read()"],
    stdin=sys.stdin, close_fds=False,
  )
  print(child.pid, flush=True)
  child.wait()
"""


def test_it_dies_with_its_process_though_a_child_lives(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, "-c", _HOLDER, str(tmp_path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  child = int(holder.stdout.readline())
  with pytest.raises(lock.HeldError), lock.hold(str(tmp_path)):
    pass
  holder.kill()
  holder.wait()
  os.kill(child, 0)  # it lives
  with lock.hold(str(tmp_path)):
    pass
  holder.stdin.close()  # which ends the child
  holder.stdout.close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_training_goes_on_with_a_note(
  tmp_path, monkeypatch, caplog, code
):
  def refuse(*_):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(fcntl, "flock", refuse)
  with lock.hold(str(tmp_path)):
    assert "cannot be locked" in caplog.text
    assert os.strerror(code) in caplog.text


def test_a_lock_file_of_another_kind_is_still_refused(tmp_path):
  """Its holder has yet to write its name."""
  with open(tmp_path / "lock", "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with (
      pytest.raises(lock.HeldError, match="in use by another process;"),
      lock.hold(str(tmp_path)),
    ):
      pass
