"""ImageNet-1k and its test sets from their published archives.

Nothing is downloaded: the archives are in one folder, and their sizes and
contents are checked before anything is written. Names, fields and labels are
those of TFDS's datasets of the same names; images keep their bytes (TFDS
re-encodes 23 of ImageNet's).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import json
from typing import Any

import tensorflow_datasets as tfds

from vitkd_jax.data.builders import (
  archives,
  images,
  records,
  synsets,
  unpacked,
)

_REGISTERED = (
  "ImageNet gives it to those who register at"
  " https://image-net.org/download-images"
)
TRAIN = archives.Archive(
  "ILSVRC2012_img_train.tar", 147_897_477_120, 1_281_167, _REGISTERED
)
VAL = archives.Archive(
  "ILSVRC2012_img_val.tar", 6_744_924_160, 50_000, _REGISTERED
)
REAL = archives.Archive(
  "real.json",
  388_478,
  None,
  "it is at https://raw.githubusercontent.com/google-research/"
  "reassessed-imagenet/master/real.json",
  "d83e9bff374c631aae8439eb064c7019acc56e1b3bc3f56b8380c2a710b0220b",
)
_V2 = "it is at https://huggingface.co/datasets/vaishaal/ImageNetV2/tree/main"
_HENDRYCKS = "it is at https://people.eecs.berkeley.edu/~hendrycks/"
# name -> version, archive, homepage.
TESTS = {
  "imagenet_v2": (
    "3.0.0",
    archives.Archive(
      "imagenetv2-matched-frequency.tar.gz", 1_264_079_360, 10_000, _V2
    ),
    "https://github.com/modestyachts/ImageNetV2",
  ),
  "imagenet_v2_threshold": (
    "3.0.0",
    archives.Archive(
      "imagenetv2-threshold0.7.tar.gz", 1_249_906_176, 10_000, _V2
    ),
    "https://github.com/modestyachts/ImageNetV2",
  ),
  "imagenet_v2_topimages": (
    "3.0.0",
    archives.Archive(
      "imagenetv2-top-images.tar.gz", 1_245_927_936, 10_000, _V2
    ),
    "https://github.com/modestyachts/ImageNetV2",
  ),
  "imagenet_a": (
    "0.1.0",
    archives.Archive(
      "imagenet-a.tar", 687_552_512, 7_500, f"{_HENDRYCKS}imagenet-a.tar"
    ),
    "https://github.com/hendrycks/natural-adv-examples",
  ),
  "imagenet_r": (
    "0.2.0",
    archives.Archive(
      "imagenet-r.tar", 2_191_079_936, 30_000, f"{_HENDRYCKS}imagenet-r.tar"
    ),
    "https://github.com/hendrycks/imagenet-r",
  ),
}


_Seen = Callable[[int], None]
_Member = tuple[images.Example, str | None]  # and what is wrong with it
_Listing = tuple[list[images.Example], list[images.Bad]]


def imagenet2012(
  source: str,
  splits: Sequence[str] | None = None,
  published: tuple[archives.Archive, archives.Archive] = (TRAIN, VAL),
  seen: _Seen = lambda count: None,
) -> records.Dataset:
  """ImageNet-1k: splits "train" and "validation".

  Args:
    source: folder of the two official archives, or of their unpacked images;
      see `unpacked.find`.
    splits: to make; None for both.
    published: archives of the two splits.
    seen: called with the number of files checked since the last call.

  Raises:
    ValueError: a file is missing or is not the published one.
  """
  splits = splits or ("train", "validation")
  wanted = dict(zip(("train", "validation"), published, strict=True))
  for split in splits:
    if split not in wanted:
      raise ValueError(
        f"--splits: expected train or validation for imagenet2012, got"
        f" {split!r}."
      )
  found: dict[str, list[images.Example]] = {}
  bad: list[images.Bad] = []
  if root := unpacked.find(source):
    found, bad, notes = unpacked.listing(root, splits, wanted, seen)
    dataset = _dataset("imagenet2012", "5.1.0", found, bad)
    return dataclasses.replace(dataset, notes=notes)
  paths = archives.locate("imagenet2012", source, [wanted[s] for s in splits])
  for split, path in zip(splits, paths, strict=True):
    listing = _train if split == "train" else _validation
    found[split], wrong = listing(path, seen)
    archives.check_count(wanted[split], path, len(found[split]) + len(wrong))
    bad += wrong
  return _dataset("imagenet2012", "5.1.0", found, bad)


def imagenet2012_real(
  source: str,
  published: tuple[archives.Archive, archives.Archive] = (VAL, REAL),
  seen: _Seen = lambda count: None,
) -> records.Dataset:
  """The validation images with the labels of arXiv:2006.07159.

  Adds `label`, a copy of the original label, to TFDS's fields, so that readers
  of images and labels can read this dataset, too.

  Args:
    source: folder of the validation archive and real.json.
    published: these two files.
    seen: called with the number of files checked since the last call.

  Raises:
    ValueError: a file is missing or is not the published one.
  """
  tar, labels = archives.locate("imagenet2012_real", source, published)
  examples, bad = _validation(tar, seen)
  archives.check_count(published[0], tar, len(examples) + len(bad))
  with open(labels, encoding="utf-8") as file:
    real = json.load(file)

  def fields(example: images.Example) -> dict[str, Any]:
    number = int(example.name.split("_")[-1].removesuffix(".JPEG"))
    return {
      "label": example.label,
      "original_label": example.label,
      "real_label": real[number - 1],
      "file_name": example.name,
    }

  label = tfds.features.ClassLabel(names=synsets.names())
  features = tfds.features.FeaturesDict(
    {
      **records.features(synsets.names()),
      "original_label": label,
      "real_label": tfds.features.Sequence(label),
    }
  )
  return dataclasses.replace(
    _dataset("imagenet2012_real", "1.0.0", {"validation": examples}, bad),
    features=features,
    fields=fields,
  )


def evaluation_set(
  name: str,
  source: str,
  archive: archives.Archive | None = None,
  seen: _Seen = lambda count: None,
) -> records.Dataset:
  """One of `TESTS`: split "test", labels among ImageNet's 1,000.

  Args:
    name: key of `TESTS`.
    source: folder of the archive.
    archive: to read instead of the published one.
    seen: called with the number of files checked since the last call.

  Raises:
    ValueError: the archive is missing or is not the published one.
  """
  version, official, homepage = TESTS[name]
  archive = archive or official
  (path,) = archives.locate(name, source, [archive])
  labels = {synset: i for i, synset in enumerate(synsets.names())}
  if name.startswith("imagenet_v2"):
    labels = {str(i): i for i in range(len(labels))}

  def placed(member: images.Example) -> images.Example:
    folder, _, file = member.name.rpartition("/")
    folder = folder.rpartition("/")[2]
    if folder not in labels:
      raise ValueError(
        f"{path}: expected images in class folders, got {member.name!r}."
      )
    # As in TFDS, where only imagenet_a omits the folder.
    short = file if name == "imagenet_a" else f"{folder}/{file}"
    return dataclasses.replace(member, name=short, label=labels[folder])

  examples, bad = _sorted_out(
    ((placed(member), wrong) for member, wrong in archives.members(path)), seen
  )
  archives.check_count(archive, path, len(examples) + len(bad))
  return _dataset(name, version, {"test": examples}, bad, homepage)


def _train(path: str, seen: _Seen) -> _Listing:
  """Good and bad images of a tar that holds a tar for each class."""
  numbers = {f"{synset}.tar": i for i, synset in enumerate(synsets.names())}

  def found() -> Iterator[_Member]:
    for inner, _ in archives.members(path, suffixes=(".tar",)):
      if inner.name not in numbers:
        raise ValueError(
          f"{path}: expected a tar for each synset, got {inner.name!r}."
        )
      for member, wrong in archives.members(path, inner):
        yield dataclasses.replace(member, label=numbers[inner.name]), wrong

  return _sorted_out(found(), seen)


def _validation(path: str, seen: _Seen) -> _Listing:
  """Good and bad images of the validation tar; TFDS has their labels."""
  members = sorted(archives.members(path), key=lambda m: m[0].name)
  return _sorted_out(
    (
      (dataclasses.replace(member, label=label), wrong)
      for (member, wrong), label in zip(
        members, synsets.validation_labels(), strict=False
      )
    ),
    seen,
  )


def _sorted_out(members: Iterable[_Member], seen: _Seen) -> _Listing:
  examples: list[images.Example] = []
  bad: list[images.Bad] = []
  for member, wrong in members:
    seen(1)
    if wrong:
      bad.append(images.Bad(member.name, wrong))
    else:
      examples.append(member)
  return examples, bad


def _dataset(
  name: str,
  version: str,
  splits: Mapping[str, Sequence[images.Example]],
  bad: Sequence[images.Bad],
  homepage: str = "https://image-net.org/",
) -> records.Dataset:
  return records.Dataset(
    name=name,
    version=version,
    features=records.features(synsets.names()),
    splits=splits,
    bad=bad,
    about={"homepage": homepage, "description": f"{name}, as published."},
  )


DATASETS: dict[str, Callable[..., records.Dataset]] = {
  "imagenet2012": imagenet2012,
  "imagenet2012_real": imagenet2012_real,
  **{name: functools.partial(evaluation_set, name) for name in TESTS},
}
