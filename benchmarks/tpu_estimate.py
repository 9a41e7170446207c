r"""The TPU compiler's estimate of one training step, without a TPU.

  python -m benchmarks.tpu_estimate                        # all three pairs
  python -m benchmarks.tpu_estimate --case s3-ti --slice v4:2x2x1 --augment
  python -m benchmarks.tpu_estimate --case b3-s --top 30   # costliest fusions

The real step is compiled for a slice without the slice (libtpu's wheel). Every
figure is the compiler's *estimate* of a chip's cycles, without collectives,
copies beside the core, or waiting for the host. It ranks versions of a step and
is no measurement. The floor is the FLOPs by formula at the chip's advertised
peak.
"""

import argparse
import collections
import re
import sys
import time

from benchmarks import arguments, cases, lines
from vitkd_jax.estimate import flops, hlo, topology

PARTS = (
  "teacher forward",
  "student forward",
  "student backward",
  "head",
  "optimiser",
  "augmentation",
  "other",
)


def main(argv=None):
  """Prints one table a slice."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--case", action="append", choices=tuple(cases.PAIRS))
  parser.add_argument(
    "--slice", action="append", help="TPU slice (default: v5e:2x4)"
  )
  parser.add_argument(
    "--images", type=arguments.count, default=64, help="images per chip"
  )
  parser.add_argument("--accumulate", type=arguments.count, default=1)
  parser.add_argument("--augment", action="store_true")
  parser.add_argument(
    "--option",
    action="append",
    default=[],
    type=arguments.option,
    metavar="NAME=VALUE",
    help="compiler option",
  )
  parser.add_argument(
    "--top", type=int, default=0, help="number of costliest fusions to print"
  )
  args = parser.parse_args(argv)
  for name in args.slice or ("v5e:2x4",):
    with arguments.refusing(parser):
      piece = topology.find(name)
      devices = topology.devices(piece)
    print(
      f"\n{piece}, {args.images} images per chip, {args.accumulate} "
      "gradient-accumulation step(s), bfloat16: million cycles"
    )
    print(" ".join(f"{x:>16}" for x in ("", "total", "floor", "ratio", *PARTS)))
    for case in args.case or cases.PAIRS:
      config = cases.config(
        case,
        batch=args.images * piece.chips,
        dtype="bfloat16",
        augmented=args.augment,
        accumulate=args.accumulate,
      )
      with arguments.refusing(parser):
        parts = cases.build(config, devices)
      _estimate(case, piece, parts, args)


def _estimate(case, piece, parts, args):
  start = time.monotonic()
  text = topology.compile_step(parts, dict(args.option)).as_text()
  seconds = time.monotonic() - start
  spent, _ = hlo.cycles_by_instruction(text)
  places = lines.places(text)
  by_part = collections.Counter()
  for name, count in spent.items():
    by_part[part(places.get(name, lines.NOWHERE))] += count
  chip = topology.CHIPS[piece.chip]
  work = flops.per_image(parts.objective)["total"] * args.images
  floor = work / (chip.peak / chip.clock)
  total = sum(spent.values())
  row = [f"{total / 1e6:.2f}", f"{floor / 1e6:.2f}", f"{total / floor:.2f}"]
  row += [f"{by_part[name] / 1e6:.2f}" for name in PARTS]
  print(
    " ".join(f"{x:>16}" for x in (case, *row)),
    f"  (compiled in {seconds:.0f} s)",
    flush=True,
  )
  _print_top(spent, places, args.top)


def _print_top(spent, places, count):
  """Prints the costliest fusions, with equal ones of all blocks together."""
  alike, number = collections.Counter(), collections.Counter()
  for name, cost in spent.items():
    place = places.get(name, lines.NOWHERE)
    scope = re.sub(r"encoderblock_\d+", "block", place.scope)
    key = part(place), re.sub(r"[.\d]+$", "", name), place.line, scope[-60:]
    alike[key] += cost
    number[key] += 1
  for key, cost in alike.most_common(count):
    print(f"{cost / 1e6:9.2f} in {number[key]:3}  " + ", ".join(key))


def part(place: lines.Place) -> str:
  """Which of `PARTS` an instruction belongs to."""
  scope, outer = place.scope, place.stack
  if "ViTKD" in scope or place.line.startswith("distill/"):
    return "head"
  if "ViT/" in scope or "ViT)" in scope:
    if "jvp" not in scope:
      return "teacher forward"
    return "student " + ("backward" if "transpose" in scope else "forward")
  if any(line.startswith("data/") for line in outer):
    return "augmentation"
  if place.line.startswith(("training/steps", "training/optim")):
    return "optimiser"
  if "jvp" in scope or place.line.startswith("training/objective"):
    return "head"
  return "other"


if __name__ == "__main__":
  sys.exit(main())
