"""Tests of vitkd_jax.prepare on trees of folders."""

import errno
import os

import pytest
import tensorflow_datasets as tfds
from trees import make_tree, picture, run, simple_tree

from vitkd_jax.data import datasets
from vitkd_jax.data.builders import tree


def test_tree_is_read_back(tmp_path, capsys):
  files = {
    "train/eel/deep/er.JPG": picture(0),
    "train/ant/1.png": picture(1, ".png", (20, 30)),
    "train/ant/2.webp": picture(2, ".webp"),
    "train/bee/3.jpeg": picture(3),
    "val/ant/9.jpg": picture(4),
    "val/bee/9.jpg": picture(5),
    "val/eel/9.jpg": picture(6),
    "train/ant/.hidden.jpg": b"",
    "train/ant/.copies/1.jpg": b"",
  }
  root = make_tree(tmp_path / "root", files)
  status, out, _ = run(capsys, "zoo", "--source", root, "--data-dir", tmp_path)
  assert status == 0
  assert str(tmp_path / "zoo" / "1.0.0") in out
  info = datasets.info("zoo", str(tmp_path))
  assert info.class_names == ("ant", "bee", "eel")
  assert info.image_size is None
  assert info.num_examples == {"train": 4, "val": 3}
  builder = tfds.builder_from_directory(tmp_path / "zoo" / "1.0.0")
  kept = {"image": tfds.decode.SkipDecoding()}
  found = {
    f"{split}/{record['file_name'].decode()}": record
    for split in ("train", "val")
    for record in builder.as_data_source(split, decoders=kept)
  }
  assert set(found) == {name for name in files if "/." not in name}
  for name, record in found.items():
    assert record["image"] == files[name]  # the file's own bytes
    label = info.class_names[int(record["label"])]
    assert label == name.split("/")[1]
  source = datasets.load("zoo", "train", data_dir=str(tmp_path))
  shapes = {source[i]["image"].shape for i in range(4)}
  assert shapes == {(8, 9, 3), (20, 30, 3)}


def test_layouts_and_splits(tmp_path, capsys):
  root = simple_tree(tmp_path / "two")
  run(
    capsys, "two", "--source", root, "--splits", "val", "--data-dir", tmp_path
  )
  assert datasets.info("two", str(tmp_path)).num_examples == {"val": 12}
  # Without a folder `train`, the folders are classes.
  root = simple_tree(tmp_path / "flat", splits=("a", "b"))
  run(capsys, "flat", "--source", root, "--data-dir", tmp_path)
  info = datasets.info("flat", str(tmp_path))
  assert info.num_examples == {"train": 24}
  assert info.class_names == ("a", "b")


def test_share_for_validation_is_of_each_class_and_fixed(tmp_path):
  files = {f"{c}/{i}.jpg": picture(i) for c in "ab" for i in range(10)}
  root = make_tree(tmp_path, files)
  found = tree.find(root, val_share=0.3)
  names = {s: [e.name for e in each] for s, each in found.splits.items()}
  assert sorted(names["train"] + names["validation"]) == sorted(files)
  assert len(names["validation"]) == 6
  assert sum(name[0] == "a" for name in names["validation"]) == 3
  (tmp_path / "c").mkdir()
  (tmp_path / "c" / "1.jpg").write_bytes(picture(1))  # moves nothing else
  again = tree.find(root, val_share=0.3).splits["validation"]
  assert {e.name for e in again} == set(names["validation"])


def test_empty_classes_keep_their_numbers(tmp_path, capsys):
  root = simple_tree(tmp_path / "root")
  (tmp_path / "root" / "val" / "bee").mkdir()
  (tmp_path / "root" / "train" / "cat" / "notes.txt").write_text("x")
  (tmp_path / "root" / "train" / "loose.jpg").write_bytes(picture(0))
  status, _, err = run(capsys, "pets", "--source", root, "--data-dir", tmp_path)
  assert status == 0
  assert "split train: 1 of 3 classes have no images (bee)" in err
  assert "skipped 2 files that are not images or not in a class folder" in err
  assert "(loose.jpg, cat/notes.txt)" in err
  assert datasets.info("pets", str(tmp_path)).class_names == (
    "bee",
    "cat",
    "dog",
  )
  source = datasets.load("pets", "train", data_dir=str(tmp_path))
  labels = {int(source[i]["label"]) for i in range(len(source))}
  assert labels == {1, 2}


def test_bad_images_are_named_before_anything_is_written(tmp_path, capsys):
  root = simple_tree(tmp_path / "root")
  make_tree(
    root,
    {
      "train/cat/empty.jpg": b"",
      "train/dog/page.png": b"<html>",
      **{f"val/cat/bad{i}.jpg": b"" for i in range(10)},
    },
  )
  folder = tmp_path / "root" / "val" / "dog"
  (folder / "gone.jpg").symlink_to("nowhere")
  (folder / os.fsdecode(b"latin\xe9.jpg")).write_bytes(picture(0))
  args = ("pets", "--source", root, "--data-dir", tmp_path / "out")
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "14 of 38 images cannot be used" in err
  assert f"{root}/train/cat/empty.jpg is empty; " in err
  assert (
    "page.png is not JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000, PPM, PGM"
    " or TGA (begins with b'<htm'" in err
  )
  assert "and 4 more" in err
  assert "--skip-bad" in err
  assert not (tmp_path / "out").exists()
  status, _, err = run(capsys, *args, "--skip-bad")
  assert status == 0
  assert "skipped 14 files" in err
  skipped = (tmp_path / "out" / "pets" / "1.0.0" / "skipped.txt").read_bytes()
  assert skipped.count(b"\n") == 14
  assert b"gone.jpg cannot be read (No such file or directory)" in skipped
  assert b"latin\xe9.jpg has a name that is not UTF-8" in skipped
  info = datasets.info("pets", str(tmp_path / "out"))
  assert info.num_examples == {"train": 12, "val": 12}


def test_a_pipe_among_the_images_does_not_wait_for_its_writer(tmp_path, capsys):
  root = simple_tree(tmp_path / "root")
  os.mkfifo(tmp_path / "root" / "train" / "cat" / "pipe.jpg")
  args = ("pets", "--source", root, "--data-dir", tmp_path / "out")
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "pipe.jpg cannot be read (expected a regular file)" in err


@pytest.mark.parametrize("closed", ["", "train", "train/dog"])
def test_a_folder_that_cannot_be_read_is_named(
  tmp_path, capsys, monkeypatch, closed
):
  root = simple_tree(tmp_path / "root")
  path = os.path.join(root, closed).rstrip("/")

  def scandir(folder):  # permissions do not hold for root, who may run this
    if os.fspath(folder) == path:
      raise PermissionError(errno.EACCES, "Permission denied", folder)
    return opened(folder)

  opened = os.scandir
  monkeypatch.setattr(os, "scandir", scandir)
  status, _, err = run(capsys, "a", "--source", root, "--data-dir", tmp_path)
  assert status == 2
  assert f"cannot read the folder {path} (Permission denied)" in err


def test_links_that_lead_back_are_refused(tmp_path, capsys):
  root = simple_tree(tmp_path / "root")
  (tmp_path / "root" / "train" / "cat" / "loop").symlink_to(".")
  status, _, err = run(capsys, "a", "--source", root, "--data-dir", tmp_path)
  assert status == 2
  assert "train/cat/loop links to" in err


@pytest.mark.parametrize(
  "args, words",
  [
    (["pets", "--source", "{}/no"], "expected a folder, but there is no"),
    (["pets", "--source", "{}/empty"], "/empty/CLASS/IMAGE"),
    (["pets", "--source", "{}/hollow"], "no usable image in class folders"),
    (
      ["pets", "--source", "{}/two", "--splits", "tran"],
      "a folder 'tran'",
    ),
    (
      ["pets", "--source", "{}/two", "--val-share", "0.1"],
      "tree without splits",
    ),
    (
      ["pets", "--source", "{}/flat", "--val-share", "1.5"],
      "(0, 1), got 1.5",
    ),
    (
      ["pets", "--source", "{}/flat", "--val-share", "0.1"],
      "but validation gets none",
    ),
    (
      ["pets", "--source", "{}/flat", "--val-share", "0.9"],
      "train gets none",
    ),
    (["pets", "--source", "{}/two", "--splits", "train, tst"], "folder 'tst'"),
    (["my-pets", "--source", "{}/two"], "expected a dataset name of letters"),
    (
      ["pets", "--source", "gs://bucket/two"],
      "expected a local folder, got gs://",
    ),
    (
      ["imagenet_r", "--source", "{}", "--splits", "test"],
      "does not apply to",
    ),
  ],
)
def test_refusals(tmp_path, capsys, args, words):
  (tmp_path / "empty").mkdir()
  for name in ("cat", "dog"):
    (tmp_path / "hollow" / name).mkdir(parents=True)
  simple_tree(tmp_path / "two", count=1)
  files = {f"{name}/1.jpg": picture(0) for name in ("cat", "dog")}
  make_tree(tmp_path / "flat", files)
  args = [arg.format(tmp_path) for arg in args]
  status, _, err = run(capsys, *args, "--data-dir", tmp_path / "out")
  assert status == 2
  assert words in err
  assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
  simple_tree(tmp_path / "two", count=1)
  (tmp_path / "out").write_text("a file")
  args = ["pets", "--source", tmp_path / "two", "--data-dir", tmp_path / "out"]
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "cannot make " in err
  assert "out/pets/1.0.0: " in err
