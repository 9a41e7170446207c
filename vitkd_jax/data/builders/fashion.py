"""Fashion-MNIST from its four official IDX files, and the part that ships.

Fashion-MNIST: Xiao, Rasul and Vollgraf, arXiv:1708.07747, MIT licence.
"""

from collections.abc import Callable, Iterable, Mapping
import gzip
import hashlib

import cv2
from etils import epath
import numpy as np
import tensorflow_datasets as tfds

from vitkd_jax.data.builders import images, records

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

# Of the published files, which have never changed.
SHA256 = {
  "train-images-idx3-ubyte.gz": (
    "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
  ),
  "train-labels-idx1-ubyte.gz": (
    "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"
  ),
  "t10k-images-idx3-ubyte.gz": (
    "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"
  ),
  "t10k-labels-idx1-ubyte.gz": (
    "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"
  ),
}

CLASS_NAMES = (
  "T-shirt/top",
  "Trouser",
  "Pullover",
  "Dress",
  "Coat",
  "Sandal",
  "Shirt",
  "Sneaker",
  "Bag",
  "Ankle boot",
)

# TFDS writes it beside the records, as the licence demands.
_LICENSE = """\
The MIT License (MIT) Copyright © 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of
this software and associated documentation files (the “Software”), to deal in
the Software without restriction, including without limitation the rights to
use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of
the Software, and to permit persons to whom the Software is furnished to do so,
subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED “AS IS”, WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS
FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER
IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

_CITATION = """\
@article{xiao2017fashion,
  title={Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
         Learning Algorithms},
  author={Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal={arXiv:1708.07747},
  year={2017}
}"""


def files(part: str) -> tuple[str, str]:
  """Names of the image file and the label file.

  Args:
    part: "train" or "t10k".
  """
  return f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"


def read(part: str, source: str) -> tuple[np.ndarray, np.ndarray]:
  """Reads images and labels of one official pair of files.

  Args:
    part: "train" (60,000 images) or "t10k" (10,000).
    source: folder of the published .gz files.

  Returns:
    uint8 [n, 28, 28, 1] and int64 [n].

  Raises:
    ValueError: a file is missing, or its SHA-256 is not the published one.
  """
  pixels, labels = (_checked(epath.Path(source) / f) for f in files(part))
  # IDX: a magic number of 4 bytes, 4 bytes per dimension, then the data.
  return (
    np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28, 1),
    np.frombuffer(labels, np.uint8, offset=8).astype(np.int64),
  )


def _checked(path: epath.Path) -> bytes:
  if not path.is_file():
    raise ValueError(
      f"expected Fashion-MNIST's published .gz files in --source, but there is"
      f" no file {path.name} in {path.parent}; get it from {URL}{path.name}."
    )
  data = path.read_bytes()
  digest = hashlib.sha256(data).hexdigest()
  if digest != SHA256[path.name]:
    raise ValueError(
      f"{path}: expected the published file with SHA-256"
      f" {SHA256[path.name][:12]}..., got {len(data):,} bytes with"
      f" {digest[:12]}...; get it again from {URL}{path.name}."
    )
  return gzip.decompress(data)


def split_indices(
  labels: np.ndarray, *, test_per_class: int = 200, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Indices of a train and a test part, the same in every version of NumPy.

  Draws `test_per_class` test examples of each class without replacement; both
  parts keep the order of the file.

  Args:
    labels: int [n].
    test_per_class: number of test examples of each class.
    seed: of NumPy's frozen legacy generator; `default_rng` may change its
      stream between versions of NumPy.

  Returns:
    Two sorted int arrays that partition 0, ..., n - 1.
  """
  rng = np.random.RandomState(seed)
  test = np.concatenate(
    [
      rng.permutation(np.flatnonzero(labels == label))[:test_per_class]
      for label in np.unique(labels)
    ]
  )
  train = np.setdiff1d(np.arange(len(labels)), test)
  return train, np.sort(test)


def fashion_mnist(source: str) -> records.Dataset:
  """The official 60,000 train and 10,000 test images.

  Args:
    source: folder of the published .gz files.

  Raises:
    ValueError: a file is missing, or its SHA-256 is not the published one.
  """
  train, test = read("train", source), read("t10k", source)
  return _dataset(
    "fashion_mnist",
    "Fashion-MNIST: 60,000 train and 10,000 test images of articles of"
    " clothing, 28x28, grey, 10 classes.",
    {
      "train": (*train, range(len(train[1]))),
      "test": (*test, range(len(test[1]))),
    },
  )


def fashion_mini(source: str) -> records.Dataset:
  """The official 10,000 test images as 8,000 train and 2,000 test images.

  Both splits are balanced, with 800 and 200 images of each class. A teacher
  trained on Fashion-MNIST's 60,000 train images has seen none of them.

  Args:
    source: folder of the published .gz files.

  Raises:
    ValueError: a file is missing, or its SHA-256 is not the published one.
  """
  pixels, labels = read("t10k", source)
  train, test = split_indices(labels)
  return _dataset(
    "fashion_mini",
    "Fashion-MNIST's official 10,000 test images, split by a fixed seed into"
    " 8,000 train and 2,000 test images, balanced over the 10 classes.",
    {"train": (pixels, labels, train), "test": (pixels, labels, test)},
  )


DATASETS: dict[str, Callable[[str], records.Dataset]] = {
  "fashion_mini": fashion_mini,
  "fashion_mnist": fashion_mnist,
}


def _dataset(
  name: str,
  description: str,
  parts: Mapping[str, tuple[np.ndarray, np.ndarray, Iterable[int]]],
) -> records.Dataset:
  """A dataset of `parts`: split -> pixels, labels and the indices to use."""
  encoded: dict[tuple[str, int], bytes] = {}
  splits: dict[str, list[images.Example]] = {}
  for split, (pixels, labels, indices) in parts.items():
    splits[split] = []
    for i in map(int, indices):
      data = cv2.imencode(".png", pixels[i])[1].tobytes()
      encoded[split, i] = data
      splits[split].append(
        images.Example(str(i), split, 0, len(data), int(labels[i]))
      )
  return records.Dataset(
    name=name,
    version="1.0.0",
    features=tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(28, 28, 1)),
        "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
        # Index of the example in the official file.
        "index": tfds.features.Scalar(np.int64),
      }
    ),
    splits=splits,
    fields=lambda e: {"label": e.label, "index": int(e.name)},
    read=lambda e: encoded[e.path, int(e.name)],
    about={
      "description": description,
      "homepage": "https://github.com/zalandoresearch/fashion-mnist",
      "license": _LICENSE,
      "citation": _CITATION,
    },
  )
