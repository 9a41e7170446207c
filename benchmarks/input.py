r"""Decoding and cropping against timm and TensorFlow, and through Grain.

  python -m benchmarks.make_jpegs ROOT
  python -m benchmarks.input ROOT [--number 200] [--rounds 9]
  python -m benchmarks.input --real TAR [--crops 3] [--rounds 9]

Each contestant turns the bytes of the same JPEGs into a random resized crop of
224 px, uint8, and into the evaluation's crop. They take turns, over all files
at a time. Speed is images per second of the process's CPU time, so that other
work on the machine matters less; the table has medians over rounds of the speed
and of its ratio to timm's in the same round. Accuracy is against Pillow's
bicubic on the same crop of the same JPEG. timm (with torch and torchvision) and
TensorFlow are skipped if they are not installed.

Finally, the whole input: the dataset is prepared as array_record and read
through Grain by two worker processes, per CPU time of all processes against the
same without Grain; and in wall time.

--real TAR uses the JPEGs of an archive instead, such as ImageNet's own, takes
several training crops of each, ours and Pillow's of the same box, and prints
their difference by downsampling factor.
"""

import argparse
from collections.abc import Sequence
import contextlib
import io
import itertools
import math
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image

from benchmarks import archive, arguments
from vitkd_jax import prepare
from vitkd_jax.data import crop, datasets, decode, loader

SIZE, RESIZE = 224, 256
RANDOM = crop.RandomCrop(SIZE)
CENTRE = crop.CentreCrop(SIZE, RESIZE)
_BATCH = 64


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the tables.

  Args:
    argv: the command line; the process's by default.
  """
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add, count = parser.add_argument, arguments.count
  add("root", type=pathlib.Path, nargs="?", help="folder made by make_jpegs")
  add("--real", metavar="TAR", help="archive of real JPEGs, instead of ROOT")
  add("--crops", type=count, default=3, help="crops of each real JPEG")
  add("--number", type=count, default=200, help="number of JPEGs")
  add("--rounds", type=count, default=9, help="number of rounds")
  args = parser.parse_args(argv)
  if (args.root is None) == (args.real is None):
    parser.error("expected either ROOT or --real TAR")
  if args.real:
    with arguments.refusing(parser):
      files = archive.jpegs(args.real)
    _real_table(files, args.crops, args.rounds)
    return
  paths = sorted(args.root.glob("train/*/*.jpg"), key=lambda path: path.name)
  if not paths:
    parser.error(
      f"no {args.root}/train/*/*.jpg; benchmarks.make_jpegs makes some"
    )
  files = [path.read_bytes() for path in paths[: args.number]]
  size = sum(map(len, files)) / len(files) / 1000
  print(f"{len(files)} JPEGs of {size:.0f} KB; {_load()}")
  boxes = [_box(i, data) for i, data in enumerate(files)]
  contestants = {"ours": _ours(), **_timm(), **_tensorflow(boxes)}
  _train_table(contestants, files, boxes, args.rounds)
  _eval_table(files, args.rounds)
  _through_grain(args.root, args.rounds)


def _load():
  return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def _box(seed, data):
  file = decode.File(data)
  rng = np.random.default_rng(seed)
  return crop.random_box(
    rng, file.height, file.width, RANDOM.area, RANDOM.ratio
  )


# Contestants: functions of a file's number and bytes.


def _ours():
  return lambda i, data: RANDOM(data, np.random.default_rng(i))


def _pillow(data, box):
  top, left, height, width = box
  image = Image.open(io.BytesIO(data)).convert("RGB")
  image = image.crop((left, top, left + width, top + height))
  return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _timm_transform(is_training):
  from timm.data import create_transform

  more = dict(scale=RANDOM.area, ratio=RANDOM.ratio, hflip=0.0)
  more |= dict(color_jitter=None, auto_augment=None)
  return create_transform(
    SIZE,
    is_training=is_training,
    use_prefetcher=True,  # uint8, not normalised
    interpolation="bicubic",
    crop_pct=SIZE / RESIZE,
    **(more if is_training else {}),
  )


def _timm():
  try:
    import torch

    transform = _timm_transform(is_training=True)
  except ImportError:
    print("timm, torch or torchvision is not installed: skipped")
    return {}
  torch.set_num_threads(1)
  return {
    "timm (Pillow)": lambda i, data: np.asarray(
      transform(Image.open(io.BytesIO(data)).convert("RGB"))
    )
  }


def _tensorflow(boxes):
  try:
    import tensorflow as tf
  except ImportError:
    print("tensorflow is not installed: skipped")
    return {}
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)

  def make(method, antialias, dct):
    @tf.function(
      input_signature=[
        tf.TensorSpec([], tf.string),
        tf.TensorSpec([4], tf.int32),
      ]
    )
    def function(data, box):
      image = tf.image.decode_and_crop_jpeg(
        data, box, channels=3, dct_method=dct
      )
      image = tf.image.resize(image, [SIZE, SIZE], method, antialias=antialias)
      return tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8)

    tensors = [tf.constant(box, tf.int32) for box in boxes]
    return lambda i, data: function(data, tensors[i]).numpy()

  return {
    "TensorFlow, antialiased bicubic": make(
      "bicubic", True, "INTEGER_ACCURATE"
    ),
    "TensorFlow, bilinear, fast DCT": make("bilinear", False, "INTEGER_FAST"),
  }


# Tables.


def _rates(contestants, cases, rounds):
  """Contestant -> images per second of CPU time, of each round.

  A case is a file's number, or a crop's seed, and the file's bytes.
  """
  rates = {name: [] for name in contestants}
  for i in range(rounds + 1):
    for name, function in contestants.items():
      began = time.process_time()
      for case in cases:
        function(*case)
      if i:  # the first round warms up
        rates[name].append(len(cases) / (time.process_time() - began))
  return rates


def _train_table(contestants, files, boxes, rounds):
  rates = _rates(contestants, list(enumerate(files)), rounds)
  print(
    f"\n{'training crop':34}{'img/s':>7}{'x timm':>8}{'|d|':>7}{'worst':>7}"
  )
  for name, function in contestants.items():
    row = f"{name:34}{statistics.median(rates[name]):7.0f}"
    row += _against(rates, name)
    if not name.startswith("timm"):  # whose crops are its own
      differences = [
        _difference(function(i, data), _pillow(data, box))
        for i, (data, box) in enumerate(zip(files, boxes, strict=True))
      ]
      row += f"{np.mean(differences):7.2f}{np.max(differences):7.2f}"
    print(row)


def _eval_table(files, rounds):
  contestants = {"ours": lambda i, data: CENTRE(data)}
  with contextlib.suppress(ImportError):
    transform = _timm_transform(is_training=False)
    contestants["timm (Pillow)"] = lambda i, data: np.asarray(
      transform(Image.open(io.BytesIO(data)).convert("RGB"))
    )
  rates = _rates(contestants, list(enumerate(files)), rounds)
  print(f"\n{'evaluation crop':34}{'img/s':>7}{'x timm':>8}{'|d|':>7}")
  for name in contestants:
    row = f"{name:34}{statistics.median(rates[name]):7.0f}"
    row += _against(rates, name)
    if name == "ours" and len(contestants) > 1:
      peer = contestants["timm (Pillow)"]
      differences = [
        _difference(CENTRE(data), peer(i, data).transpose(1, 2, 0))
        for i, data in enumerate(files)
      ]
      row += f"{np.mean(differences):7.2f}"
    print(row)


def _against(rates, name):
  peer = rates.get("timm (Pillow)")
  if not peer:
    return f"{'':8}"
  ratios = [a / b for a, b in zip(rates[name], peer, strict=True)]
  return f"{statistics.median(ratios):8.2f}"


def _difference(one, other):
  return np.abs(np.float64(one) - other).mean()


# Real files.
_EDGES = (0, 0.8, 1, 1.2, 1.5, 1.8, 2.5, math.inf)  # downsampling factors


def _real_table(files, crops, rounds):
  size = sum(map(len, files)) / len(files) / 1000
  print(f"{len(files)} JPEGs of {size:.0f} KB, {crops} crops each; {_load()}")
  seeds = [(i, k) for i in range(len(files)) for k in range(crops)]
  cases = [(seed, files[seed[0]]) for seed in seeds]
  boxes = {seed: _box(seed, data) for seed, data in cases}
  ours = _ours()

  def pillow(seed, data):
    return _pillow(data, boxes[seed])

  rates = _rates({"ours": ours, "Pillow": pillow}, cases, rounds)
  for name, values in rates.items():
    ratios = [a / b for a, b in zip(values, rates["Pillow"], strict=True)]
    print(
      f"{name:8}{statistics.median(values):6.0f} images/s of a core,"
      f" {statistics.median(ratios):.2f} x Pillow's"
    )
  far = [_difference(ours(*case), pillow(*case)) for case in cases]
  shrunk = [math.sqrt(h * w) / SIZE for _, _, h, w in boxes.values()]
  place = np.digitize(shrunk, _EDGES)
  print(f"\n{'factor':>14}{'crops':>7}{'|d|':>7}{'99 %':>7}{'worst':>7}")
  groups = [
    (f"{low:g} to {high:g}", np.array(far)[place == i + 1])
    for i, (low, high) in enumerate(itertools.pairwise(_EDGES))
  ]
  for name, group in [*groups, ("all", np.array(far))]:
    if len(group):
      values = group.mean(), np.percentile(group, 99), group.max()
      print(f"{name:>14}{len(group):7}" + "".join(f"{x:7.2f}" for x in values))


# Through Grain.


def _through_grain(root, rounds, ready=20, batches=32):
  with tempfile.TemporaryDirectory() as folder:
    with contextlib.redirect_stderr(io.StringIO()):
      prepare.prepare("jpegs", source=str(root), data_dir=folder)
    source = datasets.load("jpegs", "train", data_dir=folder)
    iterator = loader.train_batches(
      source, batch_size=_BATCH, seed=0, num_workers=2, crop=RANDOM
    )
    one, two, wall = [], [], []
    with contextlib.closing(iterator):
      for i in range(rounds):
        one.append(_read(source, i))
        for _ in range(ready):  # batches that were prefetched
          next(iterator)
        began, cpu = time.perf_counter(), _cpu_seconds()
        for _ in range(batches):
          next(iterator)
        number = batches * _BATCH
        two.append(2 * number / (_cpu_seconds() - cpu))
        wall.append(number / (time.perf_counter() - began))
  print(f"\n{'read, decode, crop':34}{'img/s':>7}{'x 2 cores':>11}")
  for name, rates in (("one core", one), ("two cores through Grain", two)):
    ratios = [a / (2 * b) for a, b in zip(rates, one, strict=True)]
    print(
      f"{name:34}{statistics.median(rates):7.0f}"
      f"{statistics.median(ratios):11.2f}"
    )
  print(f"{'Grain, 2 workers, wall time':34}{statistics.median(wall):7.0f}")
  print(_load())


def _read(source, number, examples=300):
  """Images per second of CPU time without Grain."""
  indices = np.random.default_rng(number).permutation(len(source))[:examples]
  began = time.process_time()
  for i in map(int, indices):
    rng = np.random.default_rng((0, 0, i, 0))
    source.read(i, lambda data: RANDOM(data, rng))  # noqa: B023
  return len(indices) / (time.process_time() - began)


def _cpu_seconds():
  """CPU time of this process and of its workers."""
  ticks = 0
  for child in multiprocessing.active_children():
    fields = pathlib.Path("/proc", str(child.pid), "stat").read_text()
    user, system = fields.rpartition(")")[2].split()[11:13]
    ticks += int(user) + int(system)
  return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
  main()
