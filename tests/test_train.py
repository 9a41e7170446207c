"""The whole training on real images: crash, resume, divergence, export."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from saved import last_states
import test_profiling

from vitkd_jax import train, weights
from vitkd_jax.commandline import command
from vitkd_jax.data import datasets
from vitkd_jax.evaluation import scoring
from vitkd_jax.runs import lock
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


def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(
  tiny_config, tmp_path, monkeypatch, drawn_state
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
  # Looks at the terms change nothing, and the step may run with or without.
  tiny_config.run.inspect_every = 5
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
  looks = [m for m in metrics(broken) if "grad_norm/task" in m]
  assert [m["step"] for m in looks] == [5, 10]
  assert metrics(whole) == [m for m in metrics(broken) if m not in looks]
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
  assert len(metrics(broken)) == len(metrics(whole)) + 2
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


def test_a_finished_run_at_a_constant_rate_goes_on(
  student_alone, tmp_path, drawn_state
):
  """As if it had been as long from the first."""
  whole, grown = tmp_path / "whole", tmp_path / "grown"
  student_alone.schedule.end = student_alone.schedule.peak
  result = train.train(student_alone, str(whole))
  epochs = student_alone.run.epochs
  student_alone.run.epochs = epochs / 2
  train.train(student_alone, str(grown))
  (half,) = last_states(student_alone, grown)
  assert int(half.step) == 6
  student_alone.run.epochs = epochs
  assert train.train(student_alone, str(grown)) == result
  assert metrics(grown) == metrics(whole)
  one, other = (safetensors.numpy.load_file(folder / "student.safetensors")
                for folder in (whole, grown))  # fmt: skip
  assert one.keys() == other.keys()
  assert all(np.array_equal(one[name], other[name]) for name in one)


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
