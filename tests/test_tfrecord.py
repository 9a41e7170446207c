"""TFRecord files, written by TFDS: golden/make_tfrecord_set.py."""

import functools
import pathlib
import shutil
import struct

import pytest
from tensorboardX import record_writer
import tensorflow_datasets as tfds
from trees import run

from vitkd_jax.data.builders import images, records, tfrecord

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
  path = tmp_path / "a"
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
