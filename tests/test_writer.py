"""Metrics on disk and on the console."""

import contextlib
import errno
import io
import json
import logging
import resource
import signal
import struct
import sys
import threading

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from vitkd_jax import errors
from vitkd_jax.runs import metrics as writers


def lines(tmp_path):
  text = (tmp_path / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def make(tmp_path, first_step=0):
  return writers.Writer(tmp_path, first_step=first_step, total_steps=10)


def test_lines_and_events_are_written(tmp_path):
  with make(tmp_path) as w:
    w.scalars(1, {"loss": 2.0})
    w.scalars(2, {"loss": 1.5})
  assert lines(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
  assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_line_on_a_disk_is_appended(tmp_path, monkeypatch):
  """Writing all of them anew, a kill would lose those of before."""
  with make(tmp_path) as w:
    w.scalars(1, {"loss": 2.0})
    monkeypatch.setattr(type(w._path), "write_text", None)
    w.scalars(2, {"loss": 1.5})
  assert [x["step"] for x in lines(tmp_path)] == [1, 2]


def test_a_resumed_run_drops_what_lies_ahead_and_half_lines(tmp_path):
  with make(tmp_path) as w:
    for step in (1, 2, 3):
      w.scalars(step, {"loss": float(step)})
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 4, "lo')
  with open(tmp_path / "metrics.jsonl", "ab") as file:
    file.write(b"\n\xff\xfe\n")  # what a damaged disk gives
  with make(tmp_path, first_step=2) as w:
    w.scalars(3, {"loss": 30.0})
  assert [(x["step"], x["loss"]) for x in lines(tmp_path)] == [
    (1, 1.0), (2, 2.0), (3, 30.0),
  ]  # fmt: skip


VALUES = {
  "loss": 2.5,
  "weighted/task": 2.0,
  "weighted/vitkd/mimic": 0.5,
  "vitkd/mimic": 100.0,
  "accuracy": 0.25,
  "learning_rate": 1e-3,
  "images_per_second": 1234.5,
  "data_wait": 0.02,
  "eta_seconds": 83.4,
}


def test_progress_line(tmp_path, capsys):
  with make(tmp_path) as w:
    w.progress(7, VALUES)
  assert capsys.readouterr().out == (
    "step  7/10  loss 2.500 (task 2.000  vitkd/mimic 0.500)  acc 25.0%  "
    "lr 1.0e-03  1234 img/s  wait 2%  eta 0:01:23\n"
  )


def test_events_are_what_tensorboard_reads(tmp_path):
  """Each start's file begins with its version, and with what it supersedes."""
  with make(tmp_path, first_step=3) as w:
    w.scalars(4, {"loss": 2.0, "rate": 0.5})
  (path,) = tmp_path.glob("events.out.tfevents.*")
  data, found = path.read_bytes(), []
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    for at, part in ((8, data[:8]), (12 + length, data[12 : 12 + length])):
      assert struct.unpack("<I", data[at : at + 4])[0] == masked_crc32c(part)
    found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  version, start, *scalars = found
  assert version.file_version == "brain.Event:2"
  assert start.step == 4
  assert start.session_log.status == event_pb2.SessionLog.START
  assert [(e.step, e.summary.value[0].tag) for e in scalars] == [
    (4, "loss/total"), (4, "train/rate"),
  ]  # fmt: skip
  assert [e.summary.value[0].simple_value for e in scalars] == [2.0, 0.5]


@contextlib.contextmanager
def full_disk(size):
  """Lets no file of this process grow beyond `size` bytes."""
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_is_an_error_at_once_and_hides_nothing(tmp_path):
  """An event file that cannot grow must neither block nor print."""
  before = set(threading.enumerate())
  for _ in range(30):  # more than any queue holds
    with (
      pytest.raises(OSError, match="File too large"),
      make(tmp_path) as w,
      full_disk(1),
    ):
      w.scalars(1, {"loss": 2.0})
  assert not set(threading.enumerate()) - before


@pytest.mark.parametrize(
  "error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), ValueError()]
)
def test_a_console_that_goes_away_ends_nothing(tmp_path, monkeypatch, error):
  class Gone(io.StringIO):
    def write(self, text):
      raise error

  monkeypatch.setattr(sys, "stdout", Gone())
  with make(tmp_path) as w:
    w.line("one")
    w.progress(7, VALUES)
    w.scalars(7, {"loss": 1.0})
  text = (tmp_path / "train.log").read_text()
  assert text.count("lost the console (") == 1
  assert " one\n" in text
  assert "step  7/10  loss 2.500" in text
  assert [x["step"] for x in lines(tmp_path)] == [7]


def test_warnings_and_the_end_are_in_the_log(tmp_path):
  with contextlib.suppress(errors.FailedError), make(tmp_path) as w:
    logging.getLogger("vitkd_jax.data.loader").warning("%d bad", 3)
    logging.getLogger("vitkd_jax.data.loader").info("nothing")
    w.line("told")
    raise errors.FailedError("it cannot go on")
  logging.getLogger("vitkd_jax.data.loader").warning("after the end")
  text = (tmp_path / "train.log").read_text()
  said = [line.split(" ", 2)[2] for line in text.splitlines()]
  assert said == ["warning: 3 bad", "told", "it cannot go on"]


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, capsys):
  (tmp_path / "train.log").mkdir()
  with make(tmp_path) as w:
    w.line("told")
  assert capsys.readouterr().out == "told\n"


def test_other_processes_print_nothing(tmp_path, capsys):
  with writers.Writer(tmp_path, first_step=0, total_steps=1, quiet=True) as w:
    w.progress(1, VALUES)
    w.line("text")
  assert capsys.readouterr().out == ""
