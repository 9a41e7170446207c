"""Writes a data set as TFDS array_record files: needs TensorFlow.

  python -m vitkd_jax.prepare fashion_mnist --source DIR

`DIR` holds Fashion-MNIST's .gz files as published. Reading what was prepared
needs no TensorFlow: `vitkd_jax.data.datasets.load`.
"""

import argparse
import importlib.util
import os
import sys
import tempfile

_NAMES = ("fashion_mini", "fashion_mnist")


def main(argv=None):
  """Prepares one data set; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m vitkd_jax.prepare",
    description="Writes a data set as TFDS array_record files.",
    epilog="What TFDS itself prepares is read too, downloaded with: tfds build"
    " fashion_mnist --file_format=array_record",
  )
  parser.add_argument("name", choices=_NAMES, metavar="|".join(_NAMES))
  parser.add_argument(
    "--source",
    required=True,
    metavar="DIR",
    help="folder with Fashion-MNIST's .gz files, as published",
  )
  parser.add_argument(
    "--data-dir",
    metavar="DIR",
    help="folder of data sets (default: TFDS's own, $TFDS_DATA_DIR or"
    " ~/tensorflow_datasets)",
  )
  args = parser.parse_args(argv)
  try:
    where = prepare(args.name, source=args.source, data_dir=args.data_dir)
  except (ValueError, OSError) as error:
    print(f"prepare: {error}", file=sys.stderr)
    return 2
  print(f"{args.name} is in {where}")
  return 0


def prepare(name, *, source, data_dir=None):
  """Writes data set `name` below `data_dir`; returns its folder.

  What is there already stays as it is.

  Args:
    name: "fashion_mini" or "fashion_mnist".
    source: folder with Fashion-MNIST's published .gz files.
    data_dir: folder of data sets, TFDS's own by default;
      `data_dir/name/version` is made.

  Raises:
    ValueError: TensorFlow is not installed, or a file is missing or not the
      published one.
  """
  if importlib.util.find_spec("tensorflow") is None:
    raise ValueError(
      "preparing a data set needs TensorFlow, which is not installed here"
      " (training and reading do without it): run pip install tensorflow-cpu,"
      " here or in an environment of its own with tensorflow-datasets and"
      " array-record, and then this command again."
    )
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  import tensorflow_datasets as tfds

  from vitkd_jax.data import fashion_builder

  tfds.disable_progress_bar()

  builder_class = fashion_builder.BUILDERS[name]
  for part in builder_class.PARTS:  # before TFDS makes a folder
    fashion_builder.read(part, source)
  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)
  builder = builder_class(source=source, data_dir=data_dir)
  with tempfile.TemporaryDirectory() as unused:  # else one is left behind
    builder.download_and_prepare(download_dir=unused)
  return builder.data_dir


if __name__ == "__main__":
  sys.exit(main())
