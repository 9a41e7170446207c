"""Describes a dataset to the user, before and after writing it."""

import collections
from collections.abc import Sequence
import os
import shlex

from vitkd_jax.data import datasets
from vitkd_jax.data.builders import census as censuses
from vitkd_jax.data.builders import records

# Most classes that are listed one by one.
_FEW = 10


def planned(dataset: records.Dataset) -> list[str]:
  """Lines on the classes, and on the images of each split.

  Args:
    dataset: to be written.
  """
  names = dataset.features["label"].names
  lines = [_classes(names)]
  for split, examples in dataset.splits.items():
    numbers = collections.Counter(e.label for e in examples)
    counts = [numbers[label] for label in range(len(names))]
    each = f"{min(counts):,} to {max(counts):,} per class"
    if len(names) <= _FEW:
      named = zip(names, counts, strict=True)
      each = ", ".join(f"{name} {count:,}" for name, count in named)
    lines.append(f"split {split}: {len(examples):,} images ({each})")
  return lines


def finished(
  info: datasets.Info, census: censuses.Census, data_dir: str | None
) -> list[str]:
  """Lines on the prepared dataset, and the command to run next.

  Args:
    info: describes the dataset.
    census: of its images.
    data_dir: folder of datasets, as the user named it; None for the default.
  """
  counts = [f"{split} {n:,}" for split, n in info.num_examples.items()]
  lines = [_classes(info.class_names), f"images: {', '.join(counts)}"]
  if info.image_size:
    height, width = info.image_size
    lines.append(f"image size: {height}x{width} pixels")
  else:
    lines.append("image size: varies; config.data.image_size crops to one")
  if census.turned:
    lines.append(
      f"note: {census.turned:,} images have an EXIF orientation; they are read"
      " as stored, as by timm and torchvision, or turned upright with"
      " config.data.exif=True"
    )
  if list(info.num_examples) == ["train"]:
    lines.append(
      "note: there is no split to evaluate on; for a tree, --val-share 0.1"
      " makes one, under another NAME"
    )
  return [*lines, f"next: {_next(info, data_dir)}"]


def _classes(names: Sequence[str]) -> str:
  few = ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")
  return f"{len(names):,} classes: {few}"


# Datasets with configs of their own; others have `folder`.
_CONFIGS = {
  "cifar10": "cifar",
  "cifar100": "cifar",
  "imagenet2012": "baseline_i1k",
}


def _next(info: datasets.Info, data_dir: str | None) -> str:
  """The next command: for a test set, an evaluation; else, a training."""
  splits = list(info.num_examples)
  if not any("train" in split.lower() for split in splits):
    words = ["evaluate", "--weights", "WEIGHTS", "--data", info.name]
    words += ["--split", splits[0]]
    words += ["--data-dir", data_dir] if data_dir else []
  else:
    config = _CONFIGS.get(info.name, "folder")
    words = ["train", "--config", config, "--workdir", f"runs/{info.name}"]
    if config.endswith("_i1k"):
      words += [f"--config.data.data_dir={data_dir}"] if data_dir else []
    else:
      words[2] += f":data={info.name}"
      words[2] += f",data_dir={data_dir}" if data_dir else ""
  words = [shlex.quote(os.fspath(word)) for word in words]
  return " ".join(["python -m", f"vitkd_jax.{words[0]}", *words[1:]])
