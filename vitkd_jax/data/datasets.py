"""Prepared TFDS datasets as random-access sources of images and labels.

`load` reads TFDS's array_record and TFRecord files without TensorFlow. The
dataset `fashion_mini` ships with this package; `python -m vitkd_jax.prepare`
writes others.
"""

from collections.abc import Collection, Iterator, Mapping
import dataclasses
import json
import os
import re
import shlex
import types
from typing import Any, Protocol

from etils import epath
import tensorflow_datasets as tfds

from vitkd_jax import check, remote
from vitkd_jax.data import sources, subsets, tfrecords

_PACKAGE = epath.Path(__file__).parent

# Names to suggest beside those in the folder.
_NAMES = ("fashion_mini", "fashion_mnist")


class Source(Protocol):
  """Examples {"image": uint8 [H, W, 3], "label": int32 scalar} by index.

  `source[i]` has the whole image. Sources of files also have
  `read(i, crop)`, which applies `crop` to the `decode.File`. Both raise
  `decode.BadRecordError`, which names the record, for a bad one.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Info:
  """What is known of a dataset before any record is read.

  Attributes:
    name: folder name of the dataset.
    num_classes: number of classes.
    image_size: (H, W) in pixels; None if images differ in size.
    num_examples: split name -> number of examples.
    class_names: one for each class, in the order of the labels.
    scored_classes: classes that a model is scored over; None for all.
    label_sets: each image has any number of labels that count as correct.
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
  """Describes a prepared dataset from TFDS's metadata; reads no record.

  Args:
    name: folder name of the dataset.
    data_dir: folder of datasets; by default `default_data_dir()`.

  Raises:
    ValueError: the dataset is unknown or not prepared, or has no image or
      label.
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
  """Opens one split of a prepared dataset.

  Args:
    name: folder name of the dataset.
    split: name of a split, or a slice in TFDS's notation ("train[:1000]").
    data_dir: folder of datasets; by default `default_data_dir()`. The
      package's own datasets are found without it.
    cache: decode every image now and keep it in memory. Pixels are the same as
      without; a JPEG so large that a crop may decode it shrunk stays encoded.
    crop_size: side in pixels that images will be cropped to, 0 for whole
      images. Used by `cache` only.
    exif: turn images upright by their EXIF orientation, which timm and
      torchvision do not.
    label_sets: add "labels", bool [C], the classes that count as correct. For
      datasets whose `Info.label_sets` is set; not with `cache`.

  Returns:
    A `Source` that threads may share and worker processes can unpickle.

  Raises:
    ValueError: the dataset is unknown or not prepared, the split is unknown, or
      the images to cache do not fit into memory.
  """
  builder = _builder(name, data_dir)
  _check_split(name, split, builder.info.splits)
  decoders = {"image": tfds.decode.SkipDecoding()}
  try:
    if builder.info.file_format.value == tfrecords.FORMAT:
      records = tfrecords.Source(builder.info, split, decoders)
    else:
      records = builder.as_data_source(split=split, decoders=decoders)
    len(records)  # refuses a slice that ends before it begins
  except OSError as error:
    raise ValueError(
      f"cannot read dataset {name}: {error}; prepare it again."
    ) from error
  except ValueError as error:
    sizes = {k: v.num_examples for k, v in builder.info.splits.items()}
    raise ValueError(
      f"dataset {name} has no slice {split!r}; expected a slice such as"
      f" 'train[:1000]' or 'train[50%:]' within {sizes}."
    ) from error
  source = sources.Records(
    records,
    builder.info.splits[split].file_instructions,
    builder.info.features["label"].num_classes,
    label_sets,
    upright=exif,
  )
  return sources.cached(name, source, crop_size) if cache else source


def examples_in(split: str, sizes: Mapping[str, int]) -> int:
  """Number of examples of a split, or of a slice of one.

  Args:
    split: in TFDS's notation, such as "train[:1%]" or "train+validation".
    sizes: number of examples by split.

  Raises:
    ValueError: there is no such split, or the slice is empty.
  """
  splits = {
    name: types.SimpleNamespace(num_examples=size)
    for name, size in sizes.items()
  }
  try:
    found = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
  except ValueError:
    found = []
  count = 0
  for each in found:
    end = sizes[each.splitname] if each.to is None else each.to
    count += max(end - (each.from_ or 0), 0)
  if not count:
    raise ValueError(
      f"expected a split or a slice of {dict(sizes)}, such as 'train[:1000]', "
      f"got {split!r}"
    )
  return count


def _builder(name: str, data_dir: str | None) -> Any:
  """TFDS builder of the newest prepared version of `name`."""
  if data_dir:  # the caller's folder takes precedence over the package's
    folder = epath.Path(data_dir).expanduser()
    roots = [folder, _PACKAGE]
  else:
    folder = default_data_dir()
    roots = [_PACKAGE, folder]
  for root in roots:
    for version in _versions(root / name):
      try:
        builder = opened(version)
      except Exception as error:  # TFDS's own, protobuf's, JSON's
        raise ValueError(
          f"cannot read the metadata of dataset {name} in {version}"
          f" ({reason(error)}); delete that folder and prepare it again."
        ) from error
      return _checked(name, builder)
  raise ValueError(_missing(name, folder))


def opened(folder: str | os.PathLike) -> Any:
  """TFDS's builder of a prepared dataset, which runs no code of its folder.

  TFDS imports the module of any feature that features.json names, from the
  working directory, too.

  Args:
    folder: of one version of the dataset.

  Raises:
    ValueError: features.json names another class than TFDS's features.
    Exception: of TFDS, protobuf or JSON: the metadata are damaged.
  """
  path = epath.Path(folder) / "features.json"
  for name in _classes(json.loads(path.read_text())):
    if not _FEATURE.fullmatch(name):
      raise ValueError(
        f"expected TFDS's own features in {path.name}, got class {name!r:.200}"
      )
  return tfds.builder_from_directory(folder)


_FEATURE = re.compile(r"tensorflow_datasets\.core\.features(\.[A-Za-z_]\w*)+")


def _classes(value: Any) -> Iterator[str]:
  """The names of classes in features.json, at any depth."""
  if isinstance(value, list):
    for each in value:
      yield from _classes(each)
  elif isinstance(value, dict):
    for key, each in value.items():
      # The second and third are older, the fourth holds JSON as text.
      if key in ("pythonClassName", "python_class_name", "type"):
        if isinstance(each, str):
          yield each
      elif key == "json" and isinstance(each, str):
        each = json.loads(each)
      yield from _classes(each)


def _versions(folder: epath.Path) -> list[epath.Path]:
  """Prepared versions of one dataset, newest first."""
  if not folder.is_dir():
    return []
  numbered = [
    (tuple(map(int, path.name.split("."))), path)
    for path in folder.iterdir()
    if re.fullmatch(r"\d+\.\d+\.\d+", path.name)
    and (path / "dataset_info.json").exists()
  ]
  return [path for _, path in sorted(numbered, reverse=True)]


def _checked(name: str, builder: Any) -> Any:
  features = builder.info.features
  if "image" not in features or "label" not in features:
    raise ValueError(
      f"expected features 'image' and 'label' in dataset {name}, got"
      f" {', '.join(features)}."
    )
  if not isinstance(features["label"], tfds.features.ClassLabel):
    raise ValueError(
      f"expected 'label' of dataset {name} to be a ClassLabel, got"
      f" {features['label']}."
    )
  try:
    check_names(features["label"])
  except ValueError as error:
    raise ValueError(
      f"dataset {name} in {builder.data_dir}: {error}; prepare it again."
    ) from error
  file_format = builder.info.file_format.value
  if file_format == tfrecords.FORMAT and not remote.is_remote(builder.data_dir):
    return builder
  if file_format != "array_record":
    raise ValueError(
      f"expected array_record files for dataset {name} in {builder.data_dir},"
      f" or tfrecord on a disk, got {file_format}; convert tfrecord on a disk"
      " into another folder of datasets with: python -m vitkd_jax.prepare"
      f" {name} --source DIR --data-dir DIR"
    )
  return builder


def reason(error: Exception) -> str:
  """Shortens an error of TFDS, protobuf or JSON about damaged metadata.

  Args:
    error: raised while reading the metadata.

  Returns:
    A few words, without a period.
  """
  first = str(error).strip().partition("\n")[0][:500]
  # Python's remarks on a value say nothing about the file.
  known = re.split(r":? *(?:invalid literal|could not|'\w+' object)", first)[0]
  return known.rstrip(".") or type(error).__name__


def check_names(label: tfds.features.ClassLabel) -> None:
  """Checks that there are as many class names as classes.

  Args:
    label: feature "label" of a dataset.

  Raises:
    ValueError: the numbers differ, or there are no classes.
  """
  if not label.num_classes or len(label.names) != label.num_classes:
    raise ValueError(
      f"expected a name for each class, got {len(label.names or ()):,} names"
      f" for {label.num_classes or 0:,} classes"
    )


def _missing(name: str, folder: epath.Path) -> str:
  """The message for a `name` that is neither in `folder` nor the package."""
  known = set(_NAMES)
  if folder.is_dir():
    if (folder / "dataset_info.json").exists() or _versions(folder):
      return (
        f"expected a folder of datasets, but {folder} is a dataset itself; name"
        " its parent."
      )
    known.update(f.name for f in folder.iterdir() if _versions(f))
  near = "" if name in known else f"; {check.nearest(name, sorted(known))}"
  return (
    f"dataset {name!r} is not prepared in {folder}{near}. Prepare it with:"
    f" python -m vitkd_jax.prepare {name} --source DIR --data-dir"
    f" {shlex.quote(os.fspath(folder))}"
  )


def _check_split(name: str, split: str, splits: Collection[str]) -> None:
  for part in split.split("+"):
    word = part.split("[")[0].strip()
    check.known(f"the split of dataset {name}", word, sorted(splits))
