"""TFRecord files, written by TFDS: golden/make_tfrecord_set.py."""

import functools
import json
import pathlib
import pickle
import shutil
import struct

import numpy as np
import pytest
from tensorboardX import record_writer
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2
from trees import contents, run, simple_tree

from vitkd_jax.data import datasets, decode, tfrecords
from vitkd_jax.data.builders import images, records, shards, tfrecord

TFRECORDS = pathlib.Path(__file__).parent / "golden" / "tfrecord_set"


def masked_crc32c(data):
  return struct.pack("<I", record_writer.masked_crc32c(data))


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


def test_what_tfds_wrote_is_read_and_written_the_same(tmp_path):
  """Both ways through array_record, and by index."""
  source = TFRECORDS
  for to in shards.FORMATS:
    plan = tfrecord.plan("tfrecord_set", str(source), to)
    source = shards.write(plan, str(tmp_path / to))
  written = contents(source)
  wanted = contents(TFRECORDS)
  assert {"preparation.json", *wanted} == set(written)
  for name, content in wanted.items():
    if name.endswith(".json"):
      assert json.loads(written[name]) == json.loads(content)
    else:
      assert written[name] == content
  info = tfds.builder_from_directory(TFRECORDS).info
  source = tfrecords.Source(info, "train")
  assert sorted(record["text"] for record in source) == [
    f"record {i}".encode() for i in range(5)
  ]


def test_one_set_serves_both(tmp_path, capsys):
  """The same examples, in the same order, as from array_record files."""
  root = simple_tree(tmp_path / "root")
  for to in shards.FORMATS:
    args = ("zoo", "--source", root, "--data-dir", tmp_path / to, "--to", to)
    assert run(capsys, *args)[0] == 0
    said = run(capsys, *args)[2]
    assert "zoo is complete" in said
  one, other = (
    {
      split: datasets.load("zoo", split, data_dir=str(tmp_path / to))
      for split in ("train", "val", "train[3:-2]")
    }
    for to in shards.FORMATS
  )
  assert [len(source) for source in other.values()] == [12, 12, 7]
  for split, source in one.items():
    again = pickle.loads(pickle.dumps(other[split]))  # as worker processes do
    for i in range(len(source)):
      np.testing.assert_array_equal(again[i]["image"], source[i]["image"])
      assert again[i]["label"] == source[i]["label"]
  info = tfds.builder_from_directory(tmp_path / "tfrecord/zoo/1.0.0").info
  assert info.file_format.value == "tfrecord"
  (file,) = info.splits["val"].filepaths
  assert file.name == "zoo-val.tfrecord-00000-of-00001"
  assert info.splits["val"].shard_lengths == [12]
  example = tf_example_pb2.Example.FromString(_first(file.read_bytes()))
  feature = example.features.feature
  assert set(feature) == {"image", "label", "file_name"}
  name = feature["file_name"].bytes_list.value[0].decode()
  picture = pathlib.Path(root, "val", name).read_bytes()
  assert feature["image"].bytes_list.value[0] == picture


def _first(data):
  length = int.from_bytes(data[:8], "little")
  assert data[8:12] == masked_crc32c(data[:8])
  record = data[12 : 12 + length]
  assert data[12 + length : 16 + length] == masked_crc32c(record)
  return record


@pytest.mark.parametrize(
  "damage, words",
  [
    (lambda data: data[:-3], "truncated or corrupt after 11 records"),
    (lambda data: data + data[:50], "truncated or corrupt after 12 records"),
    (lambda data: data + data[: 16 + int.from_bytes(data[:8], "little")],
     r"expected 12 records in .*, got 13"),
  ],
)  # fmt: skip
def test_damaged_sets_are_refused(tmp_path, capsys, damage, words):
  root = simple_tree(tmp_path / "root")
  args = ("zoo", "--source", root, "--data-dir", tmp_path, "--to", "tfrecord")
  assert run(capsys, *args)[0] == 0
  file = tmp_path / "zoo/1.0.0/zoo-val.tfrecord-00000-of-00001"
  data = file.read_bytes()
  file.write_bytes(damage(data))
  with pytest.raises(ValueError, match=f"dataset zoo: .*{words}"):
    datasets.load("zoo", "val", data_dir=str(tmp_path))
  flipped = bytearray(data)
  flipped[200] ^= 1
  file.write_bytes(flipped)
  source = datasets.load("zoo", "val", data_dir=str(tmp_path))
  with pytest.raises(decode.BadRecordError, match=r"number 0 of .* checksum"):
    source[0]
  assert source[1]["image"].shape[2] == 3


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
  length = len(payload).to_bytes(8, "little")
  record = b"".join(x + masked_crc32c(x) for x in (length, payload))
  path.write_bytes(data[:second] + record)
  args = ("--source", tmp_path / "data", "--data-dir", tmp_path)
  status, _, err = run(capsys, "tfrecord_set", *args)
  assert status == 1
  assert f"record 1 of {path}" in err
  assert words in err


def test_any_flipped_bit_stops_the_conversion(tmp_path):
  """A record's four parts: its length, their checksums, and the record."""
  path = tmp_path / "a.tfrecord-00000-of-00002"
  data = (TFRECORDS / "tfrecord_set-train.tfrecord-00000-of-00002").read_bytes()
  path.write_bytes(data)
  read = functools.partial(tfrecord._records, str(path), 2, 2, lambda _: None)
  assert len(list(read())) == 2
  for at in range(len(data)):
    flipped = bytearray(data)
    flipped[at] ^= 1 << at % 8
    path.write_bytes(flipped)
    with pytest.raises(OSError, match="corrupt"):
      list(read())


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


def test_records_that_are_copied_are_not_encoded_anew(tmp_path, capsys):
  status, _, err = run(
    capsys,
    *("tfrecord_set", "--source", TFRECORDS, "--data-dir", tmp_path / "data"),
    *("--short-side", 64),
  )
  assert status == 2
  assert err.endswith(
    "error: --short-side does not apply to tfrecord_set, whose records are "
    "copied.\n"
  )
  assert not (tmp_path / "data").exists()
