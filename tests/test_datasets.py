"""Tests of vitkd_jax.data.datasets."""

import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

from array_record.python import array_record_module
import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from vitkd_jax.data import crop, datasets, decode, loader, memory, sources
from vitkd_jax.data.builders import tfrecord

# sha256sum of the official t10k files, unzipped, without the IDX header.
T10K_PIXELS = "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a"
T10K_LABELS = "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9"


@pytest.fixture(scope="module")
def mini():
  return {
    split: datasets.load("fashion_mini", split, cache=True)
    for split in ("train", "test")
  }


def shipped():
  return pathlib.Path(datasets.__file__).parent / "fashion_mini"


def copied_as(folder, name, version, **changes):
  """The shipped set under another name, as another builder would leave it."""
  target = pathlib.Path(folder) / name / version
  shutil.copytree(next(shipped().iterdir()), target)
  for path in target.glob("fashion_mini-*"):
    path.rename(target / path.name.replace("fashion_mini", name, 1))
  path = target / "dataset_info.json"
  meta = json.loads(path.read_text())
  path.write_text(
    json.dumps({**meta, "name": name, "version": version, **changes})
  )
  return target


def test_info_of_the_shipped_set():
  info = datasets.info("fashion_mini")
  assert info.num_classes == len(info.class_names) == 10
  assert info.class_names[9] == "Ankle boot"
  assert info.image_size == (28, 28)
  assert info.num_examples == {"train": 8000, "test": 2000}


def test_shipped_records_are_the_official_file():
  builder = tfds.builder_from_directory(next(shipped().iterdir()))
  pixels, labels = {}, {}
  for split in ("train", "test"):
    for record in builder.as_data_source(split):
      pixels[int(record["index"])] = record["image"].tobytes()
      labels[int(record["index"])] = int(record["label"])
  assert sorted(pixels) == list(range(10_000))  # each example in one split
  joined = b"".join(pixels[i] for i in range(10_000))
  assert hashlib.sha256(joined).hexdigest() == T10K_PIXELS
  joined = bytes(labels[i] for i in range(10_000))
  assert hashlib.sha256(joined).hexdigest() == T10K_LABELS


def test_shipped_splits_are_balanced(mini):
  for split, count in (("train", 800), ("test", 200)):
    labels = [int(mini[split][i]["label"]) for i in range(len(mini[split]))]
    np.testing.assert_array_equal(np.bincount(labels), [count] * 10)


def test_shipped_set_is_small_and_brings_its_licence():
  files = [path for path in shipped().rglob("*") if path.is_file()]
  assert sum(path.stat().st_size for path in files) < 8_000_000
  (text,) = [p.read_text("utf-8") for p in files if p.name == "LICENSE"]
  assert "Copyright © 2017 Zalando SE" in text
  assert "without restriction" in text


def test_cached_and_uncached_examples_are_equal(mini):
  source = datasets.load("fashion_mini", "test")
  assert len(source) == 2000
  for i in (0, 1, 1999, np.int64(7)):
    one, other = source[i], mini["test"][i]
    assert one["image"].shape == (28, 28, 3)
    assert one["image"].dtype == other["image"].dtype == np.uint8
    assert one["label"].dtype == other["label"].dtype == np.int32
    np.testing.assert_array_equal(one["image"], other["image"])
    assert one["label"] == other["label"]
    assert (one["image"] == one["image"][..., :1]).all()


def test_slice_of_a_split(mini):
  source = datasets.load("fashion_mini", "train[10:12]")
  assert len(source) == 2
  np.testing.assert_array_equal(source[1]["image"], mini["train"][11]["image"])


def test_reads_what_another_builder_prepared(tmp_path):
  folder = copied_as(tmp_path, "fashion_mnist", "3.0.1", moduleName="tfds")
  path = folder / "features.json"  # TFDS's own fashion_mnist has no index
  features = json.loads(path.read_text())
  del features["featuresDict"]["features"]["index"]
  path.write_text(json.dumps(features))
  source = datasets.load("fashion_mnist", "test", data_dir=str(tmp_path))
  assert set(source[0]) == {"image", "label"}


def test_newest_version_is_read(tmp_path):
  for version, text in (("2.0.0", "b"), ("10.0.0", "c"), ("1.0.0", "a")):
    folder = copied_as(tmp_path, "some_set", version)
    names = "\n".join(text + str(i) for i in range(10))
    (folder / "label.labels.txt").write_text(names)
  (tmp_path / "some_set" / "99.0.0").mkdir()  # begun, never finished
  info = datasets.info("some_set", str(tmp_path))
  assert info.class_names[0] == "c0"


def test_environment_names_the_data_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  copied_as(tmp_path, "some_set", "1.0.0")
  assert datasets.info("some_set").num_examples["test"] == 2000
  assert datasets.info("fashion_mini", str(tmp_path)).num_classes == 10


@pytest.mark.parametrize(
  "name, split, words",
  [
    ("fashion_mnit", "train", "the nearest is 'fashion_mnist'"),
    ("imagenet", "train", "'imagenet' is not prepared in"),
    ("fashion_mnist", "train", "vitkd_jax.prepare fashion_mnist --source"),
    ("fashion_mini", "trian", "the nearest is 'train'"),
    ("fashion_mini", "validation", "one of 'test', 'train', got 'validation'"),
    ("fashion_mini", "train+tst", "the nearest is 'test'"),
    ("fashion_mini", "train[:5", "expected a slice such as 'train[:1000]'"),
    ("fashion_mini", "train[9000:]", "expected a slice such as 'train[:1000]'"),
    ("fashion_mini", "train[9:4]", "expected a slice such as 'train[:1000]'"),
    ("imagenet2012", "train", "vitkd_jax.prepare imagenet2012 --source"),
  ],
)
def test_load_refuses(name, split, words, tmp_path):
  with pytest.raises(ValueError, match="(?i)" + re.escape(words)):
    datasets.load(name, split, data_dir=str(tmp_path))


def test_other_file_formats_are_refused(tmp_path):
  copied_as(tmp_path, "some_set", "1.0.0", fileFormat="riegeli")
  with pytest.raises(ValueError, match=r"got riegeli.*vitkd_jax\.prepare"):
    datasets.load("some_set", "train", data_dir=str(tmp_path))


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_metadata_are_named(tmp_path, file):
  folder = copied_as(tmp_path, "mine", "1.0.0")
  (folder / file).write_text("{")
  with pytest.raises(ValueError, match=r"metadata of dataset mine in /"):
    datasets.info("mine", tmp_path)


TFDS = "tensorflow_datasets.core.features."


@pytest.mark.parametrize(
  "features",
  [
    {"pythonClassName": "evil.Feature"},
    {"python_class_name": "evil.Feature"},
    {"type": "evil.Feature", "content": {}},
    {
      "pythonClassName": f"{TFDS}features_dict.FeaturesDict",
      "featuresDict": {"features": {"a": {"pythonClassName": "evil.Feature"}}},
    },
    {
      "pythonClassName": f"{TFDS}features_dict.FeaturesDict",
      "jsonFeature": {
        "json": json.dumps({"a": {"type": "evil.Feature", "content": {}}})
      },
    },
  ],
  ids=["current", "original", "older", "nested", "text"],
)
def test_metadata_import_no_module(tmp_path, monkeypatch, features):
  """A module that Python finds, as one in the working directory."""
  (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
  monkeypatch.syspath_prepend(tmp_path)
  folder = copied_as(tmp_path, "gift", "1.0.0", moduleName="evil")
  assert datasets.info("gift", str(tmp_path)).num_classes == 10
  (folder / "features.json").write_text(json.dumps(features))
  said = "TFDS's own features in features.json, got class 'evil.Feature'"
  with pytest.raises(ValueError, match=said):
    datasets.info("gift", str(tmp_path))
  path = folder / "dataset_info.json"
  meta = json.loads(path.read_text())
  path.write_text(json.dumps({**meta, "fileFormat": "tfrecord"}))
  with pytest.raises(ValueError, match=said):
    tfrecord.plan("gift", str(folder))


def test_the_folder_of_one_set_is_not_one_of_sets(tmp_path):
  copied_as(tmp_path, "some_set", "1.0.0")
  for folder in (tmp_path / "some_set", tmp_path / "some_set" / "1.0.0"):
    with pytest.raises(ValueError, match="is a dataset itself"):
      datasets.info("some_set", str(folder))


def test_labels_that_are_no_classes_are_refused(tmp_path):
  features = {
    "image": tfds.features.Image(shape=(28, 28, 1)),
    "label": tfds.features.Scalar(np.int64),
  }
  folder = copied_as(tmp_path, "some_set", "1.0.0")
  tfds.features.FeaturesDict(features).save_config(folder)
  with pytest.raises(ValueError, match="be a ClassLabel, got Scalar"):
    datasets.info("some_set", str(tmp_path))


def test_reading_and_batching_import_no_tensorflow():
  code = """
import sys
from vitkd_jax.data import augment, datasets, loader
source = datasets.load("fashion_mini", "test[:8]", cache=True)
next(loader.eval_batches(source, batch_size=8))
source = datasets.load("fashion_mini", "test[:8]")
batches = loader.train_batches(source, batch_size=8, seed=0)
next(batches)
batches.close()
print(sorted({"tensorflow", "torch"} & set(sys.modules)))
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "[]"


# Bad records.


def test_a_bad_image_is_named(tmp_path):
  copied_as(tmp_path, "some_set", "1.0.0")
  source = datasets.load("some_set", "train[10:20]", data_dir=str(tmp_path))

  def refuse(data):
    raise decode.BadRecordError("made to fail")

  with pytest.raises(decode.BadRecordError) as error:
    source.read(3, refuse)
  assert str(error.value) == (
    "record 3, number 13 of some_set-train.array_record-00000-of-00001:"
    " made to fail"
  )


def example(**changes):
  """A record of bytes; a change of None leaves the feature out."""
  png = cv2.imencode(".png", np.zeros((28, 28), np.uint8))[1].tobytes()
  made = tf_example_pb2.Example()
  features = made.features.feature
  for name, value in {"image": png, "label": 3, "index": 0, **changes}.items():
    if isinstance(value, bytes):
      features[name].bytes_list.value.append(value)
    elif value is not None:
      features[name].int64_list.value.append(value)
  return made.SerializeToString()


@pytest.mark.parametrize(
  "record, words",
  [
    (example(label=10), "expected a label from 0 to 9, got 10"),
    (example(label=-1), "expected a label from 0 to 9, got -1"),
    (example(label=None), "expected a label from 0 to 9, got None"),
    (example(image=None), "expected encoded bytes as 'image', got NoneType"),
    (example(image=b""), "an empty file"),
    (example(image=b"\xff\xd8\xff"), "image"),
    (example(image=b"\xff\xd8\xff\xda\0\2"), "image"),
    (b"\xff\xff", "Error parsing message"),
    (b"", "expected a label from 0 to 9, got None"),
  ],
  ids=range(9),  # protobuf orders a map's entries by chance
)
def test_a_bad_record_is_named(tmp_path, record, words):
  folder = copied_as(tmp_path, "some_set", "1.0.0")
  (shard,) = folder.glob("*test*")
  writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
  for each in [example(), record] + [example()] * 1998:
    writer.write(each)
  writer.close()
  source = datasets.load("some_set", "test", data_dir=str(tmp_path))
  assert source[0]["label"] == 3
  with pytest.raises(decode.BadRecordError) as error:
    source[1]
  said = str(error.value)
  assert said.startswith(f"record 1, number 1 of {shard.name}: ")
  assert words in said
  assert "\n" not in said


@pytest.mark.parametrize(
  "file, old, new, said",
  [
    ("label.labels.txt", "Ankle boot", "", "9 names for 10"),
    (
      "features.json",
      '"numClasses": "10"',
      '"numClasses": "0"',
      "10 names for 0",
    ),
    (
      "features.json",
      '"numClasses": "10"',
      '"numClasses": "11"',
      "10 names for 11",
    ),
  ],
)
def test_as_many_class_names_as_classes_are_wanted(
  tmp_path, file, old, new, said
):
  folder = copied_as(tmp_path, "some_set", "1.0.0")
  text = (folder / file).read_text()
  assert old in text
  (folder / file).write_text(text.replace(old, new))
  with pytest.raises(ValueError, match=said):
    datasets.info("some_set", str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_half_written_shard_is_named(share, tmp_path):
  folder = copied_as(tmp_path, "some_set", "1.0.0")
  (shard,) = folder.glob("*train*")
  content = shard.read_bytes()
  shard.write_bytes(content[: int(share * len(content))])
  source = datasets.load("some_set", "train", data_dir=str(tmp_path))
  with pytest.raises(decode.BadRecordError, match=shard.name):
    source[0]
  batches = loader.train_batches(source, batch_size=8, seed=0)
  with pytest.raises(loader.InputError, match=shard.name) as error:
    next(batches)
  batches.close()
  assert "a file of the dataset is damaged or missing" in str(error.value)
  assert "\n" not in str(error.value)


def test_flipped_bits_cost_one_record(tmp_path):
  folder = copied_as(tmp_path, "some_set", "1.0.0")
  (shard,) = folder.glob("*train*")
  content = bytearray(shard.read_bytes())
  middle = len(content) // 2
  content[middle : middle + 4] = bytes(255 - b for b in content[middle:][:4])
  shard.write_bytes(content)
  source = datasets.load("some_set", "train", data_dir=str(tmp_path))
  bad = []
  for i in range(len(source)):
    try:
      source[i]
    except decode.BadRecordError:
      bad.append(i)
  assert 1 <= len(bad) <= 3


class Files:
  """Records of encoded images, of which `bad` are damaged."""

  def __init__(self, shapes, bad=()):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    self._data = [cv2.imencode(".jpg", x)[1].tobytes() for x in images]
    for i in bad:
      self._data[i] = self._data[i][:200]

  def __len__(self):
    return len(self._data)

  def open(self, data):
    return decode.File(data)

  def encoded(self, index):
    return self._data[index], np.int32(index)

  def read(self, index, crop):
    image = crop(self.open(self._data[index]))
    return {"image": image, "label": np.int32(index)}


def test_cached_images_of_any_size_are_those_of_the_files():
  files = Files([(40, 60, 3), (33, 50, 3), (300, 200, 1), (64, 64, 3)], bad=[3])
  for size in (32, 8):  # of 8 pixels, the decoder shrinks for both crops
    kept = sources.cached("some_set", files, size)
    assert len(kept) == 4
    for make in (crop.RandomCrop(size), crop.CentreCrop(size, size + 5)):
      for i in range(3):
        one, other = (
          source.read(i, lambda file: make(file, np.random.default_rng(i)))  # noqa: B023
          for source in (kept, files)
        )
        np.testing.assert_array_equal(one["image"], other["image"])
        assert one["label"] == other["label"] == i
    with pytest.raises(decode.BadRecordError):
      kept.read(3, make)
  whole = sources.cached("some_set", files)
  for i in range(3):
    file = files.open(files.encoded(i)[0])
    np.testing.assert_array_equal(
      whole[i]["image"], decode.to_rgb(file.pixels())
    )


def test_cached_images_are_decoded_once(monkeypatch):
  kept = sources.cached("some_set", Files([(40, 60, 3), (33, 50, 3)]), 32)
  monkeypatch.setattr(decode.File, "__init__", None)  # none can be made
  for i in range(2):
    assert kept.read(i, crop.CentreCrop(32, 32))["image"].shape == (32, 32, 3)


def test_a_cache_larger_than_the_memory_is_refused(monkeypatch):
  files = Files([(400, 300, 3)] * 5 + [(400, 300, 1)] * 5)
  # 10 images of 400 x 300 pixels, half of them grey: 2.4 MB of 3 channels or 1.
  monkeypatch.setattr(memory, "available", lambda: 3.1e6)
  with pytest.raises(ValueError, match=r"about 0\.0 GB.*set cache=False"):
    sources.cached("some_set", files)
  monkeypatch.setattr(memory, "available", lambda: 3.3e6)
  assert len(sources.cached("some_set", files)) == 10
  monkeypatch.setattr(memory, "available", lambda: None)  # not on Linux
  assert len(sources.cached("some_set", files)) == 10


def test_available_memory_heeds_the_container(tmp_path, monkeypatch):
  meminfo = tmp_path / "meminfo"
  meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
  monkeypatch.setattr(memory, "_MEMINFO", meminfo)
  monkeypatch.setattr(memory, "_GROUP", tmp_path)
  assert memory.available() == 5000 * 1024
  (tmp_path / "memory.max").write_text("max\n")
  (tmp_path / "memory.stat").write_text("anon 1000000\nfile 7\n")
  assert memory.available() == 5000 * 1024
  (tmp_path / "memory.max").write_text("3000000\n")
  assert memory.available() == 2_000_000
  meminfo.unlink()
  assert memory.available() is None
