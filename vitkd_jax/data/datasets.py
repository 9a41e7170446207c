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
import tensorflow_datasets as tfds

from vitkd_jax.data import sources, subsets

_PACKAGE = epath.Path(__file__).parent

# Of `prepare`, beside what is in the folder.
_NAMES = ("fashion_mini", "fashion_mnist")


class Source(Protocol):
  """Examples {"image": uint8 [H, W, 3], "label": int32 scalar} by index.

  `source[i]` has the whole image. Sources of files also have
  `read(i, crop)`, whose image is what `crop` makes of the `decode.File`. Both
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
    scored_classes: that a model is scored over; None for all.
    label_sets: each image has any number of labels that count as right.
  """

  name: str
  num_classes: int
  image_size: tuple[int, int] | None
  num_examples: dict[str, int]
  class_names: tuple[str, ...]
  scored_classes: tuple[int, ...] | None = None
  label_sets: bool = False


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
  return Info(
    name=name,
    num_classes=label.num_classes,
    image_size=None if None in (height, width) else (height, width),
    num_examples={k: v.num_examples for k, v in meta.splits.items()},
    class_names=tuple(label.names),
    scored_classes=subsets.scored_classes(name, label.num_classes),
    label_sets=sources.LABEL_SET in meta.features,
  )


def load(
  name: str,
  split: str,
  *,
  data_dir: str | None = None,
  cache: bool = False,
  crop_size: int = 0,
  exif: bool = False,
  label_sets: bool = False,
) -> Source:
  """One split of a prepared data set.

  Args:
    name: of the data set, as its folder is called.
    split: a split's name, or a slice in TFDS's notation ("train[:1000]").
    data_dir: folder of data sets; default: see `default_data_dir`. The
      package's own sets are found without it.
    cache: decodes every image now and keeps the pixels in memory. They are
      those that come without: of a JPEG so large that a crop may decode it
      shrunk, the file is kept.
    crop_size: pixels of a side that images will be cropped to; 0 for whole
      ones. Only the cache asks.
    exif: turn images as their EXIF says, which timm and torchvision do not.
    label_sets: examples have "labels", too: bool [C], those that count as
      right. For sets whose `Info` has them; not with `cache`.

  Returns:
    A `Source`. Threads may share it, and worker processes are sent it.

  Raises:
    ValueError: the set is unknown or not prepared, the split is unknown, or
      the images to be cached do not fit into the memory.
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
  source = sources.Records(
    records,
    builder.info.splits[split].file_instructions,
    builder.info.features["label"].num_classes,
    label_sets,
    upright=exif,
  )
  return sources.cached(name, source, crop_size) if cache else source


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
        raise ValueError(
          f"the metadata of data set {name} in {version} cannot be read"
          f" ({reason(error)}); delete that folder and prepare it again."
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
  try:
    check_names(features["label"])
  except ValueError as error:
    raise ValueError(
      f"data set {name} in {builder.data_dir}: {error}; prepare it again."
    ) from error
  file_format = builder.info.file_format.value
  if file_format != "array_record":
    raise ValueError(
      f"data set {name} in {builder.data_dir} is stored as {file_format}, but"
      " array_record is read; convert it into another folder of data sets:"
      f" python -m vitkd_jax.prepare {name} --source {builder.data_dir}"
      " --data-dir DIR, if it is tfrecord."
    )
  return builder


def reason(error: Exception) -> str:
  """What TFDS, protobuf or JSON say of damaged metadata, in some words."""
  first = str(error).strip().partition("\n")[0][:500]
  # What Python says of a value tells nothing of the file.
  known = re.split(r":? *(?:invalid literal|could not|'\w+' object)", first)[0]
  return known.rstrip(".") or type(error).__name__


def check_names(label: tfds.features.ClassLabel) -> None:
  """Raises ValueError unless there are as many class names as classes."""
  if not label.num_classes or len(label.names) != label.num_classes:
    raise ValueError(
      f"expected a name for each class, got {len(label.names or ()):,} names"
      f" for {label.num_classes or 0:,} classes"
    )


def _missing(name, folder):
  """What to say when `name` is neither in `folder` nor in the package."""
  known = set(_NAMES)
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
