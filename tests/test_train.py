"""The whole training on real images: crash, resume, divergence, export."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
import test_profiling

from vitkd_jax import errors, train, weights
from vitkd_jax.commandline import command
from vitkd_jax.data import datasets
from vitkd_jax.evaluation import scoring
from vitkd_jax.runs import checkpoint, lock
from vitkd_jax.training import experiment, loop
from vitkd_jax.weights import resolve

# What depends on the clock.
TIMES = ("images_per_second", "data_wait", "eta_seconds")


def metrics(workdir):
  lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in TIMES}
    for line in lines
  ]


def last_states(config, *workdirs):
  """What a run of the config finds in each workdir."""
  parts = experiment.build(config)
  for workdir in workdirs:
    checkpoints = checkpoint.Checkpoints(pathlib.Path(workdir) / "checkpoints")
    restored = checkpoints.restore(
      parts.state_shapes(), parts.state_shardings()
    )
    checkpoints.close()
    yield jax.device_get(restored.state)


@pytest.fixture
def baseline(tiny_config, monkeypatch):
  """A student alone, on one device: quickly compiled, and saved."""
  build = functools.partial(experiment.build, devices=jax.devices()[:1])
  monkeypatch.setattr(experiment, "build", build)
  tiny_config.weights = dict(task=1.0)
  tiny_config.teacher = {}
  tiny_config.augment = dict(flip=0.5)
  return tiny_config


def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(
  tiny_config, tmp_path, monkeypatch
):
  # Of eight replicas Orbax would slice each leaf, in a program for each shape.
  build = functools.partial(experiment.build, devices=jax.devices()[:2])
  monkeypatch.setattr(experiment, "build", build)
  whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
  tiny_config.run.profile_at = 7  # of the first run alone
  result = train.train(tiny_config, whole)
  tiny_config.run.profile_at = 0
  (trace,) = pathlib.Path(whole).glob("plugins/profile/*")
  assert test_profiling.traced(trace) == {7, 8, 9}  # then comes a checkpoint
  save = loop.Loop._save

  def save_and_die(self, step, state, result, **kwargs):
    save(self, step, state, result, **kwargs)
    if step == 6:
      self._checkpoints.wait()
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(loop.Loop, "_save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
      train.train(tiny_config, broken)
  # As a killed process would: a line that will be computed again.
  with open(pathlib.Path(broken) / "metrics.jsonl", "a") as file:
    file.write('{"step": 8, "loss": 1.0}\n{"step": 9, "lo')
  assert train.train(tiny_config, broken) == result

  one, other = last_states(tiny_config, whole, broken)
  assert int(one.step) == int(other.step) == 12
  leaves = jax.tree.leaves(one)
  assert len(leaves) > 50
  for x, y in zip(leaves, jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(x, y)
  assert metrics(whole) == metrics(broken)
  assert [m["step"] for m in metrics(whole) if "loss" in m] == [
    2,
    4,
    6,
    8,
    10,
    12,
  ]
  assert [m["step"] for m in metrics(whole) if "eval_top1" in m] == [6, 12]

  # Both have written the same bytes, with the run's own images and classes.
  one_file, file = (
    pathlib.Path(folder) / "student.safetensors" for folder in (whole, broken)
  )
  assert one_file.read_bytes() == file.read_bytes()
  for path in (whole, file):
    said = resolve.stated(path)
    assert (said.preprocess.size, said.preprocess.short_side) == (
      (28, 28),
      None,
    )
    assert said.class_names[9] == "Ankle boot"

  # A third start finds everything done and changes nothing, no export of an
  # older version either, whose hash may be in another run's config.json.
  arrays = safetensors.numpy.load_file(file)
  safetensors.numpy.save_file(arrays, file, {"variant": "test/7"})
  before = weights.sha256(file)
  assert train.train(tiny_config, broken) == result
  assert metrics(broken) == metrics(whole)
  assert weights.sha256(file) == before

  # Both the student's and its average's scores are what `evaluate` finds.
  last = [m for m in metrics(whole) if "eval_top1" in m][-1]
  info = datasets.info("fashion_mini")
  source = datasets.load("fashion_mini", "test[:24]")
  for which, prefix in (("student", "eval"), ("ema", "eval_ema")):
    scored = scoring.load(whole, info, which=which)
    found = scoring.evaluate(scored, source, info, batch_size=8)
    assert found["top1"] == last[f"{prefix}_top1"]
    assert found["loss"] == pytest.approx(last[f"{prefix}_loss"], rel=1e-5)
  assert last["eval_loss"] != last["eval_ema_loss"]

  # The export is the averaged student alone, without any aux parameter.
  exported = safetensors.numpy.load_file(
    str(pathlib.Path(whole) / "student.safetensors")
  )
  assert not [k for k in exported if "align" in k or "generator" in k]
  loaded = weights.load(
    str(pathlib.Path(whole) / "student.safetensors"),
    variant="test/7",
    num_classes=10,
    pool_type="tok",
  )
  stacked = one.ema["Transformer"]["encoderblock"]["MlpBlock_0"]["Dense_0"]
  block = loaded["Transformer"]["encoderblock_1"]["MlpBlock_0"]["Dense_0"]
  np.testing.assert_array_equal(block["kernel"], stacked["kernel"][1])


def test_divergence_stops_the_run_and_keeps_good_checkpoints(
  baseline, tmp_path, capsys
):
  baseline.schedule.peak = 1e36
  baseline.schedule.warmup_start = 1e-3
  baseline.run.checkpoint_every = 1
  baseline.run.max_bad_steps = 3
  with pytest.raises(
    errors.FailedError, match="3 consecutive updates skipped"
  ) as stop:
    train.train(baseline, str(tmp_path))
  assert "gradient became NaN or infinite" in str(stop.value)
  assert "config.schedule.peak" in str(stop.value)
  assert capsys.readouterr().out.count("skipped the update") == 3
  (state,) = last_states(baseline, tmp_path)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.opt_state))
  total, row = state.skipped
  assert total == row
  assert 1 <= total <= 4


def test_checkpoints_come_by_the_clock_too(baseline, tmp_path, capsys):
  baseline.run.checkpoint_every = 0
  baseline.run.checkpoint_minutes = 1e-6  # at every log
  baseline.run.keep = 9
  train.train(baseline, str(tmp_path))
  found = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
  assert found == {2, 4, 6, 8, 10, 12}
  out = capsys.readouterr().out
  told = [line for line in out.splitlines() if line.startswith("saved the")]
  assert told == [f"saved the checkpoint of step {i}" for i in sorted(found)]


def test_a_finished_run_at_a_constant_rate_goes_on(baseline, tmp_path):
  """As if it had been as long from the first."""
  whole, grown = tmp_path / "whole", tmp_path / "grown"
  baseline.schedule.end = baseline.schedule.peak
  result = train.train(baseline, str(whole))
  epochs = baseline.run.epochs
  baseline.run.epochs = epochs / 2
  train.train(baseline, str(grown))
  (half,) = last_states(baseline, grown)
  assert int(half.step) == 6
  baseline.run.epochs = epochs
  assert train.train(baseline, str(grown)) == result
  assert metrics(grown) == metrics(whole)
  one, other = (safetensors.numpy.load_file(folder / "student.safetensors")
                for folder in (whole, grown))  # fmt: skip
  assert one.keys() == other.keys()
  assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
  "step, every, total, due",
  [
    (624, 156, 625, False),  # the end is next
    (468, 156, 625, True),
    (625, 156, 625, True),
    (625, 0, 625, True),
    (624, 0, 625, False),
    (140, 140, 154, False),  # a tenth of the interval
    (140, 140, 155, True),
    (5, 5, 6, True),  # a shorter interval has no tenth
    (7, 5, 60, False),
  ],
)
def test_what_is_due_just_before_the_end_is_left_to_it(step, every, total, due):
  assert loop._due(step, every, total) == due


def test_a_second_training_beside_the_first_is_refused(tiny_config, tmp_path):
  with lock.hold(str(tmp_path)):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(command.RefusedError, match="is in use by process"):
      train.train(tiny_config, str(tmp_path))
    after = {path: path.read_bytes() for path in tmp_path.iterdir()}
  assert after == before


def test_a_workdir_of_another_run_is_refused(tiny_config, tmp_path):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(command.RefusedError, match=r"no config\.json"):
    train.train(tiny_config, str(tmp_path))
