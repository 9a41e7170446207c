r"""The cost of a checkpoint: the part that blocks the training, and the rest.

  python -m benchmarks.checkpoint --directory DIR [--variant NAME] [--saves N]

The state is that of DeiT-Base taught by DeiT III-Large: the student, ViTKD's
head, two moments of each and the student's moving average, all float32. The
first save also compiles the fingerprint, and is not counted.
"""

import argparse
from collections.abc import Sequence
import os
import shutil
import statistics
import time

import jax
import jax.numpy as jnp

from benchmarks import arguments
from vitkd_jax.distill import heads
from vitkd_jax.models import variants, vit
from vitkd_jax.runs import checkpoint

INTERVAL_SECONDS = 300


def make_state(variant: str, teacher_width: int):
  """Random arrays with the shapes of a train state.

  Args:
    variant: the student's.
    teacher_width: D_t.
  """

  def shapes():
    key = jax.random.key(0)
    model = vit.Model(1000, variant=variant)
    student = model.init(key, jnp.zeros((1, 224, 224, 3)))["params"]
    tokens = 14 * 14
    maps = [
      jnp.zeros((1, *shape))
      for width in (model.width, teacher_width)
      for shape in ((2, tokens, width), (tokens, width))
    ]
    head = heads.ViTKD(teacher_width, grid=(14, 14)).init(
      key, *maps, jnp.zeros((1, tokens), bool)
    )["params"]
    params = {"student": student, "methods": {"vitkd": head}}
    return {"params": params, "mu": params, "nu": params, "ema": student}

  like = jax.eval_shape(shapes)
  leaves, structure = jax.tree.flatten(like)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  values = [
    jax.random.normal(key, leaf.shape, leaf.dtype)
    for key, leaf in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, values)


def main(argv: Sequence[str] | None = None) -> None:
  """Prints one row per save, and the cost at the interval.

  Args:
    argv: the command line; the process's by default.
  """
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--directory", required=True, help="new folder, removed afterwards"
  )
  parser.add_argument("--variant", default="deit_base_patch16_224")
  parser.add_argument("--teacher-width", type=arguments.count, default=1024)
  parser.add_argument("--saves", type=arguments.count, default=3)
  args = parser.parse_args(argv)
  if os.path.exists(args.directory):
    parser.error(f"expected a new folder, but {args.directory} exists")
  with arguments.refusing(parser):
    variants.get(args.variant)
    os.makedirs(args.directory)
  state = jax.block_until_ready(make_state(args.variant, args.teacher_width))
  size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e9
  load, cores = os.getloadavg()[0], os.cpu_count()
  print(f"state of {size:.2f} GB; load {load:.1f} on {cores} cores")
  checkpoints = checkpoint.Checkpoints(args.directory, keep=1)
  blocked = []
  try:
    for step in range(args.saves + 1):
      began = time.monotonic()
      checkpoints.save(step, state, top1=None)
      waited = time.monotonic() - began
      checkpoints.wait()
      whole = time.monotonic() - began
      note = "  (compiles; not counted)" if step == 0 else ""
      print(f"save {step}: blocks {waited:.2f} s, durable after {whole:.1f} s"
            + note, flush=True)  # fmt: skip
      if step:
        blocked.append(waited)
  finally:
    checkpoints.close()
    shutil.rmtree(args.directory, ignore_errors=True)
  median = statistics.median(blocked)
  print(
    f"median blocking part {median:.2f} s: {median / INTERVAL_SECONDS:.2%} of "
    f"the time at one checkpoint per {INTERVAL_SECONDS // 60} minutes"
  )


if __name__ == "__main__":
  main()
