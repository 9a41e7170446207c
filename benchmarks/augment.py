r"""The device's augmentation: CPU time against timm, TPU cycles of a step.

  python -m benchmarks.augment [--batch 32] [--rounds 9] \
    [--slice v5e:2x2] [--step]

Time is the process's CPU time per image. Contestants take turns; the table has
medians over rounds of the time and of its ratio to timm's in the same round.
timm (with torch and torchvision) is skipped if it is not installed.

With --slice (needs libtpu) the same is compiled for a TPU, with the compiler's
estimate of cycles; with --step so is the step of DeiT-Tiny <- DeiT III-Small
without augmentation, which takes minutes. The number of RandAugment's
iterations and the branch of each are random: the table has the mean, and each
class by itself.
"""

import argparse
from collections.abc import Sequence
import functools
import os
import re
import statistics
import time

import jax
import jax.numpy as jnp
from matplotlib import cbook
import numpy as np
from PIL import Image

from benchmarks import arguments, cases
from vitkd_jax.data import augment, randaugment
from vitkd_jax.estimate import hlo, topology

SIZE = 224
MIX = dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)
RAND = dict(randaugment_ops=2, randaugment_prob=0.5)
CONTESTANTS = {
  "flip": dict(flip=0.5),
  "flip, RandAugment": dict(flip=0.5, **RAND),
  "flip, jitter": dict(flip=0.5, color_jitter=0.3),
  "flip, erase, mix": dict(flip=0.5, erase=0.25, **MIX),
  "the recipe: all but jitter": dict(flip=0.5, **RAND, erase=0.25, **MIX),
}


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the tables.

  Args:
    argv: the command line; the process's by default.
  """
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--batch", type=arguments.count, default=32)
  parser.add_argument("--rounds", type=arguments.count, default=9)
  parser.add_argument("--slice", help="TPU slice to compile for")
  parser.add_argument(
    "--step", action="store_true", help="compile the step, too"
  )
  args = parser.parse_args(argv)
  with arguments.refusing(parser):
    planned = topology.devices(topology.find(args.slice)) if args.slice else []
  device = jax.devices()[0]
  print(f"{device.device_kind}, jax {jax.__version__}, {args.batch} images")
  functions = {
    name: _compile(options, args.batch, device)
    for name, options in CONTESTANTS.items()
  }
  _time_table(functions, args.batch, args.rounds)
  if planned:
    device = planned[0]
    print(f"{device.device_kind}, compiled only; thousand cycles per image")
    _cycles_table(args.batch, device)
    if args.step:
      config = cases.config("s3-ti", batch=args.batch, dtype="bfloat16")
      compiled = topology.compile_step(cases.build(config, [device]))
      cycles = hlo.cycles(compiled.as_text())[0] / args.batch / 1e3
      print(f"  {'the step without it':28} {cycles:7.1f}")


def _compile(options, size, device):
  where = jax.sharding.SingleDeviceSharding(device)
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=where)
  function = augment.make_augment(num_classes=1000, **options)
  key = jax.eval_shape(lambda: jax.random.key(0))
  lowered = jax.jit(function).lower(
    shape(key.shape, key.dtype),
    shape((size, SIZE, SIZE, 3), jnp.uint8),
    shape((size,), jnp.int32),
  )
  return lowered.compile()


def _cycles_table(size, device):
  for name, options in CONTESTANTS.items():
    text = _compile(options, size, device).as_text()
    cycles, parts = hlo.cycles(text)[0] / size, {}
    if "randaugment_ops" in options:
      parts = _loop(text)
      rounds, prob = options["randaugment_ops"], options["randaugment_prob"]
      # The count has one iteration of the costliest branch.
      once = parts["fetch and store"] + max(parts.values())
      mean = parts["fetch and store"] + statistics.mean(
        parts[compute] for compute in randaugment.OPERATIONS.values()
      )
      cycles += rounds * (prob * mean - once / size)
    print(f"  {name:28} {cycles / 1e3:7.1f}")
  for compute, value in parts.items():
    print(f"    {_name(compute):26} {value / 1e3:7.1f} per image that drew it")


def _name(compute):
  for name, value in vars(randaugment).items():
    if value is compute:
      return name.strip("_")
  return compute


def _loop(text):
  """Cycles of RandAugment's loop for one image, {class or part: cycles}."""
  number = len(randaugment.CLASSES)
  (found,) = (
    names
    for names in re.findall(r"branch_computations=\{([^}]*)\}", text)
    if names.count("%") == number
  )
  branches = re.findall(r"%([\w.-]+)", found)
  # The computation that holds the conditional.
  (body,) = re.findall(
    r"^%?([\w.-]+) \(.*\{$", text[: text.index(found)], re.MULTILINE
  )[-1:]
  parts = {
    compute: hlo.cycles(text, branch)[0]
    for compute, branch in zip(randaugment.CLASSES, branches, strict=True)
  }
  return parts | {
    "fetch and store": hlo.cycles(text, body)[0] - max(parts.values())
  }


def _time_table(functions, size, rounds):
  images = photographs(size)
  stack = np.stack([np.asarray(x) for x in images])
  label = np.arange(size, dtype=np.int32)
  contestants = {
    name: functools.partial(_ours, function, stack, label)
    for name, function in functions.items()
  }
  peer = _timm()
  if peer:
    contestants["timm's RandAugment"] = lambda _: [peer(x) for x in images]
  times = {name: [] for name in contestants}
  for i in range(rounds + 1):
    for name, contestant in contestants.items():
      began = time.process_time()
      contestant(i)
      if i:
        times[name].append((time.process_time() - began) / size * 1e3)
  print(f"CPU time, load {os.getloadavg()[0]:.1f}, {rounds} rounds")
  reference = times.get("timm's RandAugment")
  for name, values in times.items():
    line = f"  {name:28} {statistics.median(values):6.2f} ms per image"
    if reference:
      ratios = [a / b for a, b in zip(values, reference, strict=True)]
      line += f" {statistics.median(ratios):6.2f} x timm's RandAugment"
    print(line)


def _ours(function, image, label, i):
  jax.block_until_ready(function(jax.random.key(i), image, label))


def photographs(number):
  """Crops of `SIZE` of a photograph that comes with matplotlib."""
  with cbook.get_sample_data("grace_hopper.jpg") as file:
    image = Image.open(file).convert("RGB")
  rng = np.random.default_rng(0)
  corners = rng.integers(0, np.array(image.size) - SIZE, (number, 2))
  return [image.crop((x, y, x + SIZE, y + SIZE)) for x, y in corners.tolist()]


def _timm():
  try:
    from timm.data import auto_augment
  except (ImportError, RuntimeError):
    return None
  # At level 10 timm keeps 0 bits, which newer versions of Pillow refuse.
  real = auto_augment.posterize
  auto_augment.NAME_TO_OP["PosterizeIncreasing"] = (
    lambda image, bits, **options: real(image, max(bits, 1), **options)
  )
  mean = {"img_mean": (124, 116, 104), "interpolation": Image.BICUBIC}
  return auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", mean)


if __name__ == "__main__":
  main()
