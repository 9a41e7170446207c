"""Lists the images of a folder tree with one folder per class.

Classes are numbered by their sorted names over all splits; an empty class keeps
its number. `layout` finds the splits.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
import dataclasses
import hashlib
import os

from vitkd_jax.data.builders import images, layout, records


@dataclasses.dataclass(frozen=True)
class Tree:
  """The images of a folder tree.

  Attributes:
    class_names: sorted.
    splits: split -> its images; names are relative to the split's folder.
    bad: files that are not images.
    notes: sentences for the user on anything unexpected.
  """

  class_names: tuple[str, ...]
  splits: dict[str, list[images.Example]]
  bad: list[images.Bad]
  notes: list[str]


def dataset(
  name: str,
  root: str,
  splits: Sequence[str] | None = None,
  val_share: float = 0.0,
  trust_classes: bool = False,
  seen: Callable[[int], None] = lambda count: None,
) -> records.Dataset:
  """The tree at `root` as a dataset.

  Args:
    name: of the dataset.
    root: see `find`.
    splits: see `find`.
    val_share: see `find`.
    trust_classes: see `find`.
    seen: see `find`.

  Raises:
    ValueError: see `find`.
    OSError: see `find`.
  """
  found = find(
    root,
    splits=splits,
    val_share=val_share,
    trust_classes=trust_classes,
    seen=seen,
  )
  counts = {split: len(e) for split, e in found.splits.items()}
  return records.Dataset(
    name=name,
    version="1.0.0",
    features=records.features(found.class_names),
    splits=found.splits,
    bad=found.bad,
    notes=found.notes,
    about={
      "description": f"Images of {len(found.class_names)} classes, from a tree"
      f" of folders: {counts}."
    },
  )


def find(
  root: str,
  *,
  splits: Sequence[str] | None = None,
  val_share: float = 0.0,
  trust_classes: bool = False,
  seen: Callable[[int], None] = lambda count: None,
) -> Tree:
  """Lists every image below `root`; reads the first bytes of each file.

  Args:
    root: a local folder.
    splits: folders of `root` to read as splits; None for those of
      `layout.SPLITS`.
    val_share: share of each class, in (0, 1), that becomes the split
      "validation" of a tree without splits, chosen by a hash of the file
      names; 0 for none.
    trust_classes: accept class folders with names of splits, with splits in
      them, or just one.
    seen: called with the number of files checked since the last call.

  Raises:
    ValueError: there is no such tree, or a split has no image.
    OSError: a folder cannot be read.
  """
  if not os.path.isdir(root):
    raise ValueError(
      f"--source: expected a folder, but there is no {root}."
      if not os.path.lexists(root)
      else f"--source: expected a folder, but {root} is none."
    )
  folders, notes = layout.split_folders(root, splits, trust_classes)
  if val_share and list(folders.values()) != [root]:
    raise ValueError(
      f"--val-share: expected a tree without splits, but {root} has"
      f" {', '.join(folders)}."
    )
  classes = {split: layout.folders(path) for split, path in folders.items()}
  names = tuple(sorted(set().union(*classes.values())))
  if not names:
    raise ValueError(
      f"expected {root}/CLASS/IMAGE or {root}/train/CLASS/IMAGE, but"
      f" {' and '.join(folders.values())} has no class folders."
    )
  layout.check_classes(root, folders, names, trust_classes)
  notes += layout.notes_on_order(names)
  found: dict[str, list[images.Example]] = {}
  bad: list[images.Bad] = []
  for split, path in folders.items():
    files, others = _files(path, classes[split])
    found[split] = examples(path, files, names, bad, seen)
    _check(split, path, found[split], names, others, notes)
  if val_share:
    found = _share(found["train"], val_share)
  return Tree(names, found, bad, notes)


def _files(
  path: str, classes: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
  """(class, path) of every image file, in order; names of other files."""
  files, others = [], _loose(path)
  for name in classes:
    seen: set[str] = set()
    for folder, below, inside in os.walk(
      os.path.join(path, name), onerror=layout.unreadable, followlinks=True
    ):
      if (real := os.path.realpath(folder)) in seen:
        raise OSError(
          f"the folder {folder} links to {real}, which was listed already;"
          " remove the link."
        )
      seen.add(real)
      below[:] = sorted(b for b in below if not layout.is_litter(b))
      for file in sorted(f for f in inside if not layout.is_litter(f)):
        whole = os.path.join(folder, file)
        if file.lower().endswith(images.SUFFIXES):
          files.append((name, whole))
        else:
          others.append(os.path.relpath(whole, path))
  return files, others


def _loose(path: str) -> list[str]:
  """Names of images outside the class folders."""
  return sorted(
    name
    for name in os.listdir(path)
    if name.lower().endswith(images.SUFFIXES) and not layout.is_litter(name)
  )


def examples(
  path: str,
  files: Sequence[tuple[str, str]],
  names: Sequence[str],
  bad: list[images.Bad],
  seen: Callable[[int], None] = lambda count: None,
) -> list[images.Example]:
  """Makes examples of files; adds those that are not images to `bad`.

  Args:
    path: of the split; the examples' names are relative to it.
    files: class and path of each.
    names: of the classes, in the order of their numbers.
    bad: gets the files that are not images.
    seen: called with the number of files checked since the last call.
  """
  numbers = {name: i for i, name in enumerate(names)}
  found = []
  for (name, whole), (size, wrong) in zip(
    files, _heads([whole for _, whole in files]), strict=True
  ):
    seen(1)
    relative = os.path.relpath(whole, path)
    if wrong:
      bad.append(images.Bad(os.path.join(path, relative), wrong))
    else:
      found.append(images.Example(relative, whole, 0, size, numbers[name]))
  return found


def _heads(paths: Sequence[str]) -> Iterable[tuple[int, str | None]]:
  """Size of each file, and what is wrong with it."""
  with futures.ThreadPoolExecutor(16) as pool:  # a network drive's latency
    # In blocks: a pool consumes its whole input at once.
    for start in range(0, len(paths), 4096):
      yield from pool.map(_look, paths[start : start + 4096])


def _look(path: str) -> tuple[int, str | None]:
  try:
    size, first = images.head(path)
  except OSError as error:
    return 0, f"cannot be read ({error.strerror})"
  return size, images.problem(path, size, first)


def _check(
  split: str,
  path: str,
  examples: Sequence[images.Example],
  names: Sequence[str],
  others: Sequence[str],
  notes: list[str],
) -> None:
  if not examples:
    raise ValueError(
      f"expected {path}/CLASS/IMAGE, but {path} has no usable image in class"
      " folders; add some, or leave it out with --splits."
    )
  counts = [0] * len(names)
  for example in examples:
    counts[example.label] += 1
  empty = [n for n, count in zip(names, counts, strict=True) if not count]
  if empty:
    notes.append(
      f"split {split}: {len(empty)} of {len(names)} classes have no images"
      f" ({layout.some(empty)}); they keep their numbers."
    )
  if others:
    notes.append(
      f"split {split}: skipped {len(others):,} files that are not images or not"
      f" in a class folder ({layout.some(others)})."
    )


def _share(
  examples: Sequence[images.Example], share: float
) -> dict[str, list[images.Example]]:
  if not 0 < share < 1:
    raise ValueError(f"--val-share: expected a number in (0, 1), got {share}.")
  classes: dict[int, list[images.Example]] = {}
  for example in examples:
    classes.setdefault(example.label, []).append(example)
  found: dict[str, list[images.Example]] = {"train": [], "validation": []}
  for members in classes.values():
    members.sort(key=lambda e: hashlib.md5(e.name.encode()).digest())
    count = round(share * len(members))
    found["validation"] += members[:count]
    found["train"] += members[count:]
  for split, members in found.items():
    if not members:
      raise ValueError(
        f"--val-share={share}: expected images in both splits, but {split} gets"
        " none."
      )
  return found
