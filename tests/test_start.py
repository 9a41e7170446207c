"""A student that starts from weights: what is read, kept, pinned, refused."""

import json
import pathlib
import shutil

import drawn
import jax
import numpy as np
import pytest
import safetensors.numpy

from vitkd_jax import doctor, train, weights
from vitkd_jax.commandline import command
from vitkd_jax.data import datasets, preprocess
from vitkd_jax.runs import checkpoint
from vitkd_jax.training import experiment, loop

VARIANT = "deit_pico_patch4_28"


@pytest.fixture
def config(student_alone):
  """A student alone of few steps."""
  student_alone.student = dict(variant=VARIANT, depth=1, scan=False)
  student_alone.run.epochs = 4 * 16 / 64
  student_alone.run.checkpoint_every = 2
  student_alone.run.eval_every = 0
  return student_alone


def save(path, classes=10, image_size=28, seed=0, **more):
  params = drawn.params(
    classes, seed, image_size=image_size, variant=VARIANT, depth=1
  )
  fields = dict(variant=VARIANT, depth=1, image_size=image_size)
  return weights.save(path, params, format="flat", **fields, **more), params


def first_state(config):
  parts = experiment.build(config)
  return parts, jax.device_get(parts.create_state())


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("scan", [False, True])
def test_student_and_average_start_from_the_weights(
  config, tmp_path, scan, untraced
):
  path, params = save(tmp_path / "a.safetensors")
  config.student.init = str(path)
  config.student.scan = scan
  parts, state = first_state(config)
  if scan:
    block = params["Transformer"].pop("encoderblock_0")
    stacked = jax.tree.map(lambda x: x[None], block)
    params["Transformer"]["encoderblock"] = stacked
  assert_same(state.params["student"], params)
  assert_same(state.ema, params)
  assert parts.start.notes == ()
  assert parts.start.pin.sha256 == weights.sha256(path)


def test_a_new_head_is_the_one_that_the_seed_draws(config, tmp_path, untraced):
  drawn_state = first_state(config)[1]
  path, params = save(tmp_path / "a.safetensors", classes=7, image_size=56)
  config.student.init, config.student.init_head = str(path), "init"
  parts, state = first_state(config)
  student = state.params["student"]
  assert_same(student["head"], drawn_state.params["student"]["head"])
  assert_same(student["Transformer"], params["Transformer"])
  assert student["pos_embedding"].shape == (1, 49, 64)
  assert "resized from 14x14 to 7x7" in " ".join(parts.start.notes)
  assert "head of 7 classes dropped" in parts.start.notes
  assert "a new head is drawn for 10 classes" in parts.start.notes


@pytest.mark.parametrize("fsdp", [1, 8])
def test_it_is_sharded_like_any_state(config, tmp_path, fsdp, monkeypatch):
  monkeypatch.undo()  # all devices
  path, params = save(tmp_path / "a.safetensors")
  config.student.init = str(path)
  config.run.fsdp = fsdp
  parts = experiment.build(config)
  state = parts.create_state()
  assert_same(jax.device_get(state.params["student"]), params)
  kernel = state.params["student"]["Transformer"]["encoderblock_0"][
    "MlpBlock_0"]["Dense_0"]["kernel"]  # fmt: skip
  assert kernel.addressable_shards[0].data.size == kernel.size / fsdp


def test_other_normalisation_and_classes_are_noted(config, tmp_path, untraced):
  names = [f"class {i}" for i in range(10)]
  images = preprocess.Preprocess((28, 28), 28, (0.1,) * 3, (0.2,) * 3)
  path, _ = save(
    tmp_path / "a.safetensors", class_names=names, preprocess=images
  )
  config.student.init = str(path)
  notes = experiment.build(config).start.notes
  assert len(notes) == 2
  assert notes[0].startswith("its class names differ from fashion_mini's")
  assert "normalised by mean (0.1, 0.1, 0.1)" in notes[1]
  own = list(datasets.info("fashion_mini").class_names)
  save(tmp_path / "a.safetensors", class_names=own[::-1])
  with pytest.raises(ValueError, match=r"init=.* classes .* in another order"):
    experiment.build(config)
  config.student.init_head = "init"
  assert "a new head" in experiment.build(config).start.notes[-1]


@pytest.mark.parametrize(
  "change, said",
  [
    (dict(init="no/such.npz"), "config.student.init: expected weights at"),
    (dict(init="shipped:nothing"), "config.student.init: expected shipped:"),
    (dict(depth=2), "config.student.init: "),
    (dict(gelu="tanh"), "config.student.init: "),
    (dict(init_head="drop"), "init_head to be one of 'keep', 'init', got"),
    (dict(init_head=3), "expected config.student.init_head to be text, got 3"),
    (dict(init=7), "expected config.student.init to be text, got 7"),
    (dict(intt="x"), "unknown model field 'intt'; the nearest is 'init'"),
    (
      dict(init="SEVEN"),
      "expected weights with fashion_mini's 10 classes in config.student.init,"
      " got 7 classes in ",
    ),
  ],
)
def test_what_does_not_fit_is_refused(config, tmp_path, change, said):
  path, _ = save(tmp_path / "a.safetensors")
  config.student.init = str(path)
  if change.get("init") == "SEVEN":
    change = dict(init=str(save(tmp_path / "seven.safetensors", classes=7)[0]))
  if "gelu" in change:  # a folder states it
    folder = tmp_path / "timm"
    weights.save(folder, save(path)[1], variant=VARIANT, depth=1, format="timm")
    config.student.init = str(folder)
  with config.unlocked(), config.ignore_type():
    config.student.update(change)
  with pytest.raises(ValueError, match=r".") as refusal:
    experiment.build(config)
  assert str(refusal.value).startswith(said) or said in str(refusal.value)
  assert "\n" not in str(refusal.value)


def run(config, workdir, stop_at=None, monkeypatch=None):
  """Trains, or is killed after the checkpoint of a step; the log."""
  save = loop.Loop._save

  def save_and_die(self, step, state, result, **kwargs):
    save(self, step, state, result, **kwargs)
    if step == stop_at:
      self._checkpoints.wait()
      raise KeyboardInterrupt

  if stop_at is None:
    train.train(config, str(workdir))
  else:
    with monkeypatch.context() as patch:
      patch.setattr(loop.Loop, "_save", save_and_die)
      with pytest.raises(KeyboardInterrupt):
        train.train(config, str(workdir))
  return (workdir / "train.log").read_text()


def test_a_resume_needs_the_weights_no_more(
  config, tmp_path, monkeypatch, drawn_state
):
  path, _ = save(tmp_path / "a.safetensors")
  config.student.init = str(path)
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  said = run(config, whole)
  sha = weights.sha256(path)
  assert f"student starts from {path}: SHA-256 {sha[:12]}" in said
  record = json.loads((whole / "config.json").read_text())
  assert record["init"] == {"sha256": sha, "step": None}
  run(config, broken, 2, monkeypatch)
  moved = shutil.move(path, tmp_path / "elsewhere.safetensors")
  said = run(config, broken)
  assert "resumed from the checkpoint of step 2" in said
  one, other = (
    safetensors.numpy.load_file(folder / "student.safetensors")
    for folder in (whole, broken)
  )
  assert one.keys() == other.keys()
  assert all(np.array_equal(one[name], other[name]) for name in one)
  assert (
    json.loads((broken / "config.json").read_text())["init"]["sha256"] == sha
  )
  # Of a run without a checkpoint they are needed.
  shutil.rmtree(broken / "checkpoints")
  with pytest.raises(command.RefusedError, match="got no such file"):
    train.train(config, str(broken))
  config.student.init = str(moved)
  train.train(config, str(broken))


def test_other_weights_are_another_run(
  config, tmp_path, monkeypatch, drawn_state
):
  path, _ = save(tmp_path / "a.safetensors")
  config.student.init = str(path)
  workdir = tmp_path / "run"
  run(config, workdir, 2, monkeypatch)
  before = sorted(x.name for x in (workdir / "checkpoints").iterdir())
  other, _ = save(tmp_path / "b.safetensors", seed=1)
  config.student.init = str(other)
  with pytest.raises(command.RefusedError, match=r"init\.sha256 was") as said:
    train.train(config, str(workdir))
  assert "\n" not in str(said.value)
  config.student.init = ""
  with pytest.raises(command.RefusedError, match=r"a different run: init"):
    train.train(config, str(workdir))
  assert before == sorted(x.name for x in (workdir / "checkpoints").iterdir())
  shutil.copy(path, tmp_path / "copy.safetensors")
  config.student.init = str(tmp_path / "copy.safetensors")
  train.train(config, str(workdir))
  # A run that began at random is no such run either.
  config.student.init = ""
  train.train(config, str(tmp_path / "random"))
  config.student.init = str(path)
  with pytest.raises(command.RefusedError, match=r"a different run: init"):
    train.train(config, str(tmp_path / "random"))


def test_a_run_s_checkpoint_is_pinned_by_its_step(config, tmp_path, untraced):
  params = drawn.params(10, variant=VARIANT, depth=1)
  with checkpoint.Checkpoints(tmp_path / "old" / "checkpoints") as old:
    for step in (5, 6):
      scaled = jax.tree.map(lambda x, step=step: x * np.float32(step), params)
      old.save(step, {"params": {"student": scaled}, "ema": None}, top1=None)
      old.wait()
  config.student.init = str(tmp_path / "old")
  parts, state = first_state(config)
  assert parts.start.pin.step == 6
  assert parts.start.notes == ("student of the checkpoint of step 6",)
  assert_same(
    state.params["student"], jax.tree.map(lambda x: x * np.float32(6), params)
  )
  earlier = experiment.build(config, started=type(parts.start.pin)("?", 5))
  assert earlier.start.pin.step == 5  # of a run that has not saved yet
  shutil.rmtree(tmp_path / "old")
  again = experiment.build(config, started=parts.start.pin, resumes=True)
  assert again.start.pin == parts.start.pin


def test_the_doctor_says_where_a_student_starts(config, tmp_path, drawn_state):
  path, _ = save(tmp_path / "a.safetensors")
  config.student.init = str(path)
  found = doctor.examine(config)
  assert all(finding.good is not False for finding in found)
  (said,) = (x.found for x in found if x.what == "first weights")
  assert said.startswith(f"{path}, SHA-256 ")


def test_a_students_own_export_is_a_start(config, tmp_path):
  """With its fields in config.json, and those of the start left out."""
  path, _ = save(tmp_path / "a.safetensors")
  config.student.init = str(path)
  config.run.epochs, config.schedule.warmup_epochs = 0.25, 0.0
  train.train(config, str(tmp_path / "first"))
  exported = pathlib.Path(tmp_path / "first" / "student.safetensors")
  config.student.init = str(tmp_path / "first")
  parts, state = first_state(config)
  assert parts.start.pin.sha256 == weights.sha256(exported)
  want = weights.load(exported, variant=VARIANT, depth=1, num_classes=10)
  assert_same(state.params["student"], want)
