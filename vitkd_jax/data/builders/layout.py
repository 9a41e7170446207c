"""Which folders of a source are splits, and which are classes.

Two layouts are read: `root/SPLIT/CLASS/...`, if there is a folder `root/train`
in upper or lower case, and `root/CLASS/...`, which is one split `train`. Taking
a folder above the classes for a class would silently make a wrong dataset, so
whatever looks like one is refused, and the message names the folder that is
probably meant.
"""

import collections
from collections.abc import Mapping, Sequence
import os
import re
from typing import NoReturn
import unicodedata

# Names of folders that are splits; other folders beside `train` are ignored.
SPLITS = ("train", "val", "valid", "validation", "test")

# Files and folders of operating systems, file servers and archivers, in lower
# case; names that begin with a dot count, too.
_LITTER = frozenset(
  {
    "__macosx",
    "icon\r",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
  }
)

_SPLIT_WORDS = frozenset(
  {
    *SPLITS,
    *("training", "trainset", "trainval", "trn", "validate", "valset"),
    *("dev", "eval", "evaluation", "testing", "testset", "tst", "holdout"),
  }
)
# Other words in the names of splits: seg_train, test_images.
_OTHER_WORDS = frozenset(
  {
    *("set", "sets", "data", "dataset", "split", "part", "seg", "new"),
    *("image", "images", "img", "imgs", "picture", "pictures", "photos"),
  }
)
_TRUST = "--trust-classes accepts the folders as classes"


def is_litter(name: str) -> bool:
  """Whether a file or folder belongs to some program and is never an image.

  Args:
    name: of the file or folder.
  """
  return name.startswith(".") or name.lower() in _LITTER


def folders(path: str) -> list[str]:
  """Sorted names of the folders in a folder, without litter.

  Args:
    path: of the folder.

  Raises:
    OSError: it cannot be read.
  """
  try:
    with os.scandir(path) as entries:
      return sorted(
        e.name for e in entries if e.is_dir() and not is_litter(e.name)
      )
  except OSError as error:
    unreadable(error)


def unreadable(error: OSError) -> NoReturn:
  """Raises an OSError that names the folder.

  Args:
    error: raised while listing a folder.
  """
  raise OSError(
    f"cannot read the folder {error.filename} ({error.strerror})."
  ) from error


def split_folders(
  root: str, wanted: Sequence[str] | None = None, trusted: bool = False
) -> tuple[dict[str, str], list[str]]:
  """Finds the folder of each split.

  Args:
    root: of the tree.
    wanted: names of splits; None for those of `SPLITS` that exist.
    trusted: a folder `train` without folders in it is a class.

  Returns:
    {split: folder}, and notes for the user on anything unexpected.

  Raises:
    ValueError: a split is missing, or two folders could be it.
    OSError: a folder cannot be read.
  """
  present = folders(root)
  if wanted is None:
    lower = {name.lower() for name in present}
    if "train" not in lower:
      return {"train": root}, []
    train = _folder(present, "train") or ""
    if trusted and not folders(os.path.join(root, train)):
      return {"train": root}, []
    wanted = [split for split in SPLITS if split in lower]
  taken: dict[str, str] = {}
  for split in wanted:
    if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII):
      raise ValueError(
        f"--splits: expected names of letters, digits and underscores, got"
        f" {split!r}; rename the folder."
      )
    if (name := _folder(present, split)) is None:
      raise ValueError(
        f"--splits: expected a folder {split!r} in {root}, got {some(present)}."
      )
    taken[split] = name
  notes = []
  if left := [name for name in present if name not in taken.values()]:
    notes.append(
      f"ignored {some(left)} beside {', '.join(taken.values())} in {root}"
      " (--splits A,B names other folders as splits)."
    )
  found = {}
  for split, name in taken.items():
    path = os.path.join(root, name)
    # Some archives hold train/train, with nothing beside it.
    inside = folders(path)
    if len(inside) == 1 and inside[0].lower() == name.lower():
      path = os.path.join(path, inside[0])
      notes.append(f"split {split}: its class folders are in {path}.")
    found[split] = path
  return found, notes


def _folder(present: Sequence[str], split: str) -> str | None:
  """The one of `present` that is `split` in upper or lower case, or None."""
  near = [name for name in present if name.lower() == split.lower()]
  if len(near) > 1:
    raise ValueError(
      f"the folders {' and '.join(near)} are the same split; rename one."
    )
  return near[0] if near else None


def check_classes(
  root: str,
  found: Mapping[str, str],
  names: Sequence[str],
  trusted: bool = False,
) -> None:
  """Refuses folders above the classes, and names that cannot be stored.

  Args:
    root: of the tree.
    found: folder of each split.
    names: of the class folders, over all splits.
    trusted: refuse only names that cannot be stored.

  Raises:
    ValueError: a class has a split's name, there is only one class, a class
      holds splits, or a name cannot be stored.
  """
  _check_names(names)
  if trusted:
    return
  direct = list(found.values()) == [root]
  where = " and ".join(found.values())
  if called := _called_as_splits(names):
    remedy = "move the class folders up"
    if direct and len(called) < len(names):
      remedy = "move these out, or rename them"
    elif direct:
      first = sorted(called, key=lambda name: "train" not in name.lower())
      remedy = (
        f"rename them to train, val and test, or use --splits {','.join(first)}"
      )
    raise ValueError(
      f"expected class folders in {where}, got names of splits:"
      f" {some(called)}; {remedy} ({_TRUST})."
    )
  if len(names) == 1:
    path = os.path.join(next(iter(found.values())), names[0])
    raise ValueError(
      f"expected at least two class folders in {where}, got"
      f" {names[0]!r} alone{_meant(path, direct)} ({_TRUST})."
    )
  for path in found.values():
    for name in folders(path):
      below = os.path.join(path, name)
      if splits := [f for f in folders(below) if f.lower() in SPLITS]:
        raise ValueError(
          f"expected {root}/SPLIT/CLASS/IMAGE, but {below} holds splits"
          f" ({some(splits)}), whose images would all become the class {name}"
          f" ({_TRUST})."
        )


def _check_names(names: Sequence[str]) -> None:
  for name in names:
    try:
      name.encode()
    except UnicodeEncodeError as error:
      raise ValueError(
        f"expected UTF-8 names of class folders, got {os.fsencode(name)!r};"
        " rename it."
      ) from error
    # TFDS stores one name per line.
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name):
      raise ValueError(
        f"expected names of class folders without control characters, got"
        f" {name!r}; rename it."
      )
  bare = collections.Counter(name.strip() for name in names)  # as TFDS reads it
  for name in names:
    if not name.strip() or bare[name.strip()] > 1:
      raise ValueError(
        f"expected distinct names of class folders, but {name!r} without its"
        " outer spaces is another's name or empty; rename it."
      )


def _called_as_splits(names: Sequence[str]) -> list[str]:
  """Those of `names` that look like splits rather than classes."""
  words = {name: _words(name) for name in names}
  called = [
    name
    for name, each in words.items()
    if each & _SPLIT_WORDS and each <= _SPLIT_WORDS | _OTHER_WORDS
  ]
  # birds_train and birds_test, without any class.
  every = len(names) > 1 and all(each & _SPLIT_WORDS for each in words.values())
  return list(names) if every else called


def _words(name: str) -> set[str]:
  spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
  return set(re.findall(r"[^\W\d_]+", spaced))


def _meant(path: str, direct: bool) -> str:
  """Half a sentence on the folder below `path` that may hold the classes."""
  for _ in range(5):
    inside = folders(path)
    if len(inside) > 1 or _called_as_splits(inside):
      held = f"which holds {some(inside)}"
      if direct:
        return f"; did you mean --source {_shown(path)}, {held}"
      return f"; move up the folders of {_shown(path)}, {held}"
    if not inside:
      break
    path = os.path.join(path, inside[0])
  return ""


def notes_on_order(names: Sequence[str]) -> list[str]:
  """Notes if other tools may number the classes differently.

  Args:
    names: of the classes, sorted as text.

  Returns:
    At most one sentence.
  """
  natural = sorted(names, key=_natural)
  if list(names) == natural:
    return []
  at = next(
    i
    for i, pair in enumerate(zip(names, natural, strict=True))
    if pair[0] != pair[1]
  )
  return [
    f"classes are sorted as text, as by torchvision's ImageFolder:"
    f" {names[at]!r} is class {at}, before"
    f" {natural[at]!r} ({list(names).index(natural[at])}); a teacher or labels"
    " from a tool that sorts them as numbers would not match."
  ]


def _natural(name: str) -> tuple[list[str | int], str]:
  """A sort key that puts "2" before "10"; text and numbers alternate."""
  parts = re.split(r"([0-9]+)", name)
  return [int(p) if i % 2 else p for i, p in enumerate(parts)], name


def some(names: Sequence[str]) -> str:
  """The first ten names, printable, for a message.

  Args:
    names: any number of names with any characters.
  """
  few = ", ".join(map(_shown, names[:10]))
  return few + (", ..." if len(names) > 10 else "")


def _shown(name: str) -> str:
  return name if name.isprintable() else ascii(name)
