"""ImageNet-1k from the unpacked archives: folders of images."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import re

from vitkd_jax.data.builders import archives, images, layout, synsets, tree

# Where unpacked images are, relative to --source; the first three are Kaggle's.
_ROOTS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC", "")
_FOLDERS = {"train": ("train",), "validation": ("val", "validation")}


def find(source: str) -> str | None:
  """Folder of `train` and `val` of unpacked ImageNet archives, if any.

  Args:
    source: the folder itself, or one of Kaggle's folders above it.
  """
  for root in _ROOTS:
    path = os.path.join(source, root) if root else source
    for name in sum(_FOLDERS.values(), ()):
      if os.path.isdir(os.path.join(path, name)):
        return path
  return None


def listing(
  root: str,
  splits: Sequence[str],
  published: Mapping[str, archives.Archive],
  seen: Callable[[int], None],
) -> tuple[dict[str, list[images.Example]], list[images.Bad], list[str]]:
  """Lists the images of unpacked archives.

  Args:
    root: result of `find`.
    splits: to list, of "train" and "validation".
    published: archive of each split, whose counts are compared.
    seen: called with the number of files checked since the last call.

  Returns:
    The examples of each split, files that are not images, and notes for the
    user.

  Raises:
    ValueError: a folder is missing, or is not ImageNet's.
    OSError: a folder cannot be read.
  """
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
  named: dict[str, list[images.Example]] = {}
  bad: list[images.Bad] = []
  notes: list[str] = []
  if classed := [folders[split] for split in splits if split not in flat]:
    found = tree.find(root, splits=classed, seen=seen)
    if list(found.class_names) != synsets.names():
      raise ValueError(
        f"expected ImageNet's 1,000 synsets as class folders in {root}, got"
        f" {len(found.class_names):,} others; prepare it under another name."
      )
    bad, notes = list(found.bad), list(found.notes)
    named = {s: found.splits[folders[s]] for s in splits if s not in flat}
  for split in flat:
    named[split] = _numbered(paths[split], bad, seen)
    notes.append(f"split {split}: labels follow the numbers in file names.")
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
  return named, bad, notes


def _numbered(
  path: str, bad: list[images.Bad], seen: Callable[[int], None]
) -> list[images.Example]:
  """The validation images of a flat folder, labelled by their numbers."""
  names, labels = synsets.names(), synsets.validation_labels()
  files: list[tuple[str, str]] = []
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
