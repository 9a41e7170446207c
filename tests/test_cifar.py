"""CIFAR from archives of its layout."""

import dataclasses
import functools
import gzip
import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from trees import contents, run, tar

from vitkd_jax import prepare
from vitkd_jax.data import datasets
from vitkd_jax.data.builders import cifar, images, records

CLASSES = {"cifar10": 10, "cifar100": 100}
PUBLISHED = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}


def write_archive(folder, name, monkeypatch):
  """A small archive in the place of the published one; its arrays.

  Returns {split: (labels [n, 1 or 2], images [n, 32, 32, 3] in RGB)}.
  """
  rng = np.random.RandomState(0)
  if name == "cifar10":
    prefix, kinds = "cifar-10-batches-bin/", (10,)
    parts = {f"data_batch_{i}.bin": ("train", 2) for i in range(1, 6)}
    parts["test_batch.bin"] = ("test", 4)
    texts = {"batches.meta.txt": 10}
  else:
    prefix, kinds = "cifar-100-binary/", (20, 100)
    parts = {"train.bin": ("train", 7), "test.bin": ("test", 3)}
    texts = {"coarse_label_names.txt": 20, "fine_label_names.txt": 100}
  files, arrays = {"readme.html": b"<html>"}, {}
  for file, (split, count) in parts.items():
    pixels = rng.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    labels = np.stack([rng.randint(0, k, count) for k in kinds], 1)
    labels = labels.astype(np.uint8)
    # The format: label bytes, then all of red, green and blue, row by row.
    files[file] = b"".join(
      bytes(each) + b"".join(image[..., c].tobytes() for c in range(3))
      for each, image in zip(labels, pixels, strict=True)
    )
    arrays.setdefault(split, []).append((labels, pixels))
  for file, count in texts.items():
    lines = [f"{file[0]}_{i}" for i in range(count)]
    files[file] = ("\n".join(lines) + "\n\n").encode()
  data = tar({prefix + file: content for file, content in files.items()})
  data = gzip.compress(data, 1, mtime=0)
  (folder / PUBLISHED[name].file).write_bytes(data)
  archive = dataclasses.replace(
    PUBLISHED[name],
    size=len(data),
    count=sum(count for _, count in parts.values()),
    sha256=hashlib.sha256(data).hexdigest(),
  )
  made = functools.partial(getattr(cifar, name), archive=archive)
  monkeypatch.setitem(prepare._PUBLISHED, name, made)
  return {
    split: tuple(map(np.concatenate, zip(*each, strict=True)))
    for split, each in arrays.items()
  }


@pytest.mark.parametrize("name", CLASSES)
def test_every_image_is_read_back(tmp_path, capsys, monkeypatch, name):
  arrays = write_archive(tmp_path, name, monkeypatch)
  args = (name, "--source", tmp_path, "--data-dir", tmp_path / "out")
  status, out, _ = run(capsys, *args)
  assert status == 0
  assert "image size: 32x32 pixels" in out
  info = datasets.info(name, str(tmp_path / "out"))
  first = "b" if name == "cifar10" else "f"  # of the file of their names
  assert info.class_names == tuple(f"{first}_{i}" for i in range(CLASSES[name]))
  folder = tmp_path / "out" / name / "3.0.2"
  builder = tfds.builder_from_directory(folder)
  for split, (labels, pixels) in arrays.items():
    assert info.num_examples[split] == len(labels)
    ids = [r["id"].decode() for r in builder.as_data_source(split)]
    assert sorted(ids) == [f"{split}_{i:05d}" for i in range(len(labels))]
    source = datasets.load(name, split, data_dir=str(tmp_path / "out"))
    for at, each in enumerate(ids):
      index = int(each.removeprefix(f"{split}_"))
      np.testing.assert_array_equal(source[at]["image"], pixels[index])
      assert int(source[at]["label"]) == labels[index, -1]
  if name == "cifar100":
    for record in builder.as_data_source("train"):
      index = int(record["id"].decode().removeprefix("train_"))
      assert int(record["coarse_label"]) == arrays["train"][0][index, 0]
  before = contents(folder)
  status, _, err = run(capsys, *args)
  assert status == 0
  assert "is complete" in err
  assert contents(folder) == before


def test_the_order_is_that_of_tfds():
  # The first records of TFDS's cifar10 3.0.2, as its catalog shows them.
  examples = [images.Example(str(i), "train", i, 1, 0) for i in range(50_000)]
  assert records.order("train", examples)[0].name == "16399"


def test_other_archives_are_refused_in_a_sentence(
  tmp_path, capsys, monkeypatch
):
  args = ("cifar10", "--source", tmp_path, "--data-dir", tmp_path / "out")
  binary = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "no cifar-10-binary.tar.gz: it is at" in err
  (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"cos\nsystem\n")
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "has cifar-10-python.tar.gz, whose pickles would run code" in err
  assert binary in err
  (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"half")
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "expected the published 170,052,171 bytes, got 4 (truncated)" in err
  write_archive(tmp_path, "cifar10", monkeypatch)
  path = tmp_path / cifar.CIFAR10.file
  data = bytearray(path.read_bytes())
  data[100] ^= 1
  path.write_bytes(data)
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "expected the published file with SHA-256" in err
  assert not (tmp_path / "out").exists()
