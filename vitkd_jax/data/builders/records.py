"""Images and labels as the array_record files of a TFDS data set.

The files are those that TFDS's own writer makes: records lie in the order of
the MD5 of (split, name), so that every shard mixes the classes, and the number
of shards follows from the size. The same source gives the same bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os

import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, hashing
from tensorflow_datasets.core.utils import shard_utils

from vitkd_jax.data.builders import images, shards


def _fields(example: images.Example) -> dict:
  return {"label": example.label, "file_name": example.name}


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A data set to write.

  Attributes:
    name: its folder, as `datasets.load` takes it.
    version: as "1.0.0".
    features: TFDS's features; "image" is one of them, and gets the common
      size of the images where there is one.
    splits: split -> its examples, in any order.
    fields: example -> the features but "image"; by default label, file_name.
    read: example -> encoded image.
    bad: files of the source that are no images; they are left out.
    notes: sentences on what a user may not expect of the source.
    about: further arguments of `tfds.core.DatasetInfo`.
  """

  name: str
  version: str
  features: tfds.features.FeaturesDict
  splits: dict[str, Sequence[images.Example]]
  fields: Callable[[images.Example], dict] = _fields
  read: Callable[[images.Example], bytes] = images.read
  bad: Sequence[images.Bad] = ()
  notes: Sequence[str] = ()
  about: dict = dataclasses.field(default_factory=dict)


def features(class_names: Sequence[str]) -> tfds.features.FeaturesDict:
  """image of any size, label, file_name: what TFDS's ImageNet has."""
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
  """`examples` in the order in which TFDS would write them."""
  hasher = hashing.Hasher(split)
  return sorted(
    examples,
    key=lambda e: (hasher.hash_key(e.name.replace("/", "_")), e.name),
  )


def plan(data_set: DataSet, num_shards: int | None = None) -> shards.Plan:
  """The files of `data_set`; reads no image.

  Args:
    data_set: what to write.
    num_shards: shards of each split; by default as many as TFDS makes, of 64
      MiB to 1 GiB.

  Raises:
    ValueError: a split without an image.
  """
  digest = hashlib.sha256(
    json.dumps(data_set.features.to_json(), sort_keys=True).encode()
  )
  made = {
    split: _shards(data_set, split, num_shards, digest)
    for split in data_set.splits
  }
  return shards.Plan(
    folder=f"{data_set.name}/{data_set.version}",
    fingerprint=digest.hexdigest(),
    shards=[shard for each in made.values() for shard in each],
    metadata=functools.partial(_metadata, data_set, made),
  )


def _shards(data_set, split, num_shards, digest) -> list[shards.Shard]:
  """Cuts a split into shards; `digest` takes in all that decides the bytes."""
  examples = order(split, data_set.splits[split])
  if not examples:
    raise ValueError(f"the split {split} of {data_set.name} has no image.")
  for e in examples:
    digest.update(f"{split}\t{e.name}\t{e.label}\t{e.size}\n".encode())
  count = shard_utils.ShardConfig(num_shards).get_number_shards(
    sum(e.size for e in examples), len(examples)
  )
  ends = shard_utils.get_shard_boundaries(len(examples), count)
  return [
    shards.Shard(
      f"{data_set.name}-{split}.array_record-{i:05d}-of-{count:05d}",
      count=end - start,
      size=sum(e.size for e in examples[start:end]),
      records=functools.partial(_serialized, data_set, examples[start:end]),
    )
    for i, (start, end) in enumerate(itertools.pairwise([0, *ends]))
  ]


def _serialized(data_set, examples, seen) -> Iterator[bytes]:
  serializer = example_serializer.ExampleSerializer(
    data_set.features.get_serialized_info()
  )
  encoded = _read(data_set, examples, seen)
  for example, data in zip(examples, encoded, strict=True):
    fields = data_set.features.encode_example(
      {"image": data, **data_set.fields(example)}
    )
    # Else the order of the fields would change from process to process.
    yield serializer.get_tf_example(fields).SerializeToString(
      deterministic=True
    )


def _read(data_set, examples, seen) -> list[bytes]:
  """The images of a shard, read in one sweep over their files."""
  sweep = sorted(
    range(len(examples)),
    key=lambda i: (examples[i].path, examples[i].offset),
  )
  read = {}
  with futures.ThreadPoolExecutor(8) as pool:
    found = pool.map(lambda i: data_set.read(examples[i]), sweep)
    for i, data in zip(sweep, found, strict=True):
      read[i] = data
      seen(data)
  return [read[i] for i in range(len(examples))]


def _sized(features, size):
  """`features` whose images have the common size, where they have one."""
  image = features["image"]
  if not size or None not in image.shape:
    return features
  shape = (*size, image.shape[-1])
  return tfds.features.FeaturesDict(
    {**features, "image": tfds.features.Image(shape=shape)}
  )


def _metadata(data_set, made, folder, census):
  identity = tfds.core.dataset_info.DatasetIdentity(
    name=data_set.name,
    version=tfds.core.Version(data_set.version),
    data_dir=folder,
    module_name="",
  )
  info = tfds.core.DatasetInfo(
    builder=identity,
    features=_sized(data_set.features, census.size),
    supervised_keys=("image", "label"),
    **data_set.about,
  )
  info.set_file_format("array_record")
  info.set_splits(
    tfds.core.splits.SplitDict(
      [
        tfds.core.splits.SplitInfo(
          name=split,
          shard_lengths=[shard.count for shard in each],
          num_bytes=sum(shard.size for shard in each),
          filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder,
            dataset_name=data_set.name,
            split=split,
            filetype_suffix="array_record",
          ),
        )
        for split, each in made.items()
      ]
    )
  )
  info.write_to_directory(folder)
  if data_set.bad:
    path = os.path.join(folder, "skipped.txt")
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
      file.writelines(f"{bad.name} {bad.reason}\n" for bad in data_set.bad)
