"""ImageNet-1k and its test sets from the archives as published.

Nothing is downloaded: the archives lie in one folder, and their sizes and
contents are checked before anything is written. Names, fields and labels are
those of TFDS's data sets of the same names; the images' bytes stay as they are
(TFDS re-encodes 23 of ImageNet's).
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import os
import re

import tensorflow_datasets as tfds

from vitkd_jax.data.builders import archives, images, layout, records, tree

_LABELS = "datasets/imagenet2012/labels.txt"
# Of the validation images in the order of their names.
_VALIDATION_LABELS = "datasets/imagenet2012/validation_labels.txt"

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
# Where the images lie that are no longer in their archives: Kaggle's below the
# first of these.
_ROOTS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC", "")
_FOLDERS = {"train": ("train",), "validation": ("val", "validation")}


def imagenet2012(
  source: str,
  splits: Sequence[str] | None = None,
  published: tuple[archives.Archive, archives.Archive] = (TRAIN, VAL),
  seen: _Seen = lambda count: None,
) -> records.DataSet:
  """ImageNet-1k: splits "train" and "validation".

  Args:
    source: folder of the two official archives, or of what was in them, see
      `unpacked`.
    splits: which to make; None for both.
    published: the archives of the two splits.
    seen: called with the number of files looked at since.

  Raises:
    ValueError: a file is missing or is not the published one.
  """
  splits = splits or ("train", "validation")
  wanted = dict(zip(("train", "validation"), published, strict=True))
  for split in splits:
    if split not in wanted:
      raise ValueError(
        f"--splits: imagenet2012 has train and validation, not {split!r}."
      )
  if root := unpacked(source):
    return _unpacked(root, splits, wanted, seen)
  paths = archives.locate("imagenet2012", source, [wanted[s] for s in splits])
  found, bad = {}, []
  for split, path in zip(splits, paths, strict=True):
    listing = _train if split == "train" else _validation
    found[split], wrong = listing(path, seen)
    archives.check_count(wanted[split], path, len(found[split]) + len(wrong))
    bad += wrong
  return _data_set("imagenet2012", "5.1.0", found, bad)


def unpacked(source: str) -> str | None:
  """Folder of `train` and `val`, where ImageNet's archives are unpacked."""
  for root in _ROOTS:
    path = os.path.join(source, root) if root else source
    for name in sum(_FOLDERS.values(), ()):
      if os.path.isdir(os.path.join(path, name)):
        return path
  return None


def imagenet2012_real(
  source: str,
  published: tuple[archives.Archive, archives.Archive] = (VAL, REAL),
  seen: _Seen = lambda count: None,
) -> records.DataSet:
  """The validation images with the labels of arXiv:2006.07159.

  Beside TFDS's fields, `label` is the original label once more: what reads
  images and labels reads this set, too.

  Raises:
    ValueError: as `imagenet2012`.
  """
  tar, labels = archives.locate("imagenet2012_real", source, published)
  examples, bad = _validation(tar, seen)
  archives.check_count(published[0], tar, len(examples) + len(bad))
  with open(labels, encoding="utf-8") as file:
    real = json.load(file)

  def fields(example):
    number = int(example.name.split("_")[-1].removesuffix(".JPEG"))
    return {
      "label": example.label,
      "original_label": example.label,
      "real_label": real[number - 1],
      "file_name": example.name,
    }

  label = tfds.features.ClassLabel(names=synsets())
  features = tfds.features.FeaturesDict(
    {
      **records.features(synsets()),
      "original_label": label,
      "real_label": tfds.features.Sequence(label),
    }
  )
  return dataclasses.replace(
    _data_set("imagenet2012_real", "1.0.0", {"validation": examples}, bad),
    features=features,
    fields=fields,
  )


def evaluation_set(
  name: str,
  source: str,
  archive: archives.Archive | None = None,
  seen: _Seen = lambda count: None,
) -> records.DataSet:
  """One of `TESTS`: split "test", labels among ImageNet's 1,000.

  Raises:
    ValueError: as `imagenet2012`.
  """
  version, official, homepage = TESTS[name]
  archive = archive or official
  (path,) = archives.locate(name, source, [archive])
  labels = {synset: i for i, synset in enumerate(synsets())}
  if name.startswith("imagenet_v2"):
    labels = {str(i): i for i in range(len(labels))}

  def placed(member):
    folder, _, file = member.name.rpartition("/")
    folder = folder.rpartition("/")[2]
    if folder not in labels:
      raise ValueError(f"{path} holds {member.name!r}, which is in no class.")
    # As in TFDS, where imagenet_a alone leaves the folder out.
    short = file if name == "imagenet_a" else f"{folder}/{file}"
    return dataclasses.replace(member, name=short, label=labels[folder])

  examples, bad = _sorted_out(
    ((placed(member), wrong) for member, wrong in archives.members(path)), seen
  )
  archives.check_count(archive, path, len(examples) + len(bad))
  return _data_set(name, version, {"test": examples}, bad, homepage)


def synsets() -> list[str]:
  """The 1,000 classes in the order of their numbers."""
  return tfds.core.tfds_path(_LABELS).read_text().split()


def _train(path, seen):
  """Good and bad images of a tar of one tar a class."""
  numbers = {f"{synset}.tar": i for i, synset in enumerate(synsets())}

  def found():
    for inner, _ in archives.members(path, suffixes=(".tar",)):
      if inner.name not in numbers:
        raise ValueError(f"{path} holds {inner.name!r}, which is no class.")
      for member, wrong in archives.members(path, inner):
        yield dataclasses.replace(member, label=numbers[inner.name]), wrong

  return _sorted_out(found(), seen)


def _validation(path, seen):
  """Good and bad images of a tar whose labels TFDS holds."""
  members = sorted(archives.members(path), key=lambda m: m[0].name)
  return _sorted_out(
    (
      (dataclasses.replace(member, label=label), wrong)
      for (member, wrong), label in zip(
        members, _validation_labels(), strict=False
      )
    ),
    seen,
  )


def _validation_labels() -> list[int]:
  """Of the validation images in the order of their names."""
  numbers = {synset: i for i, synset in enumerate(synsets())}
  text = tfds.core.tfds_path(_VALIDATION_LABELS).read_text()
  return [numbers[synset] for synset in text.split()]


def _sorted_out(members, seen) -> tuple[list[images.Example], list[images.Bad]]:
  examples, bad = [], []
  for member, wrong in members:
    seen(1)
    if wrong:
      bad.append(images.Bad(member.name, wrong))
    else:
      examples.append(member)
  return examples, bad


def _unpacked(root, splits, published, seen):
  """ImageNet as folders of images, which many keep."""
  present = {
    split: [n for n in names if os.path.isdir(os.path.join(root, n))]
    for split, names in _FOLDERS.items()
  }
  for split in splits:
    if len(present[split]) != 1:
      raise ValueError(
        f"expected one folder {' or '.join(_FOLDERS[split])} in {root}, got"
        f" {' and '.join(present[split]) or 'none'}."
      )
  folders = {split: present[split][0] for split in splits}
  paths = {split: os.path.join(root, name) for split, name in folders.items()}
  flat = [s for s in splits if s != "train" and not layout.folders(paths[s])]
  named, bad, notes = {}, [], []
  if classed := [folders[split] for split in splits if split not in flat]:
    found = tree.find(root, splits=classed, seen=seen)
    if list(found.class_names) != synsets():
      raise ValueError(
        f"{root} has {len(found.class_names):,} class folders, which are not"
        " ImageNet's 1,000 synsets; prepare it under a name of its own."
      )
    bad, notes = list(found.bad), list(found.notes)
    named = {s: found.splits[folders[s]] for s in splits if s not in flat}
  for split in flat:
    named[split] = _numbered(paths[split], bad, seen)
    notes.append(f"split {split}: labels by the numbers in the files' names.")
  named = {
    split: [
      dataclasses.replace(e, name=os.path.basename(e.name))
      for e in named[split]
    ]
    for split in splits
  }
  for split, examples in named.items():
    if len(examples) != published[split].count:
      notes.append(
        f"split {split} has {len(examples):,} images, ImageNet's has"
        f" {published[split].count:,}."
      )
  data_set = _data_set("imagenet2012", "5.1.0", named, bad)
  return dataclasses.replace(data_set, notes=notes)


def _numbered(path, bad, seen) -> list[images.Example]:
  """The validation images of a flat folder: the label follows the number."""
  names, labels, files = synsets(), _validation_labels(), []
  for name in sorted(os.listdir(path)):
    if layout.is_litter(name) or not name.lower().endswith(images.SUFFIXES):
      continue
    number = re.fullmatch(r"(?i)ILSVRC2012_val_(\d{8})\.jpe?g", name)
    if not number or not 1 <= int(number[1]) <= len(labels):
      raise ValueError(
        f"expected ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG"
        f" in {path}, got {name!r}."
      )
    synset = names[labels[int(number[1]) - 1]]
    files.append((synset, os.path.join(path, name)))
  return tree.examples(path, files, names, bad, seen)


def _data_set(name, version, splits, bad, homepage="https://image-net.org/"):
  return records.DataSet(
    name=name,
    version=version,
    features=records.features(synsets()),
    splits=splits,
    bad=bad,
    about={"homepage": homepage, "description": f"{name}, as published."},
  )


DATA_SETS: dict[str, Callable[..., records.DataSet]] = {
  "imagenet2012": imagenet2012,
  "imagenet2012_real": imagenet2012_real,
  **{name: functools.partial(evaluation_set, name) for name in TESTS},
}
