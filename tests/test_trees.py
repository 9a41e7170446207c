"""Trees of folders: what is taken for splits and classes, and what is not."""

import json
import os
import pathlib

import numpy as np
from PIL import Image
import pytest
from trees import contents, make_tree, picture, run

from vitkd_jax.configs import folder
from vitkd_jax.data import datasets
from vitkd_jax.data.builders import layout, tree

LITTER = {
  "__MACOSX/pets/._1.jpg": b"x",
  "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg": b"x",
  "$RECYCLE.BIN/1.jpg": b"x",
  "desktop.ini": b"x",
  "Thumbs.db": b"x",
  ".DS_Store": b"x",
}


def some_tree(root, *places, names=("cat", "dog"), count=2):
  """`count` images in each class folder of each place."""
  files = {
    f"{place}/{name}/{i}.jpg": picture(100 * k + i)
    for place in places
    for k, name in enumerate(names)
    for i in range(count)
  }
  return make_tree(root, files)


def taken(root, **options):
  """Class names, and the number of images in each split."""
  found = tree.find(root, **options)
  return found.class_names, {s: len(e) for s, e in found.splits.items()}


@pytest.mark.parametrize(
  "places, splits",
  [
    (["Train", "Test"], {"train": 4, "test": 4}),
    (["TRAIN", "Valid"], {"train": 4, "valid": 4}),
    (["train/train", "val/val"], {"train": 4, "val": 4}),
    (["Train/train", "test"], {"train": 4, "test": 4}),
    (["train", "validation", "extra"], {"train": 4, "validation": 4}),
  ],
)
def test_splits_are_found(tmp_path, places, splits):
  root = some_tree(tmp_path, *places)
  make_tree(root, LITTER)
  make_tree(root, {f"{places[0]}/{name}": b"x" for name in LITTER})
  assert taken(root) == (("cat", "dog"), splits)
  notes = " ".join(tree.find(root).notes)
  assert ("ignored extra beside" in notes) == ("extra" in places)
  assert "not images or not in a class" not in notes  # litter goes without


@pytest.mark.parametrize(
  "places, words",
  [
    (["pets/train", "pets/test"], "did you mean --source {}/pets, which holds"),
    (["a/b/train", "a/b/test"], "did you mean --source {}/a/b, which holds te"),
    (["pets"], "did you mean --source {}/pets, which holds cat, dog"),
    (["pets", "__MACOSX"], "got 'pets' alone; did you mean --source {}/pets"),
    (["training", "testing"], "names of splits: testing, training; rename"),
    (["training", "testing"], "--splits training,testing"),
    (["training/x", "cat", "dog"], "training; move these out, or rename them"),
    (["seg_train", "seg_test"], "names of splits: seg_test, seg_train"),
    (["Training_Set", "valid"], "names of splits: Training_Set, valid"),
    (["TrainImages", "x"], "names of splits: TrainImages"),
    (["cars_train", "cars_test"], "names of splits: cars_test, cars_trai"),
    (["test", "val"], "names of splits: test, val"),
    (["train/images", "val/images"], "move up the folders of {}/train/images"),
    (["train/Train2017", "val"], "names of splits: Train2017; move the"),
    (["bottle/train", "bottle/test", "nut/train"], "{}/bottle holds splits (t"),
    (["train/bottle/test", "train/nut/a"], "{}/train/bottle holds splits (tes"),
  ],
)
def test_what_stands_above_the_classes_is_refused(tmp_path, places, words):
  root = some_tree(tmp_path, *places)
  with pytest.raises(ValueError, match="--trust-classes") as error:
    tree.find(root)
  assert words.format(root) in str(error.value)


def test_one_class_is_refused_unless_it_is_trusted(tmp_path):
  root = some_tree(tmp_path, "train", names=["all"])
  with pytest.raises(ValueError, match="expected at least two class folders"):
    tree.find(root)
  assert taken(root, trust_classes=True) == (("all",), {"train": 2})


def test_classes_called_as_splits_are_taken_when_trusted(tmp_path):
  root = some_tree(tmp_path, ".", names=["bus", "train", "test tube"])
  with pytest.raises(ValueError, match="train has no class folders"):
    tree.find(root)
  wanted = ("bus", "test tube", "train"), {"train": 6}
  assert taken(root, trust_classes=True) == wanted
  root = some_tree(tmp_path / "two", "train", names=["bus", "train"])
  with pytest.raises(ValueError, match="names of splits: train; move"):
    tree.find(root)
  assert taken(root, trust_classes=True) == (("bus", "train"), {"train": 4})


def test_words_within_a_name_are_no_splits(tmp_path):
  names = ["devil", "restraint", "test_tube", "trainer", "valley"]
  root = some_tree(tmp_path, "train", names=names)
  assert taken(root)[0] == tuple(names)


def test_named_splits_are_found_in_any_case(tmp_path):
  root = some_tree(tmp_path, "seg_train/seg_train", "seg_test/seg_test")
  splits = {"seg_train": 4, "seg_test": 4}
  assert taken(root, splits=["seg_train", "seg_test"])[1] == splits
  root = some_tree(tmp_path / "two", "Train", "TRAIN")
  with pytest.raises(ValueError, match=r"TRAIN and Train are the same split"):
    tree.find(root)
  (tmp_path / "two" / "my-split").mkdir()
  with pytest.raises(ValueError, match="expected names of letters, digits"):
    tree.find(root, splits=["my-split"])


def test_the_next_command_knows_the_splits(tmp_path, capsys):
  root = some_tree(tmp_path / "root", "seg_train", "seg_test")
  args = ["pets", "--source", root, "--data-dir", tmp_path]
  status, out, _ = run(capsys, *args, "--splits", "seg_train,seg_test")
  assert status == 0
  assert "vitkd_jax.train --config folder:data=pets," in out
  config = folder.get_config(f"data=pets,data_dir={tmp_path}")
  assert config.data.train_split == "seg_train"
  assert config.data.eval_split == "seg_test"
  _, out, _ = run(capsys, "tests", *args[1:], "--splits", "seg_test")
  assert "vitkd_jax.evaluate --weights WEIGHTS --data tests --split seg" in out


@pytest.mark.parametrize(
  "name, words",
  [
    ("a\nb", "without control characters"),
    ("\x1b[31mred", "without control characters"),
    ("cat ", "outer spaces is another's name or empty"),
    ("  ", "outer spaces is another's name or empty"),
    (b"caf\xe9".decode(errors="surrogateescape"), "expected UTF-8 names"),
  ],
)
def test_class_names_that_cannot_be_stored_are_refused(tmp_path, name, words):
  root = some_tree(tmp_path, ".", names=["cat", name])
  with pytest.raises(ValueError, match="rename it") as error:
    tree.find(root, trust_classes=True)
  assert words in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "names, words",
  [
    (["1", "2", "10"], "'10' is class 1, before '2' (2);"),
    (["class9", "class10"], "'class10' is class 0, before 'class9' (1);"),
    (["01", "02", "10"], None),
    (["b2", "a10", "c"], None),
  ],
)
def test_another_order_of_classes_is_noted(tmp_path, names, words):
  root = some_tree(tmp_path, ".", names=names)
  found = tree.find(root)
  assert found.class_names == tuple(sorted(names))  # as ImageFolder has it
  noted = [note for note in found.notes if "ImageFolder" in note]
  assert len(noted) == (words is not None)
  assert not words or words in noted[0]


def test_names_in_a_refusal_leave_it_one_line(tmp_path):
  root = some_tree(tmp_path, "pets", names=["a\nb", "\x1b[31mred"])
  with pytest.raises(ValueError, match=r"which holds '\\x1b") as error:
    tree.find(root)
  assert str(error.value).isprintable()


def test_what_is_there_is_said_before_and_after(tmp_path, capsys):
  root = some_tree(tmp_path / "root", "train", "val")
  args = ["pets", "--source", root, "--data-dir", tmp_path]
  status, out, err = run(capsys, *args)
  assert status == 0
  assert "2 classes: cat, dog" in err
  assert "split val: 4 images (cat 2, dog 2)" in err
  assert out.splitlines() == [
    f"pets is in {tmp_path}/pets/1.0.0",
    "2 classes: cat, dog",
    "images: train 4, val 4",
    "image size: 8x9 pixels",
    "next: python -m vitkd_jax.train --config folder:data=pets,"
    f"data_dir={tmp_path} --workdir runs/pets",
  ]
  many = some_tree(
    tmp_path / "many", ".", names=[f"c{i:02}" for i in range(11)]
  )
  (tmp_path / "many" / "c05" / "more.jpg").write_bytes(picture(7, size=(9, 9)))
  _, out, err = run(capsys, "many", "--source", many, "--data-dir", tmp_path)
  assert "11 classes: c00, c01," in err
  assert "c09, ...\n" in err
  assert "split train: 23 images (2 to 3 per class)" in err
  assert "image size: varies" in out
  assert "--val-share 0.1 makes one" in out


# The common size, and EXIF's orientation.


def photo(path, size, orientation=None):
  """A JPEG of (H, W), perhaps with an orientation."""
  exif = Image.Exif()
  if orientation:
    exif[0x0112] = orientation
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size[::-1], (9, 99, 200)).save(path, exif=exif)


@pytest.mark.parametrize(
  "sizes, common, turned",
  [
    ([(32, 48)] * 4, (32, 48), 0),
    ([(32, 48)] * 3 + [(48, 32)], None, 0),
    ([(32, 48)] * 3 + [(32, 48, 3)], (32, 48), 1),
    ([(32, 32)] * 2 + [(32, 32, 6)] * 2, (32, 32), 2),
    # Of another size once it is upright.
    ([(32, 48)] * 3 + [(32, 48, 6)], None, 1),
    ([(32, 48)] * 3 + [(32, 48, 77)], (32, 48), 0),
  ],
)
def test_the_common_size_is_recorded(tmp_path, capsys, sizes, common, turned):
  for i, (height, width, *orientation) in enumerate(sizes):
    path = tmp_path / "root" / "train" / ("cat", "dog")[i % 2] / f"{i}.jpg"
    photo(path, (height, width), *orientation)
  args = ["a", "--source", tmp_path / "root", "--data-dir", tmp_path]
  status, out, _ = run(capsys, *args)
  assert status == 0
  assert datasets.info("a", str(tmp_path)).image_size == common
  hint = f"note: {turned} images have an EXIF orientation; they are read as st"
  assert (hint in out) == bool(turned)
  if common:
    source = datasets.load("a", "train", data_dir=str(tmp_path))
    assert source[0]["image"].shape == (*common, 3)
  assert run(capsys, *args)[1] == out  # nothing is forgotten


def test_home_is_written_as_a_tilde(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  some_tree(tmp_path / "root", "train", "val")
  args = ["pets", "--source", "~/root", "--data-dir", "~/sets"]
  status, out, _ = run(capsys, *args)
  assert status == 0
  assert f"pets is in {tmp_path}/sets/pets/1.0.0\n" in out
  assert "'folder:data=pets,data_dir=~/sets'" in out
  assert folder.get_config("data=pets,data_dir=~/sets").data.eval_split == "val"
  assert datasets.info("pets", "~/sets").num_examples["val"] == 4
  assert len(datasets.load("pets", "val", data_dir="~/sets")) == 4
  monkeypatch.setenv("TFDS_DATA_DIR", "~/sets")
  assert len(datasets.load("pets", "val")) == 4


# A second start.


def test_a_finished_set_is_known_without_opening_a_file(
  tmp_path, capsys, monkeypatch
):
  root = some_tree(tmp_path / "root", "train", "val")
  args = ["pets", "--source", root, "--data-dir", tmp_path]
  _, first, _ = run(capsys, *args)
  before = contents(tmp_path / "pets" / "1.0.0")
  looked = []
  monkeypatch.setattr(tree, "_look", lambda path: looked.append(path) or (0, 0))
  status, out, err = run(capsys, *args)
  assert status == 0
  assert out == first
  assert "pets is complete: names, sizes and times" in err
  assert not looked
  assert contents(tmp_path / "pets" / "1.0.0") == before


@pytest.mark.parametrize(
  "change",
  [
    lambda root: (root / "train" / "cat" / "0.jpg").write_bytes(picture(8) * 2),
    lambda root: (root / "train" / "cat" / "0.jpg").unlink(),
    lambda root: (root / "val" / "dog" / "9.jpg").write_bytes(picture(9)),
    lambda root: (root / "val" / "dog").rename(root / "val" / "eel"),
  ],
)
def test_a_changed_source_is_still_noticed(tmp_path, capsys, change):
  root = some_tree(tmp_path / "root", "train", "val")
  args = ["pets", "--source", root, "--data-dir", tmp_path]
  assert run(capsys, *args)[0] == 0
  change(pathlib.Path(root))
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "was begun with other files or options" in err


def test_other_times_or_options_are_looked_at_anew(tmp_path, capsys):
  root = some_tree(tmp_path / "root", "train", "val")
  args = ["pets", "--source", root, "--data-dir", tmp_path]
  assert run(capsys, *args)[0] == 0
  path = pathlib.Path(root) / "val" / "cat" / "0.jpg"
  os.utime(path, (1, 1))
  status, _, err = run(capsys, *args)
  assert (status, "is complete" in err) == (0, False)
  status, _, err = run(capsys, *args)  # now it knows these times
  assert (status, "is complete" in err) == (0, True)
  assert run(capsys, *args, "--splits", "train")[0] == 2


def test_what_is_written_may_lie_below_the_source(tmp_path, capsys):
  root = some_tree(tmp_path / "root", "train", "val")
  for data_dir in (tmp_path / "root", tmp_path / "root" / "out"):
    args = ["pets", "--source", root, "--data-dir", data_dir]
    assert run(capsys, *args)[0] == 0
    status, _, err = run(capsys, *args)
    assert (status, "is complete" in err) == (0, True)


def test_a_missing_shard_is_written_again(tmp_path, capsys):
  root = some_tree(tmp_path / "root", "train", "val")
  args = ["pets", "--source", root, "--data-dir", tmp_path]
  assert run(capsys, *args)[0] == 0
  folder = tmp_path / "pets" / "1.0.0"
  before = contents(folder)
  next(folder.glob("*-val.*")).unlink()
  assert run(capsys, *args)[0] == 0
  assert contents(folder) == before


def test_a_damaged_state_is_named(tmp_path, capsys):
  root = some_tree(tmp_path / "root", "train", "val")
  args = ["pets", "--source", root, "--data-dir", tmp_path]
  assert run(capsys, *args)[0] == 0
  state = tmp_path / "pets" / "1.0.0" / "preparation.json"
  for text in ("{", "[]", "{}", json.dumps({"fingerprint": "1", "shards": 1})):
    state.write_text(text)
    status, _, err = run(capsys, *args)
    assert status == 2
    assert "Traceback" not in err


def test_progress_advances_within_a_shard(tmp_path, capsys):
  root = some_tree(tmp_path / "root", "train", count=10)
  _, _, err = run(capsys, "pets", "--source", root, "--data-dir", tmp_path)
  for count in range(2, 21, 2):
    assert f"\n{count} of 20 images\n" in err


def test_litter_is_what_no_user_made():
  for name in (".x", "__MACOSX", "thumbs.DB", "System Volume Information"):
    assert layout.is_litter(name)
  for name in ("cat", "macosx", "recycling", "_x"):
    assert not layout.is_litter(name)
  assert np.all([layout.is_litter(p.split("/")[0]) for p in LITTER])
