"""Tests of vitkd_jax.prepare and vitkd_jax.data.builders."""

import dataclasses
import errno
import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from vitkd_jax import prepare
from vitkd_jax.data import datasets
from vitkd_jax.data.builders import (
  fashion,
  imagenet,
  images,
  records,
  shards,
  synsets,
  tree,
)


def picture(seed, suffix=".jpg", size=(8, 9)):
  """Bytes of a small image, another one for each seed."""
  pixels = np.random.RandomState(seed).randint(0, 255, (*size, 3), np.uint8)
  return cv2.imencode(suffix, pixels)[1].tobytes()


def make_tree(root, files):
  """Writes {"train/cat/1.jpg": bytes} below `root`; returns it as text."""
  for name, data in files.items():
    path = pathlib.Path(root) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return str(root)


def simple_tree(root, count=6, splits=("train", "val")):
  return make_tree(
    root,
    {
      f"{split}/{name}/{i}.jpg": picture(seed + i, size=(8 + i, 9))
      for s, split in enumerate(splits)
      for seed, name in ((1000 * s, "cat"), (1000 * s + 500, "dog"))
      for i in range(count)
    },
  )


def run(capsys, *args):
  """Exit status, stdout and stderr of the command."""
  status = prepare.main([str(arg) for arg in args])
  out, err = capsys.readouterr()
  return status, out, err


def contents(folder):
  return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}


# A tree of folders.


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


# Shards: interruptions.


def planned(root):
  return records.plan(tree.dataset("pets", root), num_shards=3)


KILLED = """
import dataclasses, os, signal, sys
from vitkd_jax.data.builders import images, records, shards, tree

calls = []
def read(example):
  calls.append(example)
  if len(calls) == 18:  # of 24: within the second shard of the second split
    os.kill(os.getpid(), signal.SIGKILL)
  return images.read(example)

dataset = tree.dataset("pets", sys.argv[1])
dataset = dataclasses.replace(dataset, read=read)
shards.write(records.plan(dataset, num_shards=3), sys.argv[2])
"""


def test_a_kill_loses_one_shard_and_changes_no_byte(tmp_path):
  root = simple_tree(tmp_path / "root")
  whole = shards.write(planned(root), tmp_path / "whole")
  killed = subprocess.run(
    [sys.executable, "-c", KILLED, root, tmp_path / "out"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  folder = tmp_path / "out" / "pets" / "1.0.0"
  done = {p: p.stat().st_mtime_ns for p in folder.glob("*-of-00003")}
  assert len(done) == 4
  assert not datasets._versions(tmp_path / "out" / "pets")  # not yet a set
  reported = []
  assert (
    shards.write(planned(root), tmp_path / "out", reported.append) == folder
  )
  assert sum(reported) == 24
  assert reported == [4] * 4 + [1] * 8  # what is there, then one by one
  assert contents(folder) == contents(whole)
  for path, time in done.items():
    assert path.stat().st_mtime_ns == time  # not written again


FULL = """
import resource, sys
from vitkd_jax import prepare
limit = 250_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
status = prepare.main(sys.argv[1:])
assert "tensorflow" not in sys.modules
sys.exit(status)
"""


def test_a_full_disk_keeps_what_is_done(tmp_path, capsys):
  large = np.random.RandomState(0).bytes(300_000)
  files = {f"train/{name}/1.jpg": picture(0) for name in ("cat", "dog")}
  files |= {"val/cat/1.jpg": b"BM" + large}
  root = make_tree(tmp_path / "root", files)
  args = ("pets", "--source", root, "--data-dir")
  full = subprocess.run(
    [sys.executable, "-c", FULL, *args, tmp_path / "out"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert full.returncode == 1, full.stderr
  assert "File too large" in full.stderr
  assert "Finished shards are kept; the same command resumes" in full.stderr
  assert "Traceback" not in full.stderr
  folder = tmp_path / "out" / "pets" / "1.0.0"
  assert {p.name for p in folder.iterdir()} == {
    "pets-train.array_record-00000-of-00001",
    "preparation.json",
  }
  assert run(capsys, *args, tmp_path / "out")[0] == 0
  assert run(capsys, *args, tmp_path / "whole")[0] == 0
  assert contents(folder) == contents(tmp_path / "whole" / "pets" / "1.0.0")


def test_a_second_start_knows_its_own_folder(tmp_path, capsys):
  root = simple_tree(tmp_path / "root")
  args = ("pets", "--source", root, "--data-dir", tmp_path)
  assert run(capsys, *args)[0] == 0
  folder = tmp_path / "pets" / "1.0.0"
  before = contents(folder), folder.stat().st_mtime_ns
  assert run(capsys, *args)[0] == 0  # nothing to do
  make_tree(root, {"train/cat/new.jpg": picture(77)})
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "was begun with other files or options" in err
  assert (contents(folder), folder.stat().st_mtime_ns) == before
  (folder / "preparation.json").unlink()
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "holds files that this program did not write" in err


def test_too_little_room_is_said_before_the_first_shard(tmp_path):
  shard = shards.Shard("x.array_record-0", 1, 10**18, lambda seen: [b"1"])
  plan = shards.Plan("huge/1.0.0", "1", [shard], lambda *made: None)
  with pytest.raises(ValueError, match=r"expected 1,000,000,000.0 GB of free"):
    shards.write(plan, tmp_path)
  small = dataclasses.replace(plan, shards=[], fingerprint="2")
  shards.write(small, tmp_path)  # the folder may be begun anew


def test_a_second_process_is_kept_out(tmp_path):
  other = []

  def start_another(count):
    with pytest.raises(ValueError, match="another process is preparing"):
      shards.write(plan, tmp_path)
    other.append(count)

  def one(seen):
    seen(None)
    yield b"1"

  shard = shards.Shard("x.array_record-0", 1, 1, one)
  plan = shards.Plan("one/1.0.0", "1", [shard], lambda *made: None)
  shards.write(plan, tmp_path, start_another)
  assert other == [1]


def test_a_file_that_shrank_is_named(tmp_path):
  root = simple_tree(tmp_path / "root")
  plan = planned(root)
  (tmp_path / "root" / "val" / "dog" / "3.jpg").write_bytes(b"\xff\xd8\xff")
  with pytest.raises(OSError, match=r"val/dog/3.jpg changed while it was read"):
    shards.write(plan, tmp_path)


# ImageNet, from archives of its layout.


def tar(files):
  """Bytes of a tar file of {name: bytes}."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return buffer.getvalue()


def small_imagenet(folder):
  """Three synsets of five images and six validation images; two archives."""
  classes = synsets.names()
  train = {
    f"{classes[c]}.tar": tar(
      {f"{classes[c]}_{7 * k}.JPEG": picture(10 * c + k) for k in range(5)}
    )
    for c in (3, 999, 0)
  }
  val = {
    f"ILSVRC2012_val_{k:08d}.JPEG": picture(90000 + k)
    for k in (4, 1, 3, 2, 6, 5)
  }
  make_tree(
    folder, {imagenet.TRAIN.file: tar(train), imagenet.VAL.file: tar(val)}
  )
  return [
    dataclasses.replace(
      archive, size=(folder / archive.file).stat().st_size, count=count
    )
    for archive, count in ((imagenet.TRAIN, 15), (imagenet.VAL, 6))
  ]


# What tensorflow-datasets 4.9.10's own builder of imagenet2012 (5.1.0) made of
# the same two archives: number of synset and file, in the order of the records.
TFDS_TRAIN = "0_21 0_7 0_28 999_7 3_21 999_28 0_0 999_21 3_0 3_7 3_14 999_0"
TFDS_TRAIN += " 999_14 3_28 0_14"
TFDS_VALIDATION = "2:970 4:809 1:65 3:230 5:516 6:57"  # number: label


def test_imagenet_has_the_records_of_tfds(tmp_path):
  published = small_imagenet(tmp_path)
  dataset = imagenet.imagenet2012(str(tmp_path), published=published)
  folder = shards.write(records.plan(dataset), tmp_path / "out")
  builder = tfds.builder_from_directory(folder)
  kept = {"image": tfds.decode.SkipDecoding()}
  classes = synsets.names()
  got = []
  for record in builder.as_data_source("train", decoders=kept):
    label = int(record["label"])
    synset, number = record["file_name"].decode()[: -len(".JPEG")].split("_")
    assert synset == classes[label]
    assert record["image"] == picture(10 * label + int(number) // 7)
    got.append(f"{label}_{number}")
  assert got == TFDS_TRAIN.split()
  got = []
  for record in builder.as_data_source("validation", decoders=kept):
    number = int(record["file_name"][15:23])
    assert record["image"] == picture(90000 + number)
    got.append(f"{number}:{record['label']}")
  assert got == TFDS_VALIDATION.split()
  info = datasets.info("imagenet2012", str(tmp_path / "out"))
  assert info.num_classes == 1000
  assert info.class_names[0] == "n01440764"
  assert info.image_size == (8, 9)  # of these images


def test_validation_alone_needs_one_archive(tmp_path):
  published = small_imagenet(tmp_path)
  (tmp_path / imagenet.TRAIN.file).unlink()
  dataset = imagenet.imagenet2012(str(tmp_path), ["validation"], published)
  assert {s: len(e) for s, e in dataset.splits.items()} == {"validation": 6}


def test_real_labels(tmp_path):
  _, val = small_imagenet(tmp_path)
  labels = json.dumps([[1, 2], [], [3], [4], [5], [6, 7]]).encode()
  (tmp_path / "real.json").write_bytes(labels)
  digest = hashlib.sha256(labels).hexdigest()
  real = dataclasses.replace(imagenet.REAL, size=len(labels), sha256=digest)
  dataset = imagenet.imagenet2012_real(str(tmp_path), (val, real))
  folder = shards.write(records.plan(dataset), tmp_path / "out")
  source = tfds.builder_from_directory(folder).as_data_source(
    "validation", decoders={"image": tfds.decode.SkipDecoding()}
  )
  got = {int(r["file_name"][15:23]): r for r in source}
  assert [list(got[k]["real_label"]) for k in (1, 2, 6)] == [[1, 2], [], [6, 7]]
  assert int(got[1]["original_label"]) == int(got[1]["label"]) == 65
  wrong = dataclasses.replace(real, sha256="0" * 64)
  with pytest.raises(ValueError, match="expected the published file"):
    imagenet.imagenet2012_real(str(tmp_path), (val, wrong))


@pytest.mark.parametrize(
  "name, member, file_name, label",
  [
    ("imagenet_v2", "format-val/12/ab.jpeg", "12/ab.jpeg", 12),
    ("imagenet_a", "imagenet-a/n01491361/0.1_x.jpg", "0.1_x.jpg", 3),
    ("imagenet_r", "imagenet-r/n01491361/art_0.jpg", "n01491361/art_0.jpg", 3),
  ],
)
def test_test_sets(tmp_path, name, member, file_name, label):
  archive = imagenet.TESTS[name][1]
  data = tar({"imagenet/README.txt": b"hello", member: picture(0)})
  (tmp_path / archive.file).write_bytes(data)
  archive = dataclasses.replace(archive, size=len(data), count=1)
  dataset = imagenet.evaluation_set(name, str(tmp_path), archive)
  (example,) = dataset.splits["test"]
  assert (example.name, example.label) == (file_name, label)
  assert images.read(example) == picture(0)


def test_official_archives_are_asked_for_by_name_and_size(tmp_path, capsys):
  args = ("imagenet2012", "--source", tmp_path, "--data-dir", tmp_path / "out")
  status, _, err = run(capsys, *args)
  assert status == 2
  for words in (
    "ILSVRC2012_img_train.tar (147,897,477,120 bytes)",
    "ILSVRC2012_img_val.tar (6,744,924,160 bytes)",
    f"{tmp_path} has no ILSVRC2012_img_train.tar: ImageNet gives it to those",
    "https://image-net.org/download-images",
  ):
    assert words in err
  small_imagenet(tmp_path)  # right in all but its size
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "expected the published 147,897,477,120 bytes, got" in err
  status, _, err = run(capsys, "imagenet_a", *args[1:])
  assert "~hendrycks/imagenet-a.tar" in err
  assert not (tmp_path / "out").exists()


def test_wrong_archives_are_refused(tmp_path):
  train, val = small_imagenet(tmp_path)

  def refusal(data=None, archive=train, **changes):
    path = tmp_path / archive.file
    if data is not None:
      path.write_bytes(data)
      changes["size"] = len(data)
    changed = dataclasses.replace(archive, **changes)
    published = (changed, val) if archive is train else (train, changed)
    with pytest.raises(ValueError, match=archive.file) as error:
      imagenet.imagenet2012(str(tmp_path), published=published)
    return str(error.value)

  assert "expected the published 16 images, got 15" in refusal(count=16)
  assert "another file" in refusal(size=1000)
  right = (tmp_path / train.file).read_bytes()
  assert "expected an intact tar file" in refusal(b"\0" * 99 + b"nonsense")
  assert "gunzip" in refusal(gzip.compress(right))
  assert "tar for each synset, got 'n99.tar'" in refusal(tar({"n99.tar": b""}))
  assert "images, got 0" in refusal(b"\0" * 10240)
  assert "bytes outside it" in refusal(right[: len(right) // 2])


def test_bad_images_of_an_archive_are_named(tmp_path):
  files = {f"ILSVRC2012_val_{k:08d}.JPEG": picture(k) for k in range(1, 4)}
  files["ILSVRC2012_val_00000002.JPEG"] = b""
  data = tar(files)
  (tmp_path / imagenet.VAL.file).write_bytes(data)
  val = dataclasses.replace(imagenet.VAL, size=len(data), count=3)
  dataset = imagenet.imagenet2012(
    str(tmp_path), ["validation"], (imagenet.TRAIN, val)
  )
  assert dataset.bad == [images.Bad("ILSVRC2012_val_00000002.JPEG", "is empty")]
  labels = {e.name: e.label for e in dataset.splits["validation"]}
  assert labels["ILSVRC2012_val_00000003.JPEG"] == 230  # as in TFDS


def test_unpacked_imagenet_gets_the_same_names(tmp_path):
  classes = synsets.names()
  for synset in classes:
    for split in ("train", "val"):
      (tmp_path / split / synset).mkdir(parents=True)
  make_tree(
    tmp_path,
    {
      f"train/{classes[3]}/{classes[3]}_7.JPEG": picture(1),
      f"val/{classes[5]}/ILSVRC2012_val_00000007.JPEG": picture(2),
    },
  )
  dataset = imagenet.imagenet2012(str(tmp_path))
  (one,) = dataset.splits["train"]
  assert (one.name, one.label) == (f"{classes[3]}_7.JPEG", 3)
  (one,) = dataset.splits["validation"]
  assert (one.name, one.label) == ("ILSVRC2012_val_00000007.JPEG", 5)
  assert any("ImageNet's has 1,281,167" in note for note in dataset.notes)
  (tmp_path / "train" / "n1").mkdir()
  with pytest.raises(ValueError, match="got 1,001 others"):
    imagenet.imagenet2012(str(tmp_path))


def unpacked_train(root):
  for synset in synsets.names():
    (root / "train" / synset).mkdir(parents=True)
  name = synsets.names()[3]
  make_tree(root, {f"train/{name}/{name}_7.JPEG": picture(1)})


@pytest.mark.parametrize("below", ["", "ILSVRC/Data/CLS-LOC"])
@pytest.mark.parametrize("val", ["val", "validation"])
def test_flat_validation_images_are_labelled_by_their_numbers(
  tmp_path, below, val
):
  root = tmp_path / below
  unpacked_train(root)
  make_tree(
    root,
    {
      f"{val}/ILSVRC2012_val_00000002.JPEG": picture(2),
      f"{val}/ILSVRC2012_val_00000005.JPEG": picture(5),
      f"{val}/ILSVRC2012_val_00000006.JPEG": b"",
      f"{val}/.DS_Store": b"x",
      "test/ILSVRC2012_test_00000001.JPEG": picture(3),
    },
  )
  make_tree(tmp_path, {"ILSVRC/ImageSets/CLS-LOC/val.txt": b"x"})
  dataset = imagenet.imagenet2012(str(tmp_path))
  labels = {e.name: e.label for e in dataset.splits["validation"]}
  assert labels == {  # of TFDS_VALIDATION
    "ILSVRC2012_val_00000002.JPEG": 970,
    "ILSVRC2012_val_00000005.JPEG": 516,
  }
  assert [e.label for e in dataset.splits["train"]] == [3]
  assert [bad.reason for bad in dataset.bad] == ["is empty"]
  only = imagenet.imagenet2012(str(tmp_path), ["validation"])
  assert only.splits["validation"] == dataset.splits["validation"]
  (root / val / "other.JPEG").write_bytes(picture(1))
  with pytest.raises(ValueError, match=r"_val_00050000.JPEG in .*other.JPEG"):
    imagenet.imagenet2012(str(tmp_path))


def test_one_folder_of_validation_images_is_wanted(tmp_path):
  unpacked_train(tmp_path)
  with pytest.raises(ValueError, match=r"one folder val or validation.*none"):
    imagenet.imagenet2012(str(tmp_path))
  for name in ("val", "validation"):
    (tmp_path / name).mkdir()
  with pytest.raises(ValueError, match="got val and validation"):
    imagenet.imagenet2012(str(tmp_path))


# TFRecord files, written by TFDS: golden/make_tfrecord_set.py.

TFRECORDS = pathlib.Path(__file__).parent / "golden" / "tfrecord_set"


def test_tfrecords_are_converted_in_their_order(tmp_path, capsys):
  args = ("--source", TFRECORDS, "--data-dir", tmp_path)
  status, out, _ = run(capsys, "tfrecord_set", *args)
  assert status == 0
  assert str(tmp_path / "tfrecord_set" / "1.2.3") in out
  builder = tfds.builder_from_directory(tmp_path / "tfrecord_set" / "1.2.3")
  assert builder.info.splits["train"].shard_lengths == [2, 3]
  for split, count in (("train", 5), ("test", 2)):
    source = builder.as_data_source(split)
    texts = [record["text"].decode() for record in source]
    # TFDS wrote them in the order of their hashes.
    example = [images.Example(str(i), "", 0, 0, 0) for i in range(count)]
    wanted = [f"record {e.name}" for e in records.order(split, example)]
    assert texts == wanted
    for record in source:
      assert int(record["label"]) == int(record["text"].split()[1]) % 2
  assert builder.info.features["label"].names == ["ant", "bee"]


def test_damaged_tfrecords_stop_the_conversion(tmp_path, capsys):
  source = tmp_path / "data" / "tfrecord_set" / "1.2.3"
  shutil.copytree(TFRECORDS, source)
  args = ("tfrecord_set", "--source", tmp_path / "data", "--data-dir", tmp_path)
  path = source / "tfrecord_set-train.tfrecord-00001-of-00002"
  data = path.read_bytes()
  path.write_bytes(data[:-20])
  status, _, err = run(capsys, *args)
  assert status == 1
  assert f"{path} is truncated or corrupt after 2 records." in err
  path.write_bytes(data[: len(data) * 2 // 3])
  status, _, err = run(capsys, *args)
  assert status == 1
  assert f"expected 3 records in {path} by dataset_info.json, got 2." in err
  assert len(list((tmp_path / "tfrecord_set" / "1.2.3").glob("*-of-*"))) == 1
  path.unlink()
  status, _, err = run(capsys, *args)
  assert status == 2
  assert f"there is no file {path}" in err
  path.write_bytes(data)
  assert run(capsys, *args)[0] == 0


@pytest.mark.parametrize(
  "payload, words",
  [
    (b"\xff\xff", "is corrupt (Error parsing message"),
    (b"", "expected one label below 2, got none"),
    (b"\n\x10\n\x0e\n\x05label\x12\x05\x1a\x03\n\x01\x02", "got [2])"),
  ],
)
def test_bad_records_stop_the_conversion(tmp_path, capsys, payload, words):
  source = tmp_path / "data" / "tfrecord_set" / "1.2.3"
  shutil.copytree(TFRECORDS, source)
  path = source / "tfrecord_set-train.tfrecord-00000-of-00002"
  data = path.read_bytes()
  second = 16 + int.from_bytes(data[:8], "little")
  record = len(payload).to_bytes(8, "little") + bytes(4) + payload + bytes(4)
  path.write_bytes(data[:second] + record)
  args = ("--source", tmp_path / "data", "--data-dir", tmp_path)
  status, _, err = run(capsys, "tfrecord_set", *args)
  assert status == 1
  assert f"record 1 of {path}" in err
  assert words in err


@pytest.mark.parametrize(
  "file, old, new, words",
  [
    (
      "dataset_info.json",
      "1.2.3",
      "../1.2.3",
      "expected a version such as 1.0",
    ),
    ("label.labels.txt", "bee\n", "", "got 1 names for 2 classes"),
    ("features.json", '"numClasses": "2"', '"numClasses": "0"', "names"),
    ("dataset_info.json", '"train"', "7", "cannot read the metadata"),
  ],
)
def test_metadata_that_do_not_fit_are_named(
  tmp_path, capsys, file, old, new, words
):
  shutil.copytree(TFRECORDS, tmp_path / "set")
  path = tmp_path / "set" / file
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))
  args = ("--source", tmp_path / "set", "--data-dir", tmp_path)
  status, _, err = run(capsys, "tfrecord_set", *args)
  assert status == 2
  assert words in err


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"name": "a"}'])
@pytest.mark.parametrize("below", ["", "1.0.0"])
def test_damaged_metadata_are_named(tmp_path, capsys, text, below):
  path = tmp_path / below / "dataset_info.json"
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)
  status, _, err = run(capsys, "a", "--source", tmp_path)
  assert status == 2
  assert f"expected TFDS's metadata in {path}, got" in err


def test_only_tfrecords_of_that_name_are_converted(tmp_path, capsys):
  status, _, err = run(capsys, "other", "--source", TFRECORDS)
  assert status == 2
  assert "got tfrecord_set; prepare it under that name" in err
  shutil.copytree(TFRECORDS, tmp_path / "set")
  path = tmp_path / "set" / "dataset_info.json"
  path.write_text(path.read_text().replace('"tfrecord"', '"riegeli"'))
  status, _, err = run(capsys, "tfrecord_set", "--source", tmp_path / "set")
  assert status == 2
  assert "got riegeli; array_record needs no conversion" in err


# Fashion-MNIST.

SPLITS = ("train", "test")


def write_files(folder, part, pixels, labels):
  """IDX files: magic number, dimensions, bytes; big-endian."""
  for name, array in zip(fashion.files(part), (pixels, labels), strict=True):
    shape = np.array(array.shape, ">u4").tobytes()
    magic = bytes([0, 0, 8, array.ndim])
    data = gzip.compress(magic + shape + array.tobytes(), 1)
    (folder / name).write_bytes(data)


def test_read_checks_the_files(tmp_path, monkeypatch):
  pixels = np.arange(3 * 784, dtype=np.uint16).astype(np.uint8)
  pixels = pixels.reshape(3, 28, 28)
  labels = np.array([7, 0, 9], np.uint8)
  with pytest.raises(ValueError, match=r"--source, but .* no file t10k-images"):
    fashion.read("t10k", tmp_path)
  write_files(tmp_path, "t10k", pixels, labels)
  with pytest.raises(ValueError, match="expected the published file"):
    fashion.read("t10k", tmp_path)
  for name in fashion.files("t10k"):
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    monkeypatch.setitem(fashion.SHA256, name, digest)
  got_pixels, got_labels = fashion.read("t10k", tmp_path)
  np.testing.assert_array_equal(got_pixels[..., 0], pixels)
  np.testing.assert_array_equal(got_labels, labels)


def test_split_is_fixed_balanced_and_complete():
  labels = np.arange(50) % 5
  train, test = fashion.split_indices(labels, test_per_class=2)
  np.testing.assert_array_equal(np.bincount(labels[test]), [2] * 5)
  np.testing.assert_array_equal(
    np.sort(np.concatenate([train, test])), np.arange(50)
  )
  again = fashion.split_indices(labels, test_per_class=2)[1]
  np.testing.assert_array_equal(test, again)
  other = fashion.split_indices(labels, test_per_class=2, seed=1)[1]
  assert not np.array_equal(test, other)


def grey(data):
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_the_shipped_set_is_made_again(tmp_path, capsys, monkeypatch):
  # TFDS's own writer made it: the order of the records is TFDS's.
  shipped = pathlib.Path(datasets.__file__).parent / "fashion_mini"
  builder = tfds.builder_from_directory(next(shipped.iterdir()))
  kept = {"image": tfds.decode.SkipDecoding()}
  wanted = {s: list(builder.as_data_source(s, decoders=kept)) for s in SPLITS}
  pixels = np.empty((10_000, 28, 28), np.uint8)
  labels = np.empty(10_000, np.uint8)
  for record in wanted["train"] + wanted["test"]:
    pixels[record["index"]] = grey(record["image"])
    labels[record["index"]] = record["label"]
  write_files(tmp_path, "t10k", pixels, labels)
  for name in fashion.files("t10k"):
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    monkeypatch.setitem(fashion.SHA256, name, digest)
  status, _, _ = run(
    capsys, "fashion_mini", "--source", tmp_path, "--data-dir", tmp_path
  )
  assert status == 0
  folder = tmp_path / "fashion_mini" / "1.0.0"
  assert "Zalando SE" in (folder / "LICENSE").read_text("utf-8")
  made = tfds.builder_from_directory(folder)
  assert made.info.features.keys() == builder.info.features.keys()
  for split in SPLITS:
    source = list(made.as_data_source(split, decoders=kept))
    for key in ("index", "label"):
      assert [int(r[key]) for r in source] == [
        int(r[key]) for r in wanted[split]
      ]
    for record in source[::100]:
      image = grey(record["image"])
      np.testing.assert_array_equal(image, pixels[record["index"]])
