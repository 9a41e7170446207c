"""What `prepare --short-side` saves of a core, and what it changes.

  python -m benchmarks.smaller IMAGES.tar [--short-side 320] [--quality 95]

Images/s of a core that decodes and crops (CPU time; original and smaller in
turns), bytes, the difference of training crops of the same part and of
evaluation crops, and of the logits of a random DeiT-Ti.
"""

import argparse
from collections.abc import Sequence
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import archive, arguments
from vitkd_jax.data import crop
from vitkd_jax.data.builders.smaller import Smaller
from vitkd_jax.models import variants, vit

VARIANT = "deit_tiny_patch16_224"


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the comparison.

  Args:
    argv: the command line; the process's by default.
  """
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("tar", help="of JPEGs")
  parser.add_argument("--short-side", type=arguments.count, default=320)
  parser.add_argument("--quality", type=arguments.count, default=95)
  parser.add_argument("--rounds", type=arguments.count, default=5)
  args = parser.parse_args(argv)
  with arguments.refusing(parser):
    smaller = Smaller(args.short_side, args.quality)
    original = archive.jpegs(args.tar)
  began = time.process_time()
  sets = {"original": original, "smaller": [smaller(x) for x in original]}
  spent = time.process_time() - began
  print(f"{len(original)} images, encoded at {len(original) / spent:.0f}/s")
  crops = {
    "training": crop.RandomCrop(224),
    "evaluation": crop.CentreCrop(224, 256),
  }
  for kind, make in crops.items():
    rates = {name: [] for name in sets}
    for _ in range(args.rounds):
      for name, images in sets.items():
        began = time.process_time()
        made = [make(x, np.random.default_rng(i)) for i, x in enumerate(images)]
        rates[name].append(len(made) / (time.process_time() - began))
    ratio = statistics.median(
      b / a for a, b in zip(rates["original"], rates["smaller"], strict=True)
    )
    rate = {name: statistics.median(found) for name, found in rates.items()}
    print(
      f"{kind} crops: {rate['original']:.0f} and {rate['smaller']:.0f} images "
      f"per second of a core, {ratio:.2f} x"
    )
  for name, images in sets.items():
    print(f"{name}: {statistics.mean(map(len, images)) / 1000:.1f} KB")
  for kind, make in crops.items():
    pair = [
      np.stack(
        [make(x, np.random.default_rng(i)) for i, x in enumerate(images)]
      )
      for images in sets.values()
    ]
    difference = np.abs(pair[0].astype(int) - pair[1]).mean((1, 2, 3))
    print(
      f"{kind} crops differ by {difference.mean():.2f} of 255 on average, the "
      f"worst by {difference.max():.2f}"
    )
  _logits(*pair)


def _logits(one, other):
  """Prints how the logits of two sets of evaluation crops differ."""
  known = variants.get(VARIANT)
  model = vit.Model(1000, variant=VARIANT, head_zeroinit=False)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
  apply = jax.jit(lambda x: model.apply(params, x)[0])
  mean, std = np.float32(known.mean), np.float32(known.std)
  found = [
    np.concatenate(
      [
        np.asarray(apply((x[i : i + 1] / np.float32(255) - mean) / std))
        for i in range(len(x))
      ]
    )
    for x in (one, other)
  ]
  difference = np.abs(found[0] - found[1])
  same = (found[0].argmax(1) == found[1].argmax(1)).mean()
  print(
    f"logits, whose standard deviation is {found[0].std():.3f}: differ by "
    f"{difference.mean():.4f}, at most {difference.max():.4f}; the same "
    f"arg max in {same:.1%}"
  )


if __name__ == "__main__":
  main()
