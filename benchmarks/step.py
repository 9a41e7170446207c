r"""One training step against PyTorch's, timed in turns in one process.

  python -m benchmarks.step                             # quickstart, s3-ti
  python -m benchmarks.step --case b3-s --batch 8 --rounds 5
  python -m benchmarks.step --case s3-ti --compile --dtype bfloat16   # a GPU
  python -m benchmarks.step --case quickstart --no-peer --profile TRACE

A step is the teacher's forward pass, the student's forward and backward pass,
ViTKD + NKD, clipping by the global norm, and AdamW. Both contestants get the
same weights; each case first prints both losses on one batch. They take turns,
`--steps` steps at a time after an untimed one; the table has medians over
`--rounds`, and medians of the ratios within a round. The peer
(benchmarks/peer_torch.py) needs torch and timm.
"""

import argparse
from collections.abc import Sequence
import functools
import os
import statistics
import sys
import time

from benchmarks import arguments

# Threads are bound before either framework starts its own.
_EARLY = argparse.ArgumentParser(add_help=False)
_EARLY.add_argument(
  "--threads", type=arguments.count, default=os.cpu_count() or 1
)
_THREADS = _EARLY.parse_known_args()[0].threads
if hasattr(os, "sched_setaffinity"):
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_THREADS])
os.environ["OMP_NUM_THREADS"] = str(_THREADS)
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import cases  # noqa: E402
from vitkd_jax.cluster import sharding  # noqa: E402
from vitkd_jax.estimate import flops  # noqa: E402
from vitkd_jax.training import objective as objectives  # noqa: E402


def main(argv: Sequence[str] | None = None) -> None:
  """Prints one table per case.

  Args:
    argv: the command line; the process's by default.
  """
  parser = _parser()
  args = parser.parse_args(argv)
  device = jax.devices()[0]
  on_cpu = device.platform == "cpu"
  load = f", load {os.getloadavg()[0]:.1f}" if on_cpu else ""
  print(
    f"{device.device_kind} x {jax.device_count()}, {_THREADS} threads, "
    f"jax {jax.__version__}{load}"
  )
  for name in args.case or ("quickstart", "s3-ti"):
    dtype = args.dtype or ("float32" if on_cpu else "bfloat16")
    size = args.batch or (16 if on_cpu and name != "quickstart" else 64)
    rate = matmul_rate(dtype, args.matmul or (2048 if on_cpu else 8192))
    print(
      f"\n{name}: batch {size}, {dtype}, machine's matmuls "
      f"{rate / 1e12:.2f} TFLOP/s"
    )
    config = cases.config(name, batch=size, dtype=dtype, augmented=args.augment)
    with arguments.refusing(parser):
      parts = cases.build(config)
    run_case(config, parts, rate, args)


def _parser():
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    parents=[_EARLY],
  )
  parser.add_argument("--case", action="append", choices=cases.CASES)
  parser.add_argument("--batch", type=arguments.count)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"))
  parser.add_argument("--rounds", type=arguments.count, default=7)
  parser.add_argument("--steps", type=arguments.count, default=2)
  parser.add_argument(
    "--matmul", type=arguments.count, help="side of the timed matrix product"
  )
  parser.add_argument(
    "--augment", action="store_true", help="with augmentation, of ours alone"
  )
  parser.add_argument("--no-peer", action="store_true")
  parser.add_argument(
    "--compile", action="store_true", help="time torch.compile, too"
  )
  parser.add_argument("--profile", metavar="FOLDER", help="write a trace")
  return parser


def run_case(config, parts, rate, args):
  """Builds the contestants of a case, times them in turns and prints."""
  size = parts.run.batch_size
  theirs, frozen = cases.teacher(config, parts)
  batch = cases.batch(parts)
  ours = Ours(parts, frozen, batch)
  contestants = {"ours": ours}
  if not args.no_peer:
    contestants |= _peers(config, ours, theirs, batch, args)
  formula = flops.per_image(parts.objective)
  print(
    "FLOPs per image by formula: "
    + ", ".join(f"{part} {x / 1e9:.3f} G" for part, x in formula.items())
    + f"; by the compiler: {ours.flops / size / 1e9:.3f} G"
  )
  if args.profile:
    from benchmarks import lines

    lines.profile(ours, args.profile)
  times = _in_turns(contestants, args.rounds, args.steps)
  _print_table(contestants, times, size, formula["total"] * size / rate)


class Ours:
  """Our step, compiled, with its state."""

  def __init__(self, parts, teacher_params, batch):
    self.parts, self.teacher_params = parts, teacher_params
    self.state = parts.create_state()
    self.batch = sharding.global_batch(batch, parts.mesh)
    lowered = parts.make_train_step().lower(
      self.state, self.teacher_params, self.batch
    )
    start = time.perf_counter()
    self.compiled = lowered.compile()
    self.compile_seconds = time.perf_counter() - start
    self.flops = self.compiled.cost_analysis()["flops"] * parts.mesh.size

  def step(self):
    """One update, not waited for."""
    self.state, self.metrics = self.compiled(
      self.state, self.teacher_params, self.batch
    )

  def wait(self):
    """Waits for the device."""
    jax.block_until_ready((self.state, self.metrics))

  def peak_bytes(self):
    """Peak memory in use, or the compiler's figure for the step."""
    stats = jax.devices()[0].memory_stats()
    if stats:
      return stats["peak_bytes_in_use"]
    memory = self.compiled.memory_analysis()
    return (
      memory.temp_size_in_bytes
      + memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
    )


class Theirs:
  """The peer's step on a fixed batch."""

  def __init__(self, peer, batch):
    self.peer, self.tensors = peer, peer.tensors(batch)
    start = time.perf_counter()
    self.step()
    self.wait()
    self.compile_seconds = time.perf_counter() - start

  def step(self):
    """One update, not waited for."""
    self.peer.step(*self.tensors)

  def wait(self):
    """Waits for the device."""
    self.peer.wait()

  def peak_bytes(self):
    """Peak memory of tensors; None on a CPU."""
    return self.peer.peak_bytes()


def _peers(config, ours, teacher_params, batch, args):
  try:
    import torch

    from benchmarks import peer_torch
  except ImportError as error:
    print(f"no peer: {error} (install torch and timm)")
    return {}
  torch.set_num_threads(_THREADS)
  torch.manual_seed(0)
  found = {}
  for name, compiled in {"PyTorch eager": False, "torch.compile": True}.items():
    if compiled and not args.compile:
      continue
    peer = peer_torch.Peer(
      config,
      ours.parts,
      ours.state.params,
      teacher_params,
      device="cuda" if torch.cuda.is_available() else "cpu",
      autocast=config.student.dtype_mm == "bfloat16",
      compiled=compiled,
    )
    if not found:
      _compare_losses(ours, batch, peer)
    found[name] = Theirs(peer, batch)
  return found


def _compare_losses(ours, batch, peer):
  """Prints both losses on the same batch, mask and weights, untrained."""
  import torch

  objective = ours.parts.objective
  size, classes = len(batch["label"]), ours.parts.info.num_classes
  target = jax.nn.one_hot(batch["label"], classes) * 0.9 + 0.1 / classes
  key = jax.random.key(0)
  micro = {
    "image": jnp.float32(batch["image"]) / 255,
    "target": target,
    "draws": objective.draws(key, size),
    "key": key,
  }
  compute = jax.jit(functools.partial(objectives.gradients, objective))
  means = compute(
    ours.state.params, ours.teacher_params, objective.weights, micro
  )[1]
  with torch.no_grad():
    mask = torch.from_numpy(np.array(micro["draws"]["vitkd"]["mask"])).to(
      peer.device
    )
    loss = float(peer.loss(*peer.tensors(batch), mask))
  print(f"loss: ours {float(means['loss']):.6f}, peer {loss:.6f}")


def _in_turns(contestants, rounds, steps):
  """{name: [seconds a step in each round]}."""
  times = {name: [] for name in contestants}
  for _ in range(rounds):
    for name, contestant in contestants.items():
      contestant.step()
      contestant.wait()
      start = time.perf_counter()
      for _ in range(steps):
        contestant.step()
      contestant.wait()
      times[name].append((time.perf_counter() - start) / steps)
  return times


def _print_table(contestants, times, size, floor):
  """Prints the table; a step takes `floor` seconds at the matmul rate."""
  print(
    f"{'':15}{'images/s':>10}{'ms':>9}{'best ms':>9}{'of matmul rate':>16}"
    f"{'peak MB':>9}{'first call s':>14}{'ours faster by':>16}"
  )
  for name, contestant in contestants.items():
    seconds = statistics.median(times[name])
    ratio = statistics.median(
      theirs / own
      for theirs, own in zip(times[name], times["ours"], strict=True)
    )
    peak = contestant.peak_bytes()
    print(
      f"{name:15}{size / seconds:10.1f}{seconds * 1e3:9.1f}"
      f"{min(times[name]) * 1e3:9.1f}"
      f"{floor / seconds:15.1%} "
      f"{f'{peak / 1e6:.0f}' if peak else '-':>9}"
      f"{contestant.compile_seconds:14.1f}"
      f"{'' if name == 'ours' else f'{ratio:.2f}x':>16}"
    )


def matmul_rate(dtype: str, side: int) -> float:
  """FLOP/s of square matrix products, the best of five runs.

  Args:
    dtype: of the matrices.
    side: rows and columns of the matrices.
  """
  x = jnp.ones((side, side), dtype)
  product = jax.jit(lambda a, b: a @ b)
  jax.block_until_ready(product(x, x))
  best = float("inf")
  for _ in range(5):
    start = time.perf_counter()
    y = x
    for _ in range(4):
      y = product(y, x)
    jax.block_until_ready(y)
    best = min(best, (time.perf_counter() - start) / 4)
  return 2 * side**3 / best


if __name__ == "__main__":
  sys.exit(main())
