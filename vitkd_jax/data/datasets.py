"""Prepared TFDS data sets as random-access sources of images and labels.

`load` reads array_record files that TFDS wrote, without TensorFlow. The set
`fashion_mini` comes with this package; `python -m vitkd_jax.prepare` writes
others.
"""

import dataclasses
import difflib
import os
import re
import shlex
from typing import Any, Protocol

from etils import epath
import numpy as np
import tensorflow_datasets as tfds

from vitkd_jax.data import decode

_PACKAGE = epath.Path(__file__).parent

# Per-channel mean and standard deviation of the train images in [0, 1].
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_STATISTICS = {
  "fashion_mini": ((0.2859,) * 3, (0.3518,) * 3),
  "fashion_mnist": ((0.2860,) * 3, (0.3530,) * 3),
}


class Source(Protocol):
  """Examples {"image": uint8 [H, W, 3], "label": int32 scalar} by index.

  `source[i]` has the whole image. Sources of files also have
  `read(i, crop)`, whose image is what `crop` makes of the file's bytes. Both
  raise `decode.BadRecordError`, which names the record, for a bad one.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Info:
  """What is known of a data set before any record is read.

  Attributes:
    name: of the data set.
    num_classes: number of classes.
    image_size: (H, W) in pixels; None when images differ in size.
    num_examples: split name -> number of examples.
    class_names: of length num_classes.
    mean: of the train images in [0, 1], three channels; ImageNet's where the
      set's own was not measured.
    std: the same for the standard deviation.
  """

  name: str
  num_classes: int
  image_size: tuple[int, int] | None
  num_examples: dict[str, int]
  class_names: tuple[str, ...]
  mean: tuple[float, float, float]
  std: tuple[float, float, float]


def default_data_dir() -> epath.Path:
  """TFDS's own folder: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
  folder = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return epath.Path(folder).expanduser()


def info(name: str, data_dir: str | None = None) -> Info:
  """What TFDS's metadata say of data set `name`; reads no record.

  Args:
    name: of the data set, as its folder is called.
    data_dir: folder of data sets; default: see `default_data_dir`.

  Raises:
    ValueError: the set is unknown, not prepared, or has no image and label.
  """
  meta = _builder(name, data_dir).info
  height, width, _ = meta.features["image"].shape
  label = meta.features["label"]
  mean, std = _STATISTICS.get(name, _IMAGENET)
  return Info(
    name=name,
    num_classes=label.num_classes,
    image_size=None if None in (height, width) else (height, width),
    num_examples={k: v.num_examples for k, v in meta.splits.items()},
    class_names=tuple(label.names),
    mean=mean,
    std=std,
  )


def load(
  name: str,
  split: str,
  *,
  data_dir: str | None = None,
  cache: bool = False,
) -> Source:
  """One split of a prepared data set.

  Args:
    name: of the data set, as its folder is called.
    split: a split's name, or a slice in TFDS's notation ("train[:1000]").
    data_dir: folder of data sets; default: see `default_data_dir`. The
      package's own sets are found without it.
    cache: decodes every image now and keeps the pixels in memory (for small
      sets; images of one size).

  Returns:
    A `Source`. Threads may share it, and worker processes are sent it.

  Raises:
    ValueError: the set is unknown or not prepared, the split is unknown, or
      the images to be cached differ in size.
  """
  builder = _builder(name, data_dir)
  _check_split(name, split, builder.info.splits)
  try:
    records = builder.as_data_source(
      split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    len(records)  # refuses a slice that ends before it begins
  except ValueError as error:
    sizes = {k: v.num_examples for k, v in builder.info.splits.items()}
    raise ValueError(
      f"data set {name} has no slice {split!r}; write it like 'train[:1000]'"
      f" or 'train[50%:]', within its examples {sizes}."
    ) from error
  files = builder.info.splits[split].file_instructions
  source = _Records(records, files)
  return _cached(name, source) if cache else source


class _Records:
  """Decodes a record each time it is asked for.

  Args:
    records: of TFDS, with encoded images.
    files: TFDS's instructions: which part of which file, in order.
  """

  def __init__(self, records, files):
    self._records, self._files = records, files

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    return self.read(index, lambda data: decode.to_rgb(decode.decode(data)))

  def read(self, index, crop):
    record = self._record(index)
    try:
      image = crop(record["image"])
    except decode.BadRecordError as error:
      place = self._place(index, record)
      raise decode.BadRecordError(f"{place}: {error}") from error
    return {"image": image, "label": np.int32(record["label"])}

  def encoded(self, index):
    record = self._record(index)
    return record["image"], np.int32(record["label"])

  def _record(self, index):
    try:
      return self._records[int(index)]
    except RuntimeError as error:  # ArrayRecord's, of every kind
      place = self._place(index)
      raise decode.BadRecordError(f"{place}: {error}") from error

  def _place(self, index, record=None):
    """Where a record is, in words."""
    words, at = f"record {index}", index
    for part in self._files:
      if at < part.take:
        name = epath.Path(part.filename).name
        words += f", number {part.skip + at} of {name}"
        break
      at -= part.take
    for key in ("file_name", "filename"):
      if record and key in record:
        words += f", {record[key].decode(errors='replace')}"
    return words


class _Arrays:
  """Holds decoded pixels: images uint8 [n, H, W, 1 or 3], labels int32 [n]."""

  def __init__(self, images, labels):
    self._images, self._labels = images, labels

  def __len__(self):
    return len(self._labels)

  def __getitem__(self, index):
    image, label = self._images[index], self._labels[index]
    return {"image": decode.to_rgb(image), "label": label}


def _cached(name, records):
  images, labels = None, np.empty(len(records), np.int32)
  for i in range(len(records)):
    data, labels[i] = records.encoded(i)
    image = decode.decode(data)
    if images is None:
      images = np.empty((len(records), *image.shape), np.uint8)
    if image.shape != images.shape[1:]:
      raise ValueError(
        f"cache=True needs images of one size, but {name} holds"
        f" {images.shape[1:]} and {image.shape}; set cache=False."
      )
    images[i] = image
  return _Arrays(images, labels)


def _builder(name, data_dir):
  """TFDS builder of the newest prepared version of `name`."""
  if data_dir:  # what the caller names goes before what the package holds
    folder = epath.Path(data_dir).expanduser()
    roots = [folder, _PACKAGE]
  else:
    folder = default_data_dir()
    roots = [_PACKAGE, folder]
  for root in roots:
    for version in _versions(root / name):
      try:
        builder = tfds.builder_from_directory(version)
      except Exception as error:  # TFDS's own, protobuf's, JSON's
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
          f"the metadata of data set {name} in {version} cannot be read"
          f" ({reason}); delete that folder and prepare it again."
        ) from error
      return _checked(name, builder)
  raise ValueError(_missing(name, folder))


def _versions(folder):
  """Prepared versions of one data set, the newest first."""
  if not folder.is_dir():
    return []
  numbered = [
    (tuple(map(int, path.name.split("."))), path)
    for path in folder.iterdir()
    if re.fullmatch(r"\d+\.\d+\.\d+", path.name)
    and (path / "dataset_info.json").exists()
  ]
  return [path for _, path in sorted(numbered, reverse=True)]


def _checked(name, builder):
  features = builder.info.features
  if "image" not in features or "label" not in features:
    raise ValueError(
      f"data set {name} has no image and label, but {', '.join(features)}."
    )
  if not isinstance(features["label"], tfds.features.ClassLabel):
    raise ValueError(
      f"the label of data set {name} is no class, but {features['label']}."
    )
  file_format = builder.info.file_format.value
  if file_format != "array_record":
    raise ValueError(
      f"data set {name} in {builder.data_dir} is stored as {file_format}, but"
      " array_record is read; convert it into another folder of data sets:"
      f" python -m vitkd_jax.prepare {name} --source {builder.data_dir}"
      " --data-dir DIR, if it is tfrecord."
    )
  return builder


def _missing(name, folder):
  """What to say when `name` is neither in `folder` nor in the package."""
  known = set(_STATISTICS)
  if folder.is_dir():
    if (folder / "dataset_info.json").exists() or _versions(folder):
      return (
        f"{folder} is the folder of one data set; name that which holds it."
      )
    known.update(f.name for f in folder.iterdir() if _versions(f))
  near = "" if name in known else f" {_nearest(name, known)}"
  return (
    f"data set {name!r} is not prepared in {folder}.{near} Prepare it with:"
    f" python -m vitkd_jax.prepare {name} --source DIR --data-dir"
    f" {shlex.quote(os.fspath(folder))}"
  )


def _check_split(name, split, splits):
  for part in split.split("+"):
    word = part.split("[")[0].strip()
    if word not in splits:
      raise ValueError(
        f"data set {name} has no split {word!r}. {_nearest(word, list(splits))}"
      )


def _nearest(word, valid):
  close = difflib.get_close_matches(word, sorted(valid), n=1, cutoff=0.5)
  names = ", ".join(sorted(valid))
  return (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {names}."
