"""Fashion-MNIST, the published files and the shipped set."""

import gzip
import hashlib
import pathlib

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from trees import run

from vitkd_jax.data import datasets
from vitkd_jax.data.builders import fashion

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
