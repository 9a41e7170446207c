r"""Writes a data set as TFDS array_record files; needs no TensorFlow.

  python -m vitkd_jax.prepare my_birds --source ROOT --data-dir DIR
  python -m vitkd_jax.prepare imagenet2012 --source FOLDER_OF_TWO_TARS

`imagenet2012`, `imagenet2012_real`, `imagenet_v2`, `imagenet_a`, `imagenet_r`
and `fashion_mnist` are made from their published files, any other name from a
tree `ROOT/train/CLASS/IMAGE`, `ROOT/CLASS/IMAGE`, or from a TFDS data set of
that name in another format. The files are checked before anything is written.
Started again, the same command goes on where it was stopped. See docs/data.md.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import functools
import inspect
import os
import re
import sys

from etils import epath

from vitkd_jax import remote
from vitkd_jax.commandline import arguments, command
from vitkd_jax.data import datasets
from vitkd_jax.data.builders import (
  fashion,
  imagenet,
  images,
  overview,
  progress,
  records,
  shards,
  stamps,
  tfrecord,
  tree,
)

_PUBLISHED = imagenet.DATA_SETS | fashion.DATA_SETS


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares one data set; returns the exit status.

  0: it is there; 1: it failed midway; 2: refused, nothing was written.
  """
  if argv is None:
    argv = sys.argv[1:]
  args = _parser().parse_args(arguments.hyphenated(argv))
  try:
    folder = prepare(**vars(args))
  except command.RefusedError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except command.FailedError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("error: interrupted; the same command goes on", file=sys.stderr)
    return 130
  print(f"{args.name} is in {folder}")
  try:
    info = datasets.info(args.name, args.data_dir)
  except ValueError as error:
    print(f"note: the training cannot read it: {error}")
    return 0
  for line in overview.finished(info, shards.census(folder), args.data_dir):
    print(line)
  return 0


def _parser():
  parser = argparse.ArgumentParser(
    prog="python -m vitkd_jax.prepare",
    description="Writes a data set as TFDS array_record files.",
  )
  parser.add_argument(
    "name",
    metavar="NAME",
    help=f"{', '.join(_PUBLISHED)}, or a name of your own for a tree of images",
  )
  parser.add_argument(
    "--source",
    required=True,
    metavar="DIR",
    help="folder of the published files, or root of the tree",
  )
  parser.add_argument(
    "--data-dir",
    metavar="DIR",
    help="folder of data sets, gs:// too (default: TFDS's own, $TFDS_DATA_DIR"
    " or ~/tensorflow_datasets)",
  )
  parser.add_argument(
    "--splits", metavar="A,B", help="splits to make (default: all)"
  )
  parser.add_argument(
    "--val-share",
    type=float,
    default=0.0,
    metavar="SHARE",
    help="share of each class of a tree without splits that becomes the split"
    " validation",
  )
  parser.add_argument(
    "--trust-classes",
    action="store_true",
    help="take the class folders of a tree as they are, though one is called as"
    " a split is, holds splits, or is the only one",
  )
  parser.add_argument(
    "--skip-bad",
    action="store_true",
    help="leave out files that are no images, and list them in skipped.txt",
  )
  return parser


def prepare(
  name: str,
  *,
  source: str,
  data_dir: str | None = None,
  splits: str | None = None,
  val_share: float = 0.0,
  trust_classes: bool = False,
  skip_bad: bool = False,
) -> epath.Path:
  """Writes data set `name` below `data_dir`; its folder.

  Args:
    name: of the data set.
    source: folder of the published files, or root of a tree of images.
    data_dir: folder of data sets, TFDS's own by default.
    splits: names with commas, None for all.
    val_share: see `tree.find`.
    trust_classes: likewise.
    skip_bad: leave out files that are no images.

  Raises:
    command.RefusedError: before anything is written.
    command.FailedError: midway; what is finished stays.
  """
  data_dir = os.path.expanduser(data_dir or datasets.default_data_dir())
  source = os.path.expanduser(source)
  options = {
    "splits": splits and [split.strip() for split in splits.split(",")],
    "val_share": val_share,
    "trust_classes": trust_classes,
  }
  options = {key: value for key, value in options.items() if value}
  with command.refusing():
    make, source = _builder(name, source, options)
    stamp = stamps.stamp(
      source,
      deep=name not in _PUBLISHED or imagenet.unpacked(source) is not None,
      options={**options, "skip_bad": skip_bad},
      without=[data_dir, os.path.join(data_dir, name)],
    )
    with _failing(data_dir):
      if folder := shards.finished(data_dir, name, stamp):
        print(
          f"{name} is complete: the files of {source} have the names, sizes and"
          " times that it was made of",
          file=sys.stderr,
        )
        return folder
    plan = _plan(make, source, options, skip_bad)
  with _failing(data_dir), progress.show("images", plan.count) as advance:
    plan = dataclasses.replace(plan, stamp=stamp)
    return shards.write(plan, data_dir, advance)


def _builder(name, source, options):
  """What makes the data set or its plan of a folder, and that folder."""
  if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
    raise ValueError(
      f"{name!r} is no name of a data set; wanted letters, digits and"
      " underscores, as my_birds."
    )
  if remote.is_remote(source):
    raise ValueError(f"--source={source}: wanted a folder of this machine.")
  make = _PUBLISHED.get(name, functools.partial(tree.data_set, name))
  if folder := tfrecord.find(name, source):
    make = functools.partial(tfrecord.plan, name)
  for key in options:
    if key not in inspect.signature(make).parameters:
      raise ValueError(f"--{key.replace('_', '-')} is not for {name}.")
  return make, folder or source


def _plan(make, source, options, skip_bad) -> shards.Plan:
  print(f"looking at {source} ...", file=sys.stderr)
  with progress.show("files looked at") as seen:
    if "seen" in inspect.signature(make).parameters:
      options = {**options, "seen": seen}
    made = make(source, **options)
  if isinstance(made, shards.Plan):
    return made
  _tell(made, skip_bad)
  return records.plan(made)


def _tell(data_set, skip_bad):
  """Prints what a user should know; refuses bad files."""
  if data_set.bad and not skip_bad:
    total = len(data_set.bad) + sum(map(len, data_set.splits.values()))
    raise ValueError(images.refusal(data_set.bad, total))
  for note in data_set.notes:
    print(f"note: {note}", file=sys.stderr)
  if data_set.bad:
    print(
      f"note: {len(data_set.bad):,} files left out: see skipped.txt",
      file=sys.stderr,
    )
  for line in overview.planned(data_set):
    print(line, file=sys.stderr)


@contextlib.contextmanager
def _failing(data_dir) -> Iterator[None]:
  try:
    yield
  except ValueError as error:
    raise command.RefusedError(str(error)) from error
  except Exception as error:
    # What the clients of buckets raise has no base of its own.
    if not remote.is_remote(data_dir) and not isinstance(
      error, (OSError, RuntimeError)
    ):
      raise
    raise command.FailedError(
      f"{str(error).rstrip('.')}. The shards that are finished stay; start the"
      " same command again to go on."
    ) from error


if __name__ == "__main__":
  sys.exit(main())
