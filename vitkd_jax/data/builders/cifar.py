"""CIFAR-10 and CIFAR-100 from their published binary archives.

Splits, fields, labels, versions and the order of records are those of TFDS's
datasets of the same names; images are stored as PNG, without loss. The archives
for Python hold pickles, which run code when they are read, and are refused.
"""

from collections.abc import Callable, Mapping
import dataclasses
import os
import tarfile
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from vitkd_jax.data.builders import archives, images, records

_URL = "https://www.cs.toronto.edu/~kriz/"
_SHAPE = (3, 32, 32)  # as stored: a plane per channel
_PIXELS = 3 * 32 * 32

_CITATION = """\
@techreport{krizhevsky2009learning,
  title={Learning multiple layers of features from tiny images},
  author={Krizhevsky, Alex},
  institution={University of Toronto},
  year={2009}
}"""


@dataclasses.dataclass(frozen=True)
class Layout:
  """What is in one of the archives.

  Attributes:
    splits: split -> its files, in the order of the examples.
    labels: name of each label byte of a record -> file of its classes' names.
    pickled: the archive of the same images for Python.
  """

  splits: Mapping[str, tuple[str, ...]]
  labels: Mapping[str, str]
  pickled: str


CIFAR10 = archives.Archive(
  "cifar-10-binary.tar.gz",
  170_052_171,
  60_000,
  f"it is at {_URL}cifar-10-binary.tar.gz",
  "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR100 = archives.Archive(
  "cifar-100-binary.tar.gz",
  168_513_733,
  60_000,
  f"it is at {_URL}cifar-100-binary.tar.gz",
  "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)
_LAYOUTS = {
  "cifar10": Layout(
    {
      "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
      "test": ("test_batch.bin",),
    },
    {"label": "batches.meta.txt"},
    "cifar-10-python.tar.gz",
  ),
  "cifar100": Layout(
    {"train": ("train.bin",), "test": ("test.bin",)},
    {
      "coarse_label": "coarse_label_names.txt",
      "label": "fine_label_names.txt",
    },
    "cifar-100-python.tar.gz",
  ),
}


def cifar10(
  source: str, archive: archives.Archive = CIFAR10
) -> records.Dataset:
  """50,000 train and 10,000 test images of 32x32 in colour, of 10 classes.

  Args:
    source: folder of the archive.
    archive: the published file.

  Raises:
    ValueError: it is missing or is not the published file.
  """
  return _dataset("cifar10", source, archive)


def cifar100(
  source: str, archive: archives.Archive = CIFAR100
) -> records.Dataset:
  """As `cifar10`, of 100 classes; the field `coarse_label` has their 20 kinds.

  Args:
    source: see `cifar10`.
    archive: see `cifar10`.

  Raises:
    ValueError: see `cifar10`.
  """
  return _dataset("cifar100", source, archive)


DATASETS: dict[str, Callable[[str], records.Dataset]] = {
  "cifar10": cifar10,
  "cifar100": cifar100,
}


def _dataset(
  name: str, source: str, archive: archives.Archive
) -> records.Dataset:
  layout = _LAYOUTS[name]
  _refuse_pickles(name, source, archive, layout.pickled)
  (path,) = archives.locate(name, source, [archive])
  files = _files(path, layout)
  names = {
    label: files[file].decode("ascii").split()
    for label, file in layout.labels.items()
  }
  length = len(layout.labels) + _PIXELS
  parts = {
    split: np.concatenate(
      [np.frombuffer(files[f], np.uint8).reshape(-1, length) for f in each]
    )
    for split, each in layout.splits.items()
  }
  column = list(layout.labels).index("label")
  splits = {
    split: [
      images.Example(str(i), split, i, length, int(label))
      for i, label in enumerate(part[:, column])
    ]
    for split, part in parts.items()
  }

  def fields(example: images.Example) -> dict[str, Any]:
    record = parts[example.path][example.offset]
    return {
      "id": f"{example.path}_{example.offset:05d}",
      **{label: int(record[i]) for i, label in enumerate(layout.labels)},
    }

  def read(example: images.Example) -> bytes:
    record = parts[example.path][example.offset]
    planes = record[len(layout.labels) :].reshape(_SHAPE)
    # [3, H, W] in RGB -> [H, W, 3] in BGR, as OpenCV writes it.
    pixels = np.ascontiguousarray(planes[::-1].transpose(1, 2, 0))
    return cv2.imencode(".png", pixels)[1].tobytes()

  return records.Dataset(
    name=name,
    version="3.0.2",
    features=tfds.features.FeaturesDict(
      {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(32, 32, 3)),
        **{
          label: tfds.features.ClassLabel(names=names[label])
          for label in reversed(names)
        },
      }
    ),
    splits=splits,
    fields=fields,
    read=read,
    about={
      "description": f"{name}, as published: 32x32 images in colour of"
      f" {len(names['label'])} classes.",
      "homepage": f"{_URL}cifar.html",
      "citation": _CITATION,
    },
  )


def _refuse_pickles(
  name: str, source: str, archive: archives.Archive, pickled: str
) -> None:
  """Says which archive to use instead of that for Python."""
  there = set(os.listdir(source)) if os.path.isdir(source) else set()
  if archive.file not in there and pickled in there:
    raise ValueError(
      f"{name}: expected {archive.file} ({archive.size:,} bytes); {source} has"
      f" {pickled}, whose pickles would run code when they are read: use the"
      f" binary archive, {archive.where}."
    )


def _files(path: str, layout: Layout) -> dict[str, bytes]:
  """The archive's files that the layout names, by name without folder.

  Its hash was checked, so all are there and whole.
  """
  wanted = {f for each in layout.splits.values() for f in each}
  wanted |= set(layout.labels.values())
  found = {}
  with tarfile.open(path, "r:gz") as tar:
    for member in tar:
      base = os.path.basename(member.name)
      if base in wanted and (file := tar.extractfile(member)):
        found[base] = file.read()
  return found
