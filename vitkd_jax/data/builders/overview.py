"""What a data set holds, in lines for its user: before and after writing."""

import collections
import os
import shlex

from vitkd_jax.data import datasets
from vitkd_jax.data.builders import census as censuses
from vitkd_jax.data.builders import records

# As many classes are named, or counted, one by one.
_FEW = 10


def planned(data_set: records.DataSet) -> list[str]:
  """Its classes, and how many images each split has of them."""
  names = data_set.features["label"].names
  lines = [_classes(names)]
  for split, examples in data_set.splits.items():
    of = collections.Counter(e.label for e in examples)
    counts = [of[label] for label in range(len(names))]
    each = f"{min(counts):,} to {max(counts):,} a class"
    if len(names) <= _FEW:
      named = zip(names, counts, strict=True)
      each = ", ".join(f"{name} {count:,}" for name, count in named)
    lines.append(f"split {split}: {len(examples):,} images ({each})")
  return lines


def finished(
  info: datasets.Info, census: censuses.Census, data_dir: str | None
) -> list[str]:
  """What is there now, and the command that comes next.

  Args:
    info: of the data set.
    census: of its images.
    data_dir: where it lies, as the user named it.
  """
  counts = [f"{split} {n:,}" for split, n in info.num_examples.items()]
  lines = [_classes(info.class_names), f"images: {', '.join(counts)}"]
  if info.image_size:
    height, width = info.image_size
    lines.append(f"image size: {height}x{width} pixels, all")
  else:
    lines.append("image size: they differ; config.data.image_size crops them")
  if census.turned:
    lines.append(
      f"note: {census.turned:,} images have an EXIF orientation; they are read"
      " as stored, as timm and torchvision read them, and turned upright with"
      " config.data.exif=True"
    )
  if list(info.num_examples) == ["train"]:
    lines.append(
      "note: there is no split to evaluate on; of a tree, --val-share 0.1 makes"
      " one, under another NAME"
    )
  return [*lines, f"next: {_next(info, data_dir)}"]


def _classes(names):
  few = ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")
  return f"{len(names):,} classes: {few}"


def _next(info, data_dir):
  """The command that a user wants now: for a test set, to evaluate."""
  splits = list(info.num_examples)
  trained = [split for split in splits if "train" in split.lower()]
  if not trained:
    words = ["evaluate", "--weights", "WEIGHTS", "--data", info.name]
    words += ["--split", splits[0]]
    words += ["--data-dir", data_dir] if data_dir else []
  else:
    evaluated = [split for split in splits if split != trained[0]] or trained
    words = ["doctor", "--config", "configs/baseline_i1k.py:pair=s3-ti"]
    words += [f"--config.data.name={info.name}"]
    if trained[0] != "train":
      words += [f"--config.data.train_split={trained[0]}"]
    words += [f"--config.data.eval_split={evaluated[0]}"]
    words += [f"--config.data.data_dir={data_dir}"] if data_dir else []
  words = [shlex.quote(os.fspath(word)) for word in words]
  return " ".join(["python -m", f"vitkd_jax.{words[0]}", *words[1:]])
