"""Where metrics go beside metrics.jsonl: names, failures, Weights & Biases."""

import json
import os
import struct
import subprocess
import sys
import types

import pytest

from vitkd_jax import train
from vitkd_jax.runs import history, trackers
from vitkd_jax.runs import metrics as writers
from vitkd_jax.training import experiment

NAMES = {
  "loss": "loss/total",
  "task": "loss/task",
  "vitkd/mimic": "loss/vitkd/mimic",
  "weighted/task": "loss/weighted/task",
  "weighted/vitkd/mimic": "loss/weighted/vitkd/mimic",
  "grad_norm": "grad/norm",
  "grad_norm_student": "grad/norm_student",
  "grad_norm/vitkd/mimic": "grad/norm/vitkd/mimic",
  "grad_cosine/nkd": "grad/cosine/nkd",
  "eval_top1": "eval/top1",
  "eval_ema_top1": "eval/ema_top1",
  "images_per_second": "speed/images_per_second",
  "data_wait": "speed/data_wait",
  "eta_seconds": "speed/eta_seconds",
  "accuracy": "train/accuracy",
  "learning_rate": "train/learning_rate",
  "skipped_updates": "train/skipped_updates",
  "rank/block_1": "rank/block_1",
  "cka/teacher/block_0": "cka/teacher/block_0",
}


def test_names_are_grouped():
  values = {name: float(i) for i, name in enumerate(NAMES)}
  want = {group: values[name] for name, group in NAMES.items()}
  assert trackers.grouped(values) == want
  assert len(want) == len(values)  # no two names fall together


class Kept:
  """A tracker that keeps what it gets, and fails where it is told to."""

  def __init__(self, fails=None):
    self.fails, self.got, self.closed = fails, [], 0
    self._fail("init")

  def _fail(self, where):
    if self.fails == where:
      raise ConnectionError("the network\nwent away")

  def scalars(self, step, values):
    self._fail("scalars")
    self.got.append((step, dict(values)))

  def close(self):
    self._fail("close")
    self.closed += 1


@pytest.mark.parametrize("fails", ["init", "scalars", "close"])
def test_a_tracker_that_fails_is_left_out(fails):
  lines, good = [], Kept()
  found = trackers.Trackers(
    {"bad": lambda: Kept(fails), "good": lambda: good}, lines.append
  )
  for step in (1, 2, 3):
    found.scalars(step, {"loss": 1.0})
  found.close()
  assert [step for step, _ in good.got] == [1, 2, 3]
  assert good.closed == 1
  assert lines == ["lost bad (the network); the run goes on without it"]


def test_lost_events_of_tensorboard_end_nothing(tmp_path, monkeypatch, capsys):
  def fail(self, step, values):
    raise OSError("Input/output error")

  monkeypatch.setattr(trackers.events.Events, "scalars", fail)
  with writers.Writer(tmp_path, first_step=0, total_steps=2) as writer:
    writer.scalars(1, {"loss": 2.0})
    writer.scalars(2, {"loss": 1.0})
  text = (tmp_path / "metrics.jsonl").read_text()
  assert [json.loads(x)["loss"] for x in text.splitlines()] == [2.0, 1.0]
  said = capsys.readouterr().out
  assert said.count("lost TensorBoard's events (Input/output error)") == 1


class Fake(types.ModuleType):
  """Stands for wandb, and keeps what it is asked."""

  def __init__(self):
    super().__init__("wandb")
    self.asked, self.logged, self.finished = [], [], 0
    self.Settings = dict

  def setup(self, settings):
    self.silent = settings["silent"]

  def init(self, **options):
    assert self.silent  # else it may ask at a terminal for a key, and wait
    self.asked.append(options)
    return types.SimpleNamespace(
      offline=False,
      url="https://wandb/run",
      log=lambda values, step: self.logged.append((step, values)),
      finish=lambda: setattr(self, "finished", self.finished + 1),
    )


@pytest.fixture
def fake(monkeypatch):
  made = Fake()
  made.__spec__ = types.SimpleNamespace()
  monkeypatch.setitem(sys.modules, "wandb", made)
  return made


def test_a_training_tells_weights_and_biases(student_alone, tmp_path, fake):
  student_alone.run.tracker = "wandb"
  student_alone.run.epochs = 4 * 16 / 64
  train.train(student_alone, str(tmp_path / "run"))
  (asked,) = fake.asked
  assert (asked["project"], asked["name"]) == ("vitkd", "run")
  assert asked["config"]["student"]["variant"] == "test/7"
  assert fake.finished == 1
  steps = [step for step, _ in fake.logged]
  assert steps == sorted(steps)
  assert {2, 4} <= set(steps)
  names = {name for _, values in fake.logged for name in values}
  assert names >= {
    "loss/total",
    "loss/task",
    "grad/norm",
    "eval/top1",
    "speed/images_per_second",
    "train/accuracy",
  }
  # The report's names stay.
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  names = {name for line in lines for name in json.loads(line)}
  assert names >= {"loss", "task", "grad_norm", "eval_top1", "accuracy"}
  log = (tmp_path / "run" / "train.log").read_text()
  assert "metrics also go to Weights & Biases: https://wandb/run" in log


def test_a_resume_goes_on_with_the_same_run(tmp_path, fake):
  for first_step in (0, 3):
    with writers.Writer(
      tmp_path, first_step=first_step, total_steps=9, tracker="wandb"
    ):
      pass
  first, second = fake.asked
  assert first["id"] == second["id"]
  assert first["resume"] == "allow"
  assert history.free("config.run.tracker")


def test_other_processes_tell_nobody(tmp_path, fake):
  with writers.Writer(
    tmp_path, first_step=0, total_steps=9, tracker="wandb", quiet=True
  ) as writer:
    writer.scalars(1, {"loss": 1.0})
  assert not fake.asked


def test_without_the_package_it_says_how_to_get_it(
  student_alone, monkeypatch, untraced
):
  monkeypatch.setitem(sys.modules, "wandb", None)
  student_alone.run.tracker = "wandb"
  with pytest.raises(
    ValueError,
    match=r"^config\.run\.tracker='wandb' needs wandb: pip install "
    r"'vitkd-jax\[wandb\]'$",
  ):
    experiment.build(student_alone)


SCRIPT = """
import sys
from vitkd_jax.runs import metrics
options = dict(total_steps=3, tracker="wandb", config={"run": {"seed": 7}})
with metrics.Writer(sys.argv[1], first_step=0, **options) as writer:
  writer.scalars(1, {"loss": 2.5, "grad_norm": 1.0})
  writer.scalars(3, {"loss": 0.5})
  writer.scalars(3, {"eval_top1": 0.75})
"""


def records(path):
  """The protobuf messages of a .wandb file: LevelDB's log behind 7 bytes."""
  from wandb.proto import wandb_internal_pb2

  data, at, part = path.read_bytes(), 7, b""
  assert data[:4] == b":W&B"
  while at + 7 <= len(data):
    if 32768 - at % 32768 < 7:  # a block's end
      at += 32768 - at % 32768
      continue
    _, size, kind = struct.unpack("<IHB", data[at : at + 7])
    part += data[at + 7 : at + 7 + size]
    at += 7 + size
    if kind in (1, 4):  # a whole record, or the last part of one
      yield wandb_internal_pb2.Record.FromString(part)
      part = b""


def test_an_offline_run_of_the_real_library(tmp_path):
  pytest.importorskip("wandb", reason="not installed: pip install '.[wandb]'")
  env = os.environ | {
    "WANDB_MODE": "offline",
    "WANDB_CACHE_DIR": str(tmp_path / "cache"),
    "WANDB_CONFIG_DIR": str(tmp_path / "config"),
    "PYTHONPATH": os.pathsep.join(sys.path),
  }
  workdir = tmp_path / "run"
  workdir.mkdir()
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, str(workdir)],
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert not done.stderr
  assert done.stdout.startswith("metrics also go to Weights & Biases: ")
  (file,) = workdir.glob("wandb/offline-run-*/run-*.wandb")
  run_id = (workdir / "wandb_run_id").read_text()
  assert file.name == f"run-{run_id}.wandb"
  rows, config = {}, {}
  for record in records(file):
    for item in record.run.config.update:
      config[item.key] = json.loads(item.value_json)
    if record.HasField("history"):
      values = {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
        for item in record.history.item
      }
      rows.setdefault(values.pop("_step"), {}).update(values)
  assert config["run"] == {"seed": 7}
  assert {
    step: {k: v for k, v in row.items() if not k.startswith("_")}
    for step, row in rows.items()
  } == {
    1: {"loss/total": 2.5, "grad/norm": 1.0},
    3: {"loss/total": 0.5, "eval/top1": 0.75},
  }
