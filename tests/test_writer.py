"""Metrics on disk and on the console."""

import json

import pytest

from vitkd_jax.training import writer


def lines(tmp_path):
  text = (tmp_path / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def make(tmp_path, first_step=0):
  return writer.Writer(tmp_path, first_step=first_step, total_steps=10)


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
  "weighted_task": 2.0,
  "weighted_mimic": 0.5,
  "raw_mimic": 100.0,
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
    "step  7/10  loss 2.500 (task 2.000  mimic 0.500)  acc 25.0%  lr 1.0e-03"
    "  1234 img/s  wait 2%  eta 0:01:23\n"
  )


@pytest.mark.parametrize("quiet", [True])
def test_other_processes_print_nothing(tmp_path, capsys, quiet):
  with writer.Writer(tmp_path, first_step=0, total_steps=1, quiet=quiet) as w:
    w.progress(1, VALUES)
    w.line("text")
  assert capsys.readouterr().out == ""
