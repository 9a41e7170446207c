"""The log of metrics: its series, and its end when a run resumes."""

import json
import os
import tracemalloc

from etils import epath
import numpy as np
import pytest

from vitkd_jax.runs import metric_log, reading


def text(*values):
  return b"".join(json.dumps(v).encode() + b"\n" for v in values)


def write(tmp_path, content):
  path = epath.Path(tmp_path) / "metrics.jsonl"
  path.write_bytes(content)
  return path


def as_before(content, step):
  """What a resume left when it read the whole file."""
  kept = []
  for line in content.splitlines():
    values = metric_log.intact(line)
    if values and values["step"] <= step:
      kept.append(line + b"\n")
  return b"".join(kept)


def log(steps, width=1):
  """Two lines a step, of metrics and of an evaluation."""
  return text(
    *(
      {"step": step, name: "x" * width}
      for step in steps
      for name in ("loss", "eval_top1")
    )
  )


TAILS = {
  "nothing": b"",
  "a truncated line": b'{"step": 41, "lo',
  "a truncated line of a step to keep": b'{"step": 3, "lo',
  "no newline": b'{"step": 20, "loss": 1}',
  "blank lines": b"\n\n",
  "bytes": b"\xff\xfe\x00\n\x00\x00",
  "damage and a line": b'{"st\n{"step": 20, "loss": 7}\n',
  "CRLF": b'{"step": 20, "loss": 7}\r\n',
  "no number": b'[1]\n7\n{"step": "x"}\n{"step": 1e999}\n{"step": 1'
  + 30 * b"0",
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
@pytest.mark.parametrize("step", [0, 7, 20, 99])
@pytest.mark.parametrize("block", [16, 1 << 16])
def test_the_end_is_what_it_was_when_all_was_read(
  tmp_path, monkeypatch, tail, step, block
):
  monkeypatch.setattr(metric_log, "_BLOCK", block)
  content = log(range(1, 21)) + tail
  path = write(tmp_path, content)
  kept = metric_log.keep_until(path, step)
  want, got = as_before(content, step), path.read_bytes()
  assert got == b"" or got.endswith(b"\n")
  # A damaged line above the last one kept may stay.
  assert as_before(got, step) == want
  if tail != TAILS["damage and a line"]:
    assert got.replace(b"\r", b"") == want.replace(b"\r", b"")
  lines = map(metric_log.intact, want.splitlines())
  assert kept == {(step, frozenset(x)) for x in lines if x["step"] == step}


def test_a_log_that_loses_nothing_is_not_written(tmp_path):
  path = write(tmp_path, log(range(9)))
  before = os.stat(path)
  assert len(metric_log.keep_until(path, 8)) == 2
  after = os.stat(path)
  assert (after.st_ino, after.st_mtime_ns) == (
    before.st_ino,
    before.st_mtime_ns,
  )
  assert metric_log.keep_until(epath.Path(tmp_path) / "none", 8) == set()


def test_a_resume_reads_the_end_alone_in_constant_memory(tmp_path, monkeypatch):
  content = log(range(20_000), 500)
  path = write(tmp_path, content)
  parsed = []
  intact = metric_log.intact
  monkeypatch.setattr(
    metric_log, "intact", lambda line: parsed.append(line) or intact(line)
  )
  tracemalloc.start()
  metric_log.keep_until(path, 19_990)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert len(content) > 20e6
  # A block, beside it its lines, and those parsed above.
  assert peak < 10 * metric_log._BLOCK
  assert len(parsed) == 2 * 9 + 2 + 1
  assert path.read_bytes() == as_before(content, 19_990)


def test_one_long_damaged_line_is_read_a_few_times_only(tmp_path, monkeypatch):
  monkeypatch.setattr(metric_log, "_BLOCK", 1 << 10)
  path = write(tmp_path, log([1]) + bytes(1 << 22) + b"\n" + log([2]))
  read = []

  class Counted:
    def __init__(self, file):
      self._file = file
      self.seek = file.seek

    def read(self, count):
      read.append(count)
      return self._file.read(count)

  with path.open("rb") as file:
    lines = list(metric_log._backwards(Counted(file), path.stat().length))
  assert [len(line) for _, line in lines[2:3]] == [(1 << 22) + 1]
  assert [start for start, _ in lines][-1] == 0
  assert len(read) < 20


def by_hand(content):
  """{name: {step: value}}, the last of several."""
  points = {}
  for line in content.splitlines():
    values = metric_log.intact(line)
    if values is None:
      continue
    step = values.pop("step")
    for name, value in values.items():
      if isinstance(value, int | float):
        points.setdefault(name, {})[step] = float(value)
  return points


def test_series_of_lines_of_many_kinds():
  """Other names, other orders, steps again and back, no numbers, damage."""
  random = np.random.default_rng(0)
  lines = [b"[]", b"{}", b'{"step": 1, "lo']
  for _ in range(500):
    names = random.permutation(list("abcde"))[: random.integers(0, 6)]
    values = {
      str(name): random.choice(
        np.array([1.5, 7, True, "text", None, np.nan, np.inf, [1]], object)
      )
      for name in names
    }
    step = int(random.integers(0, 200))
    lines.append(json.dumps({"step": step} | values).encode())
  lines.append(b'{"a": 2, "step": 3, "b": 1' + 400 * b"0" + b"}")
  want = by_hand(b"\n".join(lines[:-1]))
  want["a"][3] = 2.0
  found = metric_log.series(lines)
  assert found.keys() == want.keys()
  for name, points in want.items():
    steps = sorted(points)
    assert found[name].steps.tolist() == steps
    np.testing.assert_array_equal(
      found[name].values, [points[step] for step in steps]
    )
    assert found[name].steps.dtype == np.int64


def test_a_renamed_metric_is_one_series():
  found = metric_log.series(
    [b'{"step": 1, "raw_task": 1}', b'{"step": 2, "task": 2}']
  )
  assert found.keys() == {"task"}
  assert found["task"].values.tolist() == [1, 2]


def test_series_hold_no_text():
  rows, names = 5000, [f"metric_{i}" for i in range(20)]

  def lines():
    for step in range(rows):
      values = {name: step + i / 7 for i, name in enumerate(names)}
      yield json.dumps({"step": step} | values).encode()

  tracemalloc.start()
  found = metric_log.series(lines())
  now, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  # Values, step and place, and what allocators add; the text has four times as
  # many bytes, and a dict of floats ten times.
  numbers = 8 * rows * (len(names) + 2)
  assert max(now, peak) < 2 * numbers
  assert found["metric_19"].final == rows - 1 + 19 / 7


def test_the_evaluation_of_a_step_is_found(tmp_path):
  write(
    tmp_path,
    text(
      {"step": 1, "eval_top1": 0.1, "eval_loss": 2},
      {"step": 1, "loss": 3},
      {"step": 2, "eval_top1": 0.2},
    ),
  )
  assert reading.evaluation(tmp_path) == {"step": 2, "eval_top1": 0.2}
  assert reading.evaluation(tmp_path, 1)["eval_loss"] == 2
  assert reading.evaluation(tmp_path, 3) == {}
