"""Converts a TFDS dataset between TFRecord and array_record files.

Each shard keeps its records and their order.
"""

from collections.abc import Iterator
import functools
import hashlib
import json
import os
import pathlib
import re
from typing import Any

from array_record.python import array_record_module
from google.protobuf import message
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from vitkd_jax.data import datasets, tfrecords
from vitkd_jax.data.builders import census as censuses
from vitkd_jax.data.builders import shards

_INFO = "dataset_info.json"


def find(name: str, source: str, to: str) -> str | None:
  """Finds a TFDS dataset to convert.

  Args:
    name: of the dataset.
    source: folder of one version, of any format; or of a dataset or of
      datasets, whose newest version of the other format is used.
    to: format to convert to, of `shards.FORMATS`.

  Returns:
    The folder of a version, or None.
  """
  if os.path.isfile(os.path.join(source, _INFO)):
    return source
  for folder in (source, os.path.join(source, name)):
    versions = [
      (tuple(map(int, version.split("."))), os.path.join(folder, version))
      for version in (os.listdir(folder) if os.path.isdir(folder) else ())
      if re.fullmatch(r"\d+\.\d+\.\d+", version)
      and _is_of(_other(to), os.path.join(folder, version))
    ]
    if versions:
      return max(versions)[1]
  return None


def _other(to: str) -> str:
  """The format to convert from."""
  return next(format for format in shards.FORMATS if format != to)


def _is_of(format: str, folder: str) -> bool:
  if not os.path.isfile(os.path.join(folder, _INFO)):
    return False
  return _metadata_of(folder).get("fileFormat", "tfrecord") == format


def _metadata_of(folder: str) -> dict[str, Any]:
  """The content of dataset_info.json."""
  path = os.path.join(folder, _INFO)
  try:
    with open(path, encoding="utf-8") as file:
      found = json.load(file)
    found = {**found, "name": found["name"], "version": found["version"]}
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
      f"expected TFDS's metadata in {path}, got {error!r}; copy it again."
    ) from error
  if not re.fullmatch(r"\d+\.\d+\.\d+", str(found["version"])):
    raise ValueError(
      f"expected a version such as 1.0.0 in {path}, got"
      f" {found['version']!r}; copy it again."
    )
  return found


def plan(name: str, folder: str, to: str = shards.FORMATS[0]) -> shards.Plan:
  """Plans the files of a dataset of the other format.

  Args:
    name: of the dataset.
    folder: of one of its versions.
    to: format to convert to.

  Raises:
    ValueError: the folder holds another dataset or format, its metadata are
      damaged, or a file is missing.
  """
  meta = _metadata_of(folder)
  if meta["name"] != name:
    raise ValueError(
      f"expected dataset {name} in {folder}, got {meta['name']}; prepare it"
      " under that name."
    )
  source = meta.get("fileFormat", "tfrecord")
  if source != _other(to):
    raise ValueError(
      f"expected {_other(to)} files in {folder}, got {source};"
      f" {to} needs no conversion."
    )
  try:
    info = datasets.opened(folder).info
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
      f"cannot read the metadata in {folder} ({datasets.reason(error)});"
      " copy them again."
    ) from error
  made = []
  for path, count in files:
    if not os.path.isfile(path):
      name = os.path.basename(path)[:200]
      raise ValueError(
        f"{folder} is incomplete: there is no file"
        f" {os.path.join(folder, name)}; copy it again."
      )
    made.append(
      shards.Shard(
        os.path.basename(path).replace(f".{source}-", f".{to}-"),
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
    metadata=functools.partial(_metadata, folder, meta, to),
  )


def _records(
  path: str, count: int, classes: int | None, seen: shards.Seen
) -> Iterator[bytes]:
  """The records of a file.

  Raises:
    OSError: there are not `count` of them, or one is damaged.
  """
  found = 0
  for record in _unchecked(path):
    try:
      seen(_image(record, classes))
    except (ValueError, message.DecodeError) as error:
      raise OSError(_corrupt(path, found, error)) from error
    yield record
    found += 1
  if found != count:
    raise OSError(
      f"expected {count:,} records in {path} by {_INFO}, got {found:,}"
    )


def _unchecked(path: str) -> Iterator[bytes]:
  """The records of a file, of which only the checksums are checked."""
  found = 0
  try:
    if f".{tfrecords.FORMAT}-" in os.path.basename(path):
      for start, length in tfrecords.places(path):
        yield tfrecords.read(path, start, length)
        found += 1
      return
    reader = array_record_module.ArrayRecordReader(path)
    try:
      for index in range(reader.num_records()):
        yield reader.read([index])[0]
        found += 1
    finally:
      reader.close()
  except (ValueError, RuntimeError) as error:
    raise OSError(_corrupt(path, found, error)) from error


def _corrupt(path: str, index: int, error: Exception) -> str:
  return f"record {index} of {path} is corrupt ({error}); copy that file again"


def _image(record: bytes, classes: int | None) -> bytes | None:
  """The encoded image of a record, if it has one."""
  features = tf_example_pb2.Example.FromString(record).features.feature
  if classes is not None:
    label = list(features["label"].int64_list.value)
    # TFDS labels examples without a class -1.
    if len(label) != 1 or not -1 <= label[0] < classes:
      raise ValueError(
        f"expected one label below {classes}, got {label[:10] or 'none'}"
      )
  if "image" not in features:
    return None
  encoded = features["image"].bytes_list.value
  return encoded[0] if len(encoded) == 1 else None


def _metadata(
  folder: str,
  meta: dict[str, Any],
  to: str,
  made: str,
  census: censuses.Census,
) -> None:
  """Copies everything but the records; changes the name of the format."""
  del census
  for name in os.listdir(folder):
    path = os.path.join(folder, name)
    if (
      f".{_other(to)}-" in name
      or name in (_INFO, shards.STATE)
      or not os.path.isfile(path)
    ):
      continue
    with open(path, "rb") as file:
      data = file.read()
    with open(os.path.join(made, name), "wb") as file:
      file.write(data)
  with open(os.path.join(made, _INFO), "w", encoding="utf-8") as file:
    json.dump({**meta, "fileFormat": to}, file, indent=2)
