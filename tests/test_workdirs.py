"""What a workdir stands for as weights: one rule, and a hash of what it was."""

import hashlib
import logging
import os
import pathlib
import shutil
import struct

import drawn
import jax
import numpy as np
import pytest
from saved import DAMAGED

from vitkd_jax import weights
from vitkd_jax.cluster import console
from vitkd_jax.runs import checkpoint, students
from vitkd_jax.runs import workdir as workdirs

FIELDS = dict(variant="test", depth=2, patch_size=(7, 7), image_size=28)
OPTIONS = dict(num_classes=5, scan=True, **FIELDS)

pytestmark = DAMAGED


def student(seed):
  """A scanned student's parameters, all random."""
  return drawn.params(seed=seed, scan=True, **FIELDS)


def save(workdir, *steps, keep=9, ema=True):
  """Checkpoints of (step, top-1); their students are of the seed `step`."""
  checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=keep)
  for step, top1 in steps:
    average = student(100 + step) if ema else None
    state = {"params": {"student": student(step)}, "ema": average}
    checkpoints.save(step, state, top1=top1)
    checkpoints.wait()
  checkpoints.close()


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_checkpoint_is_its_average_unless_which_says_otherwise(tmp_path):
  save(tmp_path, (2, 0.5), (3, 0.0))
  for asked, seed, note in (
    ({}, 103, "moving average of the checkpoint of step 3"),
    ({"which": "student"}, 3, "student of the checkpoint of step 3"),
    ({"which": "ema"}, 103, "moving average of the checkpoint of step 3"),
    ({"step": "best"}, 102, "moving average of the checkpoint of step 2"),
    ({"step": "2", "which": "student"}, 2, "student of the checkpoint of step"),
    ({"step": 2}, 102, "moving average of the checkpoint of step 2"),
  ):
    loaded = students.load(tmp_path, **asked, **OPTIONS)
    assert_same(loaded.params, student(seed))
    assert loaded.notes[0].startswith(note)
    assert loaded.format == "checkpoint"
  # The folder `checkpoints` itself is the same.
  loaded = students.load(tmp_path / "checkpoints", **OPTIONS)
  assert_same(loaded.params, student(103))
  with pytest.raises(
    ValueError, match=r"read them with vitkd_jax\.runs\.students\.load"
  ):
    weights.load(tmp_path, **OPTIONS)


def test_without_an_average_it_is_the_student(tmp_path):
  save(tmp_path, (1, None), ema=False)
  loaded = students.load(tmp_path, **OPTIONS)
  assert_same(loaded.params, student(1))
  assert loaded.notes == ("student of the checkpoint of step 1",)
  with pytest.raises(ValueError, match="keeps no moving average"):
    students.load(tmp_path, which="ema", **OPTIONS)


def test_what_was_exported_goes_before_the_checkpoints(tmp_path):
  save(tmp_path, (3, 0.1))
  path = tmp_path / "student.safetensors"
  weights.save(path, student(7), format="flat", scan=True, **FIELDS)
  loaded = students.load(tmp_path, **OPTIONS)
  assert_same(loaded.params, student(7))
  assert loaded.notes == ("the student that the run exported",)
  assert loaded.sha256() == weights.sha256(path)
  assert not students.load(path, **OPTIONS).notes
  for asked, seed in (({"which": "student"}, 3), ({"step": "latest"}, 103)):
    loaded = students.load(tmp_path, **asked, **OPTIONS)
    assert_same(loaded.params, student(seed))
  with pytest.raises(ValueError, match="needs a workdir with checkpoints"):
    students.load(path, step="best", **OPTIONS)
  assert_same(weights.load(tmp_path, **OPTIONS), student(7))
  with pytest.raises(
    ValueError, match=r"read it with vitkd_jax\.runs\.students\.load"
  ):
    weights.load(tmp_path, which="student", **OPTIONS)


def test_an_export_without_checkpoints_is_a_student(tmp_path):
  path = tmp_path / "student.safetensors"
  weights.save(path, student(7), format="flat", scan=True, **FIELDS)
  loaded = students.load(tmp_path, which="student", **OPTIONS)
  assert_same(loaded.params, student(7))
  with pytest.raises(ValueError, match="which='ema' needs a workdir with"):
    students.load(tmp_path, which="ema", **OPTIONS)


def test_the_best_or_a_number_is_taken(tmp_path, caplog):
  save(tmp_path, (0, 0.2), (1, 0.9), (2, None), (3, 0.4), (4, None), keep=3)
  caplog.clear()  # of slow saves

  def read(step):
    saved = students.read(tmp_path, "student", step)[1]
    want = students.sha256(
      weights.reading.read(export(tmp_path / "x.npz", saved.step)).arrays
    )
    assert saved.sha256 == want
    return saved.step

  for choice, step in ((None, 4), ("latest", 4), ("best", 1), (3, 3)):
    assert read(choice) == step
  with pytest.raises(
    ValueError,
    match=r"expected a checkpoint of step 0 in .*, got \[4, 3, 2, 1\]",
  ):
    read(0)
  with pytest.raises(ValueError, match="'latest', 'best' or a number"):
    read("newest")
  assert not caplog.text  # Orbax says of each reader that it only reads
  # As a deletion that was killed half-way leaves it: the next best one.
  shutil.rmtree(tmp_path / "checkpoints/1/state/ocdbt.process_0")
  assert read("best") == 3
  assert "checkpoint of step 1" in caplog.text


def export(path, seed):
  """The student of a seed as a file."""
  return weights.save(path, student(seed), format="flat", scan=True, **FIELDS)


def test_refusals(tmp_path):
  with pytest.raises(
    ValueError, match="which to be one of 'student', 'ema', got 'head'"
  ):
    students.read(tmp_path, "head", None)
  with pytest.raises(ValueError, match="got no such folder"):
    students.read(tmp_path / "none", None, None)
  with pytest.raises(
    ValueError, match=r"expected a checkpoint in .*, got none"
  ):
    students.read(tmp_path, None, None)
  assert not list(pathlib.Path(tmp_path).iterdir())


def test_the_hash_is_of_the_parameters_and_of_no_file(tmp_path):
  """A value, a name, a shape or a dtype changes it; a place or order not."""
  leaves = {"a/b": np.arange(6, dtype=np.float32), "c": np.float32(3)}
  text = b"a/b float32 (6,)\n" + struct.pack("<6f", *range(6))
  text += b"c float32 ()\n" + struct.pack("<f", 3)
  got = students.sha256(leaves)
  assert got == hashlib.sha256(text).hexdigest()
  assert got == students.sha256(dict(reversed(leaves.items())))
  strided = np.arange(12, dtype=np.float32)[::2] / 2
  assert got == students.sha256(leaves | {"a/b": strided})
  others = [
    leaves | {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3)},
    leaves | {"a/b": np.arange(6, dtype=np.int32)},
    leaves | {"a/b": np.nextafter(leaves["a/b"], np.float32(9))},
    {"a/d": leaves["a/b"], "c": leaves["c"]},
  ]
  assert len({got, *map(students.sha256, others)}) == 5
  # The same step, saved in another workdir beside others.
  save(tmp_path / "one", (1, None))
  save(tmp_path / "two", (1, 0.5), (2, 0.1))
  one = students.read(tmp_path / "one", None, None)[1]
  assert one == students.read(tmp_path / "two", None, 1)[1]
  assert one.sha256 != students.read(tmp_path / "two", None, 2)[1].sha256


def test_orbax_s_warnings_come_back(tmp_path):
  save(tmp_path, (1, None))
  level = logging.getLogger("absl").level
  students.read(tmp_path, None, None)
  assert logging.getLogger("absl").level == level
  assert os.listdir(tmp_path) == ["checkpoints"]


@pytest.mark.parametrize("other", [None, "notes.txt"])
def test_only_what_a_run_wrote_is_deleted(tmp_path, other):
  folder = tmp_path / "run"
  save(folder, (1, None))
  for name in (
    "config.json",
    "events.out.tfevents.1.host.2",
    "lock",
    "metrics.jsonl",
    "stacks-process-0.txt",
    "student.safetensors",
    "train.log",
    "plugins/profile/a/b.pb",
    "compilation_cache/run.json",
  ):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("")
  if other is not None:
    (folder / other).write_text("mine")
  assert workdirs.delete(str(folder)) == ([other] if other else [])
  assert folder.exists() == (other is not None)
  if other is not None:
    assert [path.name for path in folder.iterdir()] == [other]
  assert tmp_path.exists()


def test_an_empty_log_makes_no_file(tmp_path):
  """Python flushes it at its end, when --cleanup has deleted the workdir."""
  log = console.Log(str(tmp_path))
  log.flush()
  assert not list(tmp_path.iterdir())
  log.line("a")
  assert (tmp_path / "train.log").read_text().endswith(" a\n")
