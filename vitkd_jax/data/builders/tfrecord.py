"""Turns a TFDS data set of TFRecord files into one of array_record files.

Shard by shard, the records stay as they are and where they are. A TFRecord
file is a row of: length (8 bytes, little-endian), CRC of the length (4), the
record, CRC of the record (4). Lengths and ends are checked, the CRCs are not.
"""

from collections.abc import Iterator
import functools
import hashlib
import json
import os
import pathlib
import re
import struct

from google.protobuf import message
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from vitkd_jax.data import datasets
from vitkd_jax.data.builders import shards

_INFO = "dataset_info.json"


def find(name: str, source: str) -> str | None:
  """Folder of a TFDS data set that is to be converted, if there is one.

  Args:
    name: of the data set.
    source: folder of one version, which may be of any format; or of a data
      set, or of data sets: the newest version that is TFRecord.
  """
  if os.path.isfile(os.path.join(source, _INFO)):
    return source
  for folder in (source, os.path.join(source, name)):
    versions = [
      (tuple(map(int, version.split("."))), os.path.join(folder, version))
      for version in (os.listdir(folder) if os.path.isdir(folder) else ())
      if re.fullmatch(r"\d+\.\d+\.\d+", version)
      and _is_tfrecord(os.path.join(folder, version))
    ]
    if versions:
      return max(versions)[1]
  return None


def _is_tfrecord(folder):
  if not os.path.isfile(os.path.join(folder, _INFO)):
    return False
  return _metadata_of(folder).get("fileFormat", "tfrecord") == "tfrecord"


def _metadata_of(folder):
  """What dataset_info.json holds."""
  path = os.path.join(folder, _INFO)
  try:
    with open(path, encoding="utf-8") as file:
      found = json.load(file)
    found = {**found, "name": found["name"], "version": found["version"]}
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
      f"{path} is damaged or none of TFDS's ({error!r}); fetch it again."
    ) from error
  if not re.fullmatch(r"\d+\.\d+\.\d+", str(found["version"])):
    raise ValueError(
      f"{path} is damaged: expected a version such as 1.0.0, got"
      f" {found['version']!r}; fetch it again."
    )
  return found


def plan(name: str, folder: str) -> shards.Plan:
  """The same data set as array_record files.

  Args:
    name: of the data set.
    folder: of one of its versions.

  Raises:
    ValueError: it is another data set, of another format, its metadata are
      damaged, or a file is missing.
  """
  meta = _metadata_of(folder)
  if meta["name"] != name:
    raise ValueError(
      f"{folder} holds the data set {meta['name']}; prepare it under that name."
    )
  if meta.get("fileFormat", "tfrecord") != "tfrecord":
    raise ValueError(
      f"{folder} is stored as {meta['fileFormat']}, but TFRecord files are"
      " converted; array_record is read as it is."
    )
  try:
    info = tfds.builder_from_directory(folder).info
    files = [
      (os.fspath(path), count)
      for split in info.splits.values()
      for path, count in zip(split.filepaths, split.shard_lengths, strict=True)
    ]
    label = {**info.features}.get("label")
    classes = None
    if isinstance(label, tfds.features.ClassLabel):
      datasets.check_names(label)
      classes = label.num_classes
  except Exception as error:  # TFDS's own, protobuf's, JSON's
    raise ValueError(
      f"the metadata in {folder} cannot be read ({datasets.reason(error)});"
      " fetch them again."
    ) from error
  made = []
  for path, count in files:
    if not os.path.isfile(path):
      name = os.path.basename(path)[:200]
      raise ValueError(
        f"there is no file {os.path.join(folder, name)}: {folder} is"
        " incomplete."
      )
    made.append(
      shards.Shard(
        os.path.basename(path).replace(".tfrecord-", ".array_record-"),
        count=count,
        size=os.path.getsize(path),
        records=functools.partial(_records, path, count, classes),
      )
    )
  return shards.Plan(
    folder=f"{name}/{meta['version']}",
    fingerprint=hashlib.sha256(
      pathlib.Path(folder, _INFO).read_bytes()
    ).hexdigest(),
    shards=made,
    metadata=functools.partial(_metadata, folder, meta),
  )


def _records(path, count, classes, seen) -> Iterator[bytes]:
  """The records of a TFRecord file.

  Raises:
    OSError: there are not `count` of them, or one is damaged.
  """
  with open(path, "rb") as file:
    found = 0
    while head := file.read(12):
      (length,) = struct.unpack("<Q", head[:8].ljust(8, b"\xff"))
      left = os.fstat(file.fileno()).st_size - file.tell()
      if len(head) < 12 or length + 4 > left:
        raise OSError(f"{path} is cut off or damaged after {found:,} records")
      record = file.read(length)
      try:
        seen(_image(record, classes))
      except (ValueError, message.DecodeError) as error:
        raise OSError(
          f"record {found} of {path} is damaged ({error}); fetch that file"
          " again"
        ) from error
      yield record
      file.seek(4, os.SEEK_CUR)
      found += 1
  if found != count:
    raise OSError(f"{path} has {found:,} records, {_INFO} tells of {count:,}")


def _image(record, classes):
  """The encoded image of a record, or None where it has none."""
  features = tf_example_pb2.Example.FromString(record).features.feature
  if classes is not None:
    label = list(features["label"].int64_list.value)
    # -1 is TFDS's word for an example without label.
    if len(label) != 1 or not -1 <= label[0] < classes:
      raise ValueError(
        f"expected one label below {classes}, got {label[:10] or 'none'}"
      )
  if "image" not in features:
    return None
  encoded = features["image"].bytes_list.value
  return encoded[0] if len(encoded) == 1 else None


def _metadata(folder, meta, made, census):
  """Everything but the records, with the format's new name."""
  del census
  for name in os.listdir(folder):
    path = os.path.join(folder, name)
    if ".tfrecord-" in name or name == _INFO or not os.path.isfile(path):
      continue
    with open(path, "rb") as file:
      data = file.read()
    with open(os.path.join(made, name), "wb") as file:
      file.write(data)
  with open(os.path.join(made, _INFO), "w", encoding="utf-8") as file:
    json.dump({**meta, "fileFormat": "array_record"}, file, indent=2)
