"""Which folders of a source are splits, and which are classes.

Two layouts are read: `root/SPLIT/CLASS/...`, if there is a folder `root/train`
in any case, and `root/CLASS/...`, which is one split `train`. A folder that
stands above the classes makes a wrong data set without an error, so whatever
looks like one is refused, and the folder that is probably meant is named.
"""

import collections
from collections.abc import Mapping, Sequence
import os
import re
import unicodedata

# Folders beside `train` that are splits; others are left alone.
SPLITS = ("train", "val", "valid", "validation", "test")

# What operating systems, file servers and archivers leave, in lower case;
# what begins with a dot is theirs, too.
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
# What a split's name may have beside such a word: seg_train, test_images.
_OTHER_WORDS = frozenset(
  {
    *("set", "sets", "data", "dataset", "split", "part", "seg", "new"),
    *("image", "images", "img", "imgs", "picture", "pictures", "photos"),
  }
)
_TRUST = "--trust-classes takes the folders as classes"


def is_litter(name: str) -> bool:
  """Whether a file or folder is some program's own, and never an image."""
  return name.startswith(".") or name.lower() in _LITTER


def folders(path: str) -> list[str]:
  """Names of the folders in a folder, sorted, less litter.

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


def unreadable(error: OSError) -> None:
  """Raises an OSError that names the folder."""
  raise OSError(
    f"the folder {error.filename} cannot be read ({error.strerror})."
  ) from error


def split_folders(
  root: str, wanted: Sequence[str] | None = None, trusted: bool = False
) -> tuple[dict[str, str], list[str]]:
  """Folder of each split, and sentences on what a user may not expect.

  Args:
    root: of the tree.
    wanted: names of splits; None for those of `SPLITS` that are there.
    trusted: `train` is a class where it holds no folder.

  Raises:
    ValueError: a split is missing, or two folders could be it.
  """
  present = folders(root)
  if wanted is None:
    lower = {name.lower() for name in present}
    if "train" not in lower:
      return {"train": root}, []
    if trusted and not folders(os.path.join(root, _folder(present, "train"))):
      return {"train": root}, []
    wanted = [split for split in SPLITS if split in lower]
  for split in wanted:
    if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII):
      raise ValueError(
        f"--splits: expected names of letters, digits and underscores, got"
        f" {split!r}; rename the folder."
      )
    if _folder(present, split) is None:
      raise ValueError(
        f"--splits: {root} has no folder {split!r}, but {present[:10]}."
      )
  taken = {split: _folder(present, split) for split in wanted}
  notes = []
  if left := [name for name in present if name not in taken.values()]:
    notes.append(
      f"beside {', '.join(taken.values())}, {root} holds {some(left)}: left"
      " alone (--splits A,B names other folders as splits)."
    )
  found = {}
  for split, name in taken.items():
    path = os.path.join(root, name)
    # Some archives hold train/train, with nothing beside it.
    inside = folders(path)
    if len(inside) == 1 and inside[0].lower() == name.lower():
      path = os.path.join(path, inside[0])
      notes.append(f"split {split}: its classes are the folders of {path}.")
    found[split] = path
  return found, notes


def _folder(present, split):
  """The one of `present` that is called `split`, in any case, or None."""
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
  """Refuses folders that stand above the classes, and names that break.

  Args:
    root: of the tree.
    found: folder of each split.
    names: of the class folders, over all splits.
    trusted: only names that cannot be stored are refused.

  Raises:
    ValueError: a class is called as a split is, there is only one, a class
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
        "call them train, val and test, or name them: --splits"
        f" {','.join(first)}"
      )
    raise ValueError(
      f"expected class folders in {where}, got folders called as splits are:"
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
          f"{below} holds splits ({some(splits)}), whose images would all"
          f" become the class {name}; wanted {root}/SPLIT/CLASS/IMAGE"
          f" ({_TRUST})."
        )


def _check_names(names):
  for name in names:
    try:
      name.encode()
    except UnicodeEncodeError as error:
      raise ValueError(
        f"the class folder {os.fsencode(name)!r} has a name that is not UTF-8;"
        " rename it."
      ) from error
    # TFDS keeps one name a line.
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name):
      raise ValueError(
        f"the class folder {name!r} has a control character in its name;"
        " rename it."
      )
  bare = collections.Counter(name.strip() for name in names)  # so TFDS reads
  for name in names:
    if not name.strip() or bare[name.strip()] > 1:
      raise ValueError(
        f"the class folder {name!r} has a name that is another one's, or empty,"
        " without the spaces around it; rename it."
      )


def _called_as_splits(names):
  """Those of `names` that are splits' rather than classes'."""
  words = {name: _words(name) for name in names}
  called = [
    name
    for name, each in words.items()
    if each & _SPLIT_WORDS and each <= _SPLIT_WORDS | _OTHER_WORDS
  ]
  # birds_train and birds_test, with no class beside them.
  every = len(names) > 1 and all(each & _SPLIT_WORDS for each in words.values())
  return list(names) if every else called


def _words(name):
  spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
  return set(re.findall(r"[^\W\d_]+", spaced))


def _meant(path, direct):
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
  """A sentence where other tools may number the sorted `names` otherwise."""
  natural = sorted(names, key=_natural)
  if list(names) == natural:
    return []
  at = next(
    i
    for i, pair in enumerate(zip(names, natural, strict=True))
    if pair[0] != pair[1]
  )
  return [
    f"classes are numbered in the order of their names as text, as by"
    f" torchvision's ImageFolder: {names[at]!r} is class {at}, before"
    f" {natural[at]!r} ({list(names).index(natural[at])}); a teacher or labels"
    " from a tool that sorts them as numbers would have other classes."
  ]


def _natural(name):
  """A key that puts "2" before "10"; texts and numbers take turns."""
  parts = re.split(r"([0-9]+)", name)
  return [int(p) if i % 2 else p for i, p in enumerate(parts)], name


def some(names: Sequence[str]) -> str:
  """The first ten of `names`, which may be many, and hold anything."""
  few = ", ".join(map(_shown, names[:10]))
  return few + (", ..." if len(names) > 10 else "")


def _shown(name):
  return name if name.isprintable() else ascii(name)
