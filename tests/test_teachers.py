"""Teachers: which weights a run learns from, start after start."""

import contextlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from vitkd_jax import command, train, weights
from vitkd_jax.data import preprocess
from vitkd_jax.models import vit
from vitkd_jax.training import checkpoint, experiment, runs, teachers

VARIANT = "deit3_pico_patch4_28"


def save(folder, *steps):
  """A run's checkpoints, each with other parameters of the teacher's model."""
  model = vit.Model(10, variant=VARIANT)
  params = model.init(jax.random.key(0), np.zeros((1, 28, 28, 3)))["params"]
  checkpoints = checkpoint.Checkpoints(folder / "checkpoints", keep=9)
  for step in steps:
    moved = jax.tree.map(lambda x, step=step: x + step / 100, params)
    state = {"params": {"student": params}, "ema": moved}
    checkpoints.save(step, state, top1=None)
  checkpoints.close()


@pytest.fixture
def config(tiny_config, tmp_path):
  """A training whose teacher is a run that has exported nothing."""
  save(tmp_path / "teacher", 3)
  tiny_config.teacher.weights = str(tmp_path / "teacher")
  return tiny_config


def start(config, workdir):
  """What each start of `train` does first; the parts."""
  parts = experiment.build(config, pinned=train._pinned(workdir))
  with contextlib.ExitStack() as stack:
    train._claim(workdir, config, parts, stack)
  return parts


def bias(parts):
  return np.asarray(parts.teacher_params["head"]["bias"])


def test_the_step_stays_while_the_teacher_goes_on(config, tmp_path):
  workdir = str(tmp_path / "run")
  first = start(config, workdir)
  assert first.teacher_notes[0] == (
    "moving average of the checkpoint of step 3"
  )
  assert "--step 3 --to flat" in first.teacher_notes[1]
  np.testing.assert_allclose(bias(first), 0.03, rtol=1e-6)
  record = json.loads(pathlib.Path(workdir, "config.json").read_text())
  assert record["teacher_step"] == 3
  assert len(record["teacher_sha256"]) == 64
  save(tmp_path / "teacher", 4)
  weights.save(
    tmp_path / "teacher" / "student.safetensors",
    jax.tree.map(np.asarray, unfolded(0.5)),
    variant=VARIANT,
    format="flat",
  )
  again = start(config, workdir)
  assert again.teacher_pin == first.teacher_pin
  np.testing.assert_array_equal(bias(again), bias(first))
  # A new run takes what there is now.
  other = start(config, str(tmp_path / "other"))
  assert other.teacher_pin.step is None
  np.testing.assert_array_equal(bias(other), np.float32(0.5))


def unfolded(value):
  model = vit.Model(10, variant=VARIANT)
  params = model.init(jax.random.key(0), np.zeros((1, 28, 28, 3)))["params"]
  return jax.tree.map(lambda x: np.full_like(x, value), params)


def test_a_step_that_is_gone_or_another_is_refused(config, tmp_path):
  workdir = str(tmp_path / "run")
  start(config, workdir)
  folder = tmp_path / "teacher" / "checkpoints"
  shutil.move(folder / "3", tmp_path / "3")
  save(tmp_path / "teacher", 4)
  with pytest.raises(
    command.RefusedError, match=r"learns from step 3 of the teacher"
  ) as refusal:
    train.train(config, workdir)
  assert "there are [4]" in str(refusal.value)
  assert "\n" not in str(refusal.value)
  save(tmp_path / "teacher", 3)  # as it was
  start(config, workdir)
  shutil.rmtree(folder / "3")
  model = vit.Model(10, variant=VARIANT)
  params = model.init(jax.random.key(1), np.zeros((1, 28, 28, 3)))["params"]
  checkpoints = checkpoint.Checkpoints(folder, keep=9)
  state = {"params": {"student": params}, "ema": params}
  checkpoints.save(3, state, top1=None)
  checkpoints.close()
  with pytest.raises(
    command.RefusedError, match="holds a different run: teacher_sha256 was"
  ):
    train.train(config, workdir)


def test_a_copy_of_the_step_is_the_same_teacher(config, tmp_path):
  workdir = str(tmp_path / "run")
  pin = start(config, workdir).teacher_pin
  path = str(tmp_path / "copy.safetensors")
  loaded = weights.load(
    tmp_path / "teacher", variant=VARIANT, num_classes=10, step=3
  )
  weights.save(path, loaded, variant=VARIANT, format="flat")
  shutil.rmtree(tmp_path / "teacher")
  config.teacher.weights = path
  assert start(config, workdir).teacher_pin == pin
  loaded["head"]["bias"] = loaded["head"]["bias"] + 1
  weights.save(path, loaded, variant=VARIANT, format="flat")
  with pytest.raises(ValueError, match="teacher_step was 3 and is None"):
    start(config, workdir)


def test_a_record_without_a_step_goes_on_and_is_pinned(config, tmp_path):
  """config.json of before steps were recorded."""
  workdir = tmp_path / "run"
  start(config, str(workdir))
  path = workdir / "config.json"
  record = json.loads(path.read_text())
  pinned = {k: record[k] for k in ("teacher_sha256", "teacher_step")}
  del record["teacher_step"]
  path.write_text(json.dumps(record | {"teacher_sha256": None}))
  start(config, str(workdir))
  assert json.loads(path.read_text()).items() >= pinned.items()
  assert runs.read_record(str(workdir))["teacher_step"] == 3


def test_a_pin_says_what_it_knows():
  assert str(teachers.Pin("ab" * 32, 7)) == "step 7, SHA-256 abababababab"
  assert str(teachers.Pin()) == "SHA-256 unknown"


def test_a_teacher_s_folder_says_how_its_images_are_normalised(
  tiny_config, tmp_path
):
  """Which the variant's mean and deviation need not be."""
  params = weights.load(
    tiny_config.teacher.weights, variant=VARIANT, num_classes=10
  )
  images = preprocess.Preprocess((28, 28), 28, (0.1,) * 3, (0.2,) * 3)
  folder = tmp_path / "timm"
  weights.save(
    folder, params, variant=VARIANT, format="timm", preprocess=images
  )
  assert experiment.build(tiny_config).objective.teacher_stats == (
    (0.5,) * 3,
    (0.5,) * 3,
  )
  tiny_config.teacher.weights = str(folder)
  assert experiment.build(tiny_config).objective.teacher_stats == (
    (0.1,) * 3,
    (0.2,) * 3,
  )
