r"""Writes a dataset as TFDS array_record or TFRecord files, without TensorFlow.

  python -m vitkd_jax.prepare my_birds --source ROOT --data-dir DIR
  python -m vitkd_jax.prepare imagenet2012 --source FOLDER_OF_TWO_TARS

`imagenet2012`, `imagenet2012_real`, `imagenet_v2`, `imagenet_a`, `imagenet_r`,
`cifar10`, `cifar100` and `fashion_mnist` are made from their published files;
any other name from a tree `ROOT/train/CLASS/IMAGE` or `ROOT/CLASS/IMAGE`, or
from a TFDS dataset of that name in the other format. Files are checked before
anything is written. The same command resumes an interrupted preparation. See
docs/data.md.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import inspect
import os
import re
import sys
from typing import Any

from etils import epath

from vitkd_jax import remote
from vitkd_jax.commandline import arguments, command, progress
from vitkd_jax.data import datasets
from vitkd_jax.data.builders import (
  cifar,
  fashion,
  imagenet,
  images,
  overview,
  records,
  shards,
  smaller,
  stamps,
  tfrecord,
  tree,
  unpacked,
)

_PUBLISHED = imagenet.DATASETS | cifar.DATASETS | fashion.DATASETS


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares one dataset.

  Args:
    argv: command line; None for that of the process.

  Returns:
    Exit status: 0 if the dataset is ready, 1 for a failure midway, 2 for a
    refusal before anything was written, 130 after Ctrl-C.
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
    print("error: interrupted; the same command resumes", file=sys.stderr)
    return 130
  print(f"{args.name} is in {folder}")
  try:
    info = datasets.info(args.name, args.data_dir)
  except ValueError as error:
    print(f"note: training cannot read it: {error}")
    return 0
  for line in overview.finished(info, shards.census(folder), args.data_dir):
    print(line)
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m vitkd_jax.prepare",
    description="Writes a dataset as TFDS array_record or TFRecord files.",
  )
  parser.add_argument(
    "name",
    metavar="NAME",
    help=f"{', '.join(_PUBLISHED)}, or your own name for a tree of images",
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
    help="folder of datasets, local or gs:// (default: TFDS's own,"
    " $TFDS_DATA_DIR or ~/tensorflow_datasets)",
  )
  parser.add_argument(
    "--to",
    choices=shards.FORMATS,
    default=shards.FORMATS[0],
    help="format of the files; tf.data reads tfrecord alone"
    " (default: %(default)s)",
  )
  parser.add_argument(
    "--splits", metavar="A,B", help="splits to make (default: all)"
  )
  parser.add_argument(
    "--val-share",
    type=float,
    default=0.0,
    metavar="SHARE",
    help="share of each class that becomes the split validation of a tree"
    " without splits",
  )
  parser.add_argument(
    "--trust-classes",
    action="store_true",
    help="accept class folders with names of splits, with splits in them, or"
    " just one",
  )
  parser.add_argument(
    "--short-side",
    type=int,
    metavar="N",
    help="encode larger images anew, with a short side of N pixels (default:"
    " keep the files' bytes)",
  )
  parser.add_argument(
    "--quality",
    type=int,
    metavar="Q",
    help="of the JPEGs that --short-side makes, 1 to 100"
    f" (default: {smaller.Smaller.quality})",
  )
  parser.add_argument(
    "--skip-bad",
    action="store_true",
    help="skip files that are not images, and list them in skipped.txt",
  )
  return parser


def prepare(
  name: str,
  *,
  source: str,
  data_dir: str | None = None,
  to: str = shards.FORMATS[0],
  splits: str | None = None,
  val_share: float = 0.0,
  trust_classes: bool = False,
  short_side: int | None = None,
  quality: int | None = None,
  skip_bad: bool = False,
) -> epath.Path:
  """Writes a dataset.

  Args:
    name: of the dataset.
    source: folder of the published files, or root of a tree of images.
    data_dir: folder of datasets, local or gs://; None for TFDS's own.
    to: format of the files, of `shards.FORMATS`.
    splits: comma-separated names; None for all.
    val_share: of a tree that becomes the split validation; see `tree.find`.
    trust_classes: accept unlikely class folders; see `tree.find`.
    short_side: of larger images, which are encoded anew; None keeps the
      files' bytes.
    quality: of those JPEGs; None for `smaller.Smaller`'s default.
    skip_bad: skip files that are not images.

  Returns:
    The folder of the dataset's version.

  Raises:
    command.RefusedError: before anything is written.
    command.FailedError: midway; finished shards are kept.
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
    make, source = _builder(name, source, to, options)
    encoder = _encoder(short_side, quality)
    stamp = stamps.stamp(
      source,
      deep=name not in _PUBLISHED or unpacked.find(source) is not None,
      options={
        **options,
        "skip_bad": skip_bad,
        **({} if to == shards.FORMATS[0] else {"to": to}),
        **(dataclasses.asdict(encoder) if encoder else {}),
      },
      without=[data_dir, os.path.join(data_dir, name)],
    )
    with _failing(data_dir):
      if folder := shards.finished(data_dir, name, stamp):
        print(
          f"{name} is complete: names, sizes and times of the files in {source}"
          " have not changed",
          file=sys.stderr,
        )
        return folder
    plan = _plan(make, source, to, options, skip_bad, encoder)
  with _failing(data_dir), progress.show("images", plan.count) as advance:
    plan = dataclasses.replace(plan, stamp=stamp)
    return shards.write(plan, data_dir, advance)


def _builder(
  name: str, source: str, to: str, options: Mapping[str, Any]
) -> tuple[Callable[..., records.Dataset | shards.Plan], str]:
  """A function from a folder to the dataset or its plan, and that folder."""
  if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
    raise ValueError(
      f"expected a dataset name of letters, digits and underscores, such as"
      f" my_birds, got {name!r}."
    )
  if remote.is_remote(source):
    raise ValueError(f"--source: expected a local folder, got {source}.")
  make: Callable[..., records.Dataset | shards.Plan] = _PUBLISHED.get(
    name, functools.partial(tree.dataset, name)
  )
  if folder := tfrecord.find(name, source, to):
    make = functools.partial(tfrecord.plan, name, to=to)
  for key in options:
    if key not in inspect.signature(make).parameters:
      raise ValueError(f"--{key.replace('_', '-')} does not apply to {name}.")
  return make, folder or source


def _encoder(
  short_side: int | None, quality: int | None
) -> smaller.Smaller | None:
  """What encodes large images anew; None to keep the files' bytes."""
  if short_side is None:
    if quality is not None:
      raise ValueError("expected --short-side beside --quality, got none.")
    return None
  if quality is None:
    return smaller.Smaller(short_side)
  return smaller.Smaller(short_side, quality)


def _plan(
  make: Callable[..., records.Dataset | shards.Plan],
  source: str,
  to: str,
  options: Mapping[str, Any],
  skip_bad: bool,
  encoder: smaller.Smaller | None,
) -> shards.Plan:
  print(f"checking {source} ...", file=sys.stderr)
  with progress.show("files checked") as seen:
    if "seen" in inspect.signature(make).parameters:
      options = {**options, "seen": seen}
    made = make(source, **options)
  if isinstance(made, shards.Plan):
    if encoder:
      name = made.folder.partition("/")[0]
      raise ValueError(
        f"--short-side does not apply to {name}, whose records are copied."
      )
    return made
  _tell(made, skip_bad)
  made = dataclasses.replace(made, smaller=encoder, format=to)
  return records.plan(made)


def _tell(dataset: records.Dataset, skip_bad: bool) -> None:
  """Prints what a user should know; refuses bad files."""
  if dataset.bad and not skip_bad:
    total = len(dataset.bad) + sum(map(len, dataset.splits.values()))
    raise ValueError(images.refusal(dataset.bad, total))
  for note in dataset.notes:
    print(f"note: {note}", file=sys.stderr)
  if dataset.bad:
    print(
      f"note: skipped {len(dataset.bad):,} files: see skipped.txt",
      file=sys.stderr,
    )
  for line in overview.planned(dataset):
    print(line, file=sys.stderr)


@contextlib.contextmanager
def _failing(data_dir: str) -> Iterator[None]:
  try:
    yield
  except ValueError as error:
    raise command.RefusedError(str(error)) from error
  except Exception as error:
    # Errors of the clients of buckets have no common base.
    if not remote.is_remote(data_dir) and not isinstance(
      error, (OSError, RuntimeError)
    ):
      raise
    raise command.FailedError(
      f"{str(error).rstrip('.')}. Finished shards are kept; the same command"
      " resumes."
    ) from error


if __name__ == "__main__":
  sys.exit(main())
