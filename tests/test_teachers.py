"""Teachers: which weights a run learns from, start after start."""

import contextlib
import json
import pathlib
import shutil

import drawn
import jax
import numpy as np
import pytest

from vitkd_jax import train, weights
from vitkd_jax.cluster import sharding
from vitkd_jax.commandline import command
from vitkd_jax.data import datasets, preprocess
from vitkd_jax.runs import checkpoint, reading, students
from vitkd_jax.training import experiment, session, teacher_check, teachers

pytestmark = pytest.mark.usefixtures("untraced")
VARIANT = "deit3_pico_patch4_28"


def constant(value):
  """The teacher's parameters, all equal."""
  params = drawn.params(10, variant=VARIANT)
  return jax.tree.map(lambda x: np.full_like(x, value), params)


def save(folder, *steps):
  """A run's checkpoints, each with other parameters of the teacher's model."""
  checkpoints = checkpoint.Checkpoints(folder / "checkpoints", keep=9)
  for step in steps:
    moved = constant(step / 100)
    state = {"params": {"student": moved}, "ema": moved}
    checkpoints.save(step, state, top1=None)
  checkpoints.close()


@pytest.fixture
def config(tiny_config, tmp_path):
  """A training whose teacher is a run that has exported nothing."""
  save(tmp_path / "teacher", 3)
  tiny_config.teachers.teacher.weights = str(tmp_path / "teacher")
  return tiny_config


def start(config, workdir):
  """What each start of `train` does first; the parts."""
  parts = experiment.build(config, **session._earlier(workdir))
  with contextlib.ExitStack() as stack:
    session._claim(workdir, config, parts, "", stack)
  return parts


def bias(parts):
  return np.asarray(parts.teacher_params["teacher"]["head"]["bias"])


def test_the_step_stays_while_the_teacher_goes_on(config, tmp_path):
  workdir = str(tmp_path / "run")
  first = start(config, workdir)
  assert first.teacher_notes["teacher"][0] == (
    "moving average of the checkpoint of step 3"
  )
  assert "--step 3 --to flat" in first.teacher_notes["teacher"][1]
  np.testing.assert_allclose(bias(first), 0.03, rtol=1e-6)
  record = json.loads(pathlib.Path(workdir, "config.json").read_text())
  assert record["teachers"]["teacher"]["step"] == 3
  assert len(record["teachers"]["teacher"]["sha256"]) == 64
  save(tmp_path / "teacher", 4)
  weights.save(
    tmp_path / "teacher" / "student.safetensors",
    constant(0.5),
    variant=VARIANT,
    format="flat",
  )
  again = start(config, workdir)
  assert again.teacher_pins == first.teacher_pins
  np.testing.assert_array_equal(bias(again), bias(first))
  # A new run takes what there is now.
  other = start(config, str(tmp_path / "other"))
  assert other.teacher_pins["teacher"].step is None
  np.testing.assert_array_equal(bias(other), np.float32(0.5))


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
  assert "got [4]" in str(refusal.value)
  assert "\n" not in str(refusal.value)
  save(tmp_path / "teacher", 3)  # as it was
  start(config, workdir)
  shutil.rmtree(folder / "3")
  params = drawn.params(10, variant=VARIANT)
  checkpoints = checkpoint.Checkpoints(folder, keep=9)
  state = {"params": {"student": params}, "ema": params}
  checkpoints.save(3, state, top1=None)
  checkpoints.close()
  with pytest.raises(
    command.RefusedError,
    match=r"a different run: teachers.teacher.sha256 was",
  ):
    train.train(config, workdir)


def test_a_copy_of_the_step_is_the_same_teacher(config, tmp_path):
  workdir = str(tmp_path / "run")
  pin = start(config, workdir).teacher_pins
  path = str(tmp_path / "copy.safetensors")
  loaded = students.load(
    tmp_path / "teacher", variant=VARIANT, num_classes=10, step=3
  ).params
  weights.save(path, loaded, variant=VARIANT, format="flat")
  shutil.rmtree(tmp_path / "teacher")
  config.teachers.teacher.weights = path
  assert start(config, workdir).teacher_pins == pin
  loaded["head"]["bias"] = loaded["head"]["bias"] + 1
  weights.save(path, loaded, variant=VARIANT, format="flat")
  with pytest.raises(ValueError, match=r"teacher\.step was 3 and is None"):
    start(config, workdir)


def test_a_record_without_a_step_goes_on_and_is_pinned(config, tmp_path):
  """config.json of before steps were recorded."""
  workdir = tmp_path / "run"
  start(config, str(workdir))
  path = workdir / "config.json"
  record = json.loads(path.read_text())
  pinned = record.pop("teachers")
  path.write_text(json.dumps(record | {"teacher_sha256": None}))
  start(config, str(workdir))
  assert json.loads(path.read_text())["teachers"] == pinned
  assert reading.record(str(workdir))["teachers"]["teacher"]["step"] == 3


def test_a_pin_says_what_it_knows():
  assert str(teachers.Pin("ab" * 32, 7)) == "step 7, SHA-256 abababababab"
  assert str(teachers.Pin()) == "SHA-256 unknown"


def test_a_teacher_s_folder_says_how_its_images_are_normalised(
  tiny_config, tmp_path
):
  """Which the variant's mean and deviation need not be."""
  params = weights.load(
    tiny_config.teachers.teacher.weights, variant=VARIANT, num_classes=10
  )
  images = preprocess.Preprocess((28, 28), 28, (0.1,) * 3, (0.2,) * 3)
  folder = tmp_path / "timm"
  weights.save(
    folder, params, variant=VARIANT, format="timm", preprocess=images
  )
  assert experiment.build(tiny_config).objective.teachers["teacher"].stats == (
    (0.5,) * 3,
    (0.5,) * 3,
  )
  tiny_config.teachers.teacher.weights = str(folder)
  assert experiment.build(tiny_config).objective.teachers["teacher"].stats == (
    (0.1,) * 3,
    (0.2,) * 3,
  )


def with_names(path, names):
  """A teacher's file that names its classes."""
  weights.save(
    path, constant(0.5), variant=VARIANT, format="flat", class_names=names
  )
  return str(path)


def test_the_order_of_the_classes_is_compared(tiny_config, tmp_path):
  names = list(datasets.info("fashion_mini").class_names)

  def notes(names):
    tiny_config.teachers.teacher.weights = with_names(
      tmp_path / "t.safetensors", names
    )
    return experiment.build(tiny_config).teacher_notes["teacher"]

  assert notes(names) == ()
  assert notes([str(i) for i in range(10)]) == ()  # mere numbers name nothing
  (note,) = notes(["shirt-like", *names[1:]])
  assert note == (
    "its class names differ from fashion_mini's: class 0 is 'shirt-like', in "
    f"the dataset {names[0]!r}"
  )
  swapped = [names[0], names[2], names[1], *names[3:]]
  with pytest.raises(ValueError, match="in another order: class 1 is") as said:
    notes(swapped)
  assert "convert --classes" in str(said.value)
  # Token maps need no classes.
  del tiny_config.methods.nkd
  assert notes(swapped) == ()


def test_the_teacher_s_accuracy_is_what_its_logits_say(tiny_config):
  """Against the model as the objective runs it, block by block."""
  parts = experiment.build(tiny_config)
  with contextlib.closing(parts.inputs.train(0)) as batches:
    local = next(batches)
  image = np.float32(local["image"]) / 255
  views = parts.objective.teacher_views(parts.teacher_params, image)
  guess = np.asarray(views["teacher"].logits).argmax(-1)
  # Labels that half of the guesses meet: a random teacher's own meet none.
  label = np.where(np.arange(16) % 2, guess, (guess + 1) % 10).astype(np.int32)
  batch = {"image": local["image"], "label": label}
  batch = sharding.global_batch(batch, parts.mesh)
  score = teacher_check.score(parts, "teacher", batch)
  assert score.top1 == 0.5
  assert score.chance == 0.1
  assert score.good
  assert len(teacher_check.lines("teacher", score)) == 1
  assert teacher_check.score(parts, "teacher", batch, every=2).top1 == 0.0
  said = teacher_check.lines("teacher", teacher_check.Score(0.12, 0.1))
  assert said[0].startswith("teacher's accuracy: 12.0% on the first training")
  assert said[1].startswith("WARNING: the teacher hardly knows these classes")
