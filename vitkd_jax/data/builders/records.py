"""Images and labels as the files of a TFDS dataset.

The files are those of TFDS's own writer: records are in the order of the MD5 of
(split, name), so every shard mixes the classes, and the size determines the
number of shards. The same source gives the same bytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, hashing
from tensorflow_datasets.core.utils import shard_utils

from vitkd_jax.data.builders import census as censuses
from vitkd_jax.data.builders import images, shards
from vitkd_jax.data.builders.smaller import Smaller


def _fields(example: images.Example) -> dict[str, Any]:
  return {"label": example.label, "file_name": example.name}


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A dataset to write.

  Attributes:
    name: of its folder, for `datasets.load`.
    version: such as "1.0.0".
    features: TFDS's features, with "image", which gets the common size of the
      images if there is one.
    splits: split -> its examples, in any order.
    fields: example -> features other than "image"; label and file_name by
      default.
    read: example -> encoded image.
    smaller: what encodes large images anew; None keeps the source's bytes.
    format: of the files, one of `shards.FORMATS`.
    bad: files of the source that are not images; they are skipped.
    notes: sentences for the user on anything unexpected in the source.
    about: other arguments of `tfds.core.DatasetInfo`.
  """

  name: str
  version: str
  features: tfds.features.FeaturesDict
  splits: Mapping[str, Sequence[images.Example]]
  fields: Callable[[images.Example], dict[str, Any]] = _fields
  read: Callable[[images.Example], bytes] = images.read
  smaller: Smaller | None = None
  format: str = shards.FORMATS[0]
  bad: Sequence[images.Bad] = ()
  notes: Sequence[str] = ()
  about: dict[str, Any] = dataclasses.field(default_factory=dict)


def features(class_names: Sequence[str]) -> tfds.features.FeaturesDict:
  """Features of TFDS's ImageNet: image of any size, label, file_name.

  Args:
    class_names: in the order of the labels.
  """
  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(),
      "label": tfds.features.ClassLabel(names=list(class_names)),
      "file_name": tfds.features.Text(),
    }
  )


def order(
  split: str, examples: Sequence[images.Example]
) -> list[images.Example]:
  """Sorts examples as TFDS's writer does.

  Args:
    split: that the examples are from.
    examples: in any order.
  """
  hasher = hashing.Hasher(split)
  return sorted(
    examples,
    key=lambda e: (hasher.hash_key(e.name.replace("/", "_")), e.name),
  )


def plan(dataset: Dataset, num_shards: int | None = None) -> shards.Plan:
  """Plans the files of a dataset; reads no image.

  Args:
    dataset: to write.
    num_shards: of each split; None for TFDS's number, with shards of 64 MiB to
      1 GiB.

  Raises:
    ValueError: a split has no images.
  """
  digest = hashlib.sha256(
    json.dumps(dataset.features.to_json(), sort_keys=True).encode()
  )
  if dataset.smaller:
    digest.update(f"{dataset.smaller}\n".encode())
  if dataset.format != shards.FORMATS[0]:
    digest.update(f"{dataset.format}\n".encode())
  made = {
    split: _shards(dataset, split, num_shards, digest)
    for split in dataset.splits
  }
  return shards.Plan(
    folder=f"{dataset.name}/{dataset.version}",
    fingerprint=digest.hexdigest(),
    shards=[shard for each in made.values() for shard in each],
    metadata=functools.partial(_metadata, dataset, made),
  )


def _shards(
  dataset: Dataset, split: str, num_shards: int | None, digest: Any
) -> list[shards.Shard]:
  """Divides a split into shards; updates the hash of all that decides bytes."""
  examples = order(split, dataset.splits[split])
  if not examples:
    raise ValueError(
      f"expected images in split {split} of {dataset.name}, got none."
    )
  for e in examples:
    digest.update(f"{split}\t{e.name}\t{e.label}\t{e.size}\n".encode())
  count = shard_utils.ShardConfig(num_shards).get_number_shards(
    sum(e.size for e in examples), len(examples)
  )
  ends = shard_utils.get_shard_boundaries(len(examples), count)
  return [
    shards.Shard(
      f"{dataset.name}-{split}.{dataset.format}-{i:05d}-of-{count:05d}",
      count=end - start,
      size=sum(e.size for e in examples[start:end]),
      records=functools.partial(_serialized, dataset, examples[start:end]),
    )
    for i, (start, end) in enumerate(itertools.pairwise([0, *ends]))
  ]


def _serialized(
  dataset: Dataset, examples: Sequence[images.Example], seen: shards.Seen
) -> Iterator[bytes]:
  serializer = example_serializer.ExampleSerializer(
    dataset.features.get_serialized_info()
  )
  encoded = _read(dataset, examples, seen)
  for example, data in zip(examples, encoded, strict=True):
    fields = dataset.features.encode_example(
      {"image": data, **dataset.fields(example)}
    )
    # Otherwise the order of the fields would differ between processes.
    yield serializer.get_tf_example(fields).SerializeToString(
      deterministic=True
    )


def _read(
  dataset: Dataset, examples: Sequence[images.Example], seen: shards.Seen
) -> list[bytes]:
  """The images of a shard, read in one sweep over their files."""
  sweep = sorted(
    range(len(examples)),
    key=lambda i: (examples[i].path, examples[i].offset),
  )

  def encoded(i: int) -> bytes:
    data = dataset.read(examples[i])
    return dataset.smaller(data) if dataset.smaller else data

  read = {}
  with futures.ThreadPoolExecutor(8) as pool:
    found = pool.map(encoded, sweep)
    for i, data in zip(sweep, found, strict=True):
      read[i] = data
      seen(data)
  return [read[i] for i in range(len(examples))]


def _sized(
  features: tfds.features.FeaturesDict, size: tuple[int, int] | None
) -> tfds.features.FeaturesDict:
  """`features` with the common size of the images, if there is one."""
  image = features["image"]
  if not size or None not in image.shape:
    return features
  shape = (*size, image.shape[-1])
  return tfds.features.FeaturesDict(
    {**features, "image": tfds.features.Image(shape=shape)}
  )


def _metadata(
  dataset: Dataset,
  made: Mapping[str, Sequence[shards.Shard]],
  folder: str,
  census: censuses.Census,
) -> None:
  identity = tfds.core.dataset_info.DatasetIdentity(
    name=dataset.name,
    version=tfds.core.Version(dataset.version),
    data_dir=folder,
    module_name="",
  )
  info = tfds.core.DatasetInfo(
    builder=identity,
    features=_sized(dataset.features, census.size),
    supervised_keys=("image", "label"),
    **dataset.about,
  )
  info.set_file_format(dataset.format)
  info.set_splits(
    tfds.core.splits.SplitDict(
      [
        tfds.core.splits.SplitInfo(
          name=split,
          shard_lengths=[shard.count for shard in each],
          num_bytes=sum(shard.size for shard in each),
          filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder,
            dataset_name=dataset.name,
            split=split,
            filetype_suffix=dataset.format,
          ),
        )
        for split, each in made.items()
      ]
    )
  )
  info.write_to_directory(folder)
  if dataset.bad:
    path = os.path.join(folder, "skipped.txt")
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
      file.writelines(f"{bad.name} {bad.reason}\n" for bad in dataset.bad)
