"""Evaluations that are killed, or told to stop, and started again."""

import functools
import json
import os
import pathlib
import shutil
import signal

import pytest
import runner

from vitkd_jax import errors
from vitkd_jax.data import datasets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def score(shared, tmp_path_factory):
  """Starts of one evaluation: probes of 80 images, on 80 and on 90 others."""
  sets = tmp_path_factory.mktemp("sets")
  package = pathlib.Path(datasets.__file__).parent
  shutil.copytree(package / "fashion_mini", sets / "other")

  def start(out, **where):
    return runner.Evaluation(
      out,
      f"--data-dir={sets}",
      "--data=fashion_mini,other",
      "--split=test[:80],test[100:190]",
      "--train-split=train[:80]",
      "--probe=knn,ridge",
      "--neighbours=5",
      "--batch-size=4",
      **where,
      **shared,
    )

  return start


@pytest.fixture(scope="module")
def unbroken(score, tmp_path_factory):
  """Its results if nothing happens to it, by its processes and devices."""

  @functools.cache
  def run(**where):
    with score(tmp_path_factory.mktemp("unbroken") / "out", **where) as whole:
      whole.end()
    return results(whole.workdir)

  return run


def results(workdir):
  found = []
  for name in ("fashion_mini", "other"):
    text = (workdir / name / "evaluation.json").read_text()
    found.append({**json.loads(text), "cost": None})
  assert sorted(p.name for p in workdir.iterdir()) == ["fashion_mini", "other"]
  return found


def test_killed_in_each_pass(score, unbroken, tmp_path):
  out = tmp_path / "out"
  for name, done in (
    ("features.3", None),
    ("fashion_mini", "pass over training images of fashion_mini after 4"),
    ("other", "evaluation on fashion_mini after"),
  ):
    with score(out) as evaluation:
      evaluation.until_kept(name)
      evaluation.kill()
      assert not done or f"resuming the {done}" in evaluation.output
  with score(out) as evaluation:
    output = evaluation.end()
  assert "resuming the evaluation on fashion_mini after 20 batches" in output
  assert "resuming the evaluation on other after" in output
  assert results(out) == unbroken()


def test_told_to_stop(score, unbroken, tmp_path):
  out = tmp_path / "out"
  with score(out) as evaluation:
    evaluation.until_kept("features.0")
    evaluation.process.send_signal(signal.SIGTERM)
    output = evaluation.end(0)
  assert "preempted: the pass over training images of fashion_mini" in output
  with score(out) as evaluation:
    evaluation.until_kept("other")
    evaluation.process.send_signal(signal.SIGINT)
    output = evaluation.end(errors.INTERRUPTED)
  assert "interrupted: the evaluation on other is saved; start the" in output
  with score(out) as evaluation:
    evaluation.end()
  assert results(out) == unbroken()


def test_two_processes(score, unbroken, tmp_path):
  """Both end after the same batch, and go on from process 0's file."""
  out, where = tmp_path / "out", dict(processes=2, devices=1)
  with score(out, **where) as evaluation:
    evaluation.until_kept("other")
    os.kill(evaluation.trainers()[1], signal.SIGTERM)
    output = evaluation.end(0)
  assert output.count("preempted: the evaluation on other is saved") == 2
  with score(out, **where) as evaluation:
    output = evaluation.end()
  assert output.count("resuming the evaluation on other after") == 1
  assert results(out) == unbroken(**where)
