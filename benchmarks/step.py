r"""One training step against PyTorch's, timed in turns in one process.

  python -m benchmarks.step                             # quickstart, s3-ti
  python -m benchmarks.step --case b3-s:8 --rounds 5
  python -m benchmarks.step --case s3-ti:256 --compile           # a GPU
  python -m benchmarks.step --case quickstart --no-peer --profile TRACE

A step is the teacher's forward pass, the student's forward and backward pass,
ViTKD + NKD, clipping by the global norm, and AdamW. All contestants get the
same weights; each case first prints the losses of both on one batch. They take
turns, `--steps` steps at a time after an untimed one; the table has medians
over `--rounds`, and medians of the ratios within a round. The peer
(benchmarks/peer_torch.py) needs torch and timm.
"""

import argparse
from collections.abc import Sequence
from concurrent import futures
import json
import os
import statistics
import sys
import time

from benchmarks import arguments

_BEGAN = time.perf_counter()

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

from benchmarks import cases, contestants  # noqa: E402
from benchmarks.turns import Turns  # noqa: E402
from vitkd_jax.estimate import flops  # noqa: E402
from vitkd_jax.models import attention  # noqa: E402


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
  for name, batch in args.case or [("quickstart", None), ("s3-ti", None)]:
    dtype = args.dtype or ("float32" if on_cpu else "bfloat16")
    size = batch or (16 if on_cpu and name != "quickstart" else 64)
    config = cases.config(name, batch=size, dtype=dtype, augmented=args.augment)
    config.run.attention = args.attention[-1]
    with arguments.refusing(parser):
      parts = cases.build(config)
    print(f"\n{name}: batch {size}, {dtype}")
    found = run_case(name, config, parts, args)
    found |= {
      "case": name,
      "batch": size,
      "dtype": dtype,
      "device": device.device_kind,
      "jax": jax.__version__,
      "peak_flops": contestants.PEAKS.get(device.device_kind),
    }
    _print_table(found)
    if args.json:
      with open(args.json, "a") as file:
        file.write(json.dumps(found) + "\n")


def _case(text):
  name, _, batch = text.partition(":")
  if name not in cases.CASES:
    raise argparse.ArgumentTypeError(
      f"expected one of {', '.join(cases.CASES)}, got {name!r}"
    )
  return name, arguments.count(batch) if batch else None


def _parser():
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    parents=[_EARLY],
  )
  parser.add_argument(
    "--case",
    action="append",
    type=_case,
    metavar="NAME[:BATCH]",
    help=f"one of {', '.join(cases.CASES)}, and images a step",
  )
  parser.add_argument("--dtype", choices=("float32", "bfloat16"))
  parser.add_argument("--rounds", type=arguments.count, default=7)
  parser.add_argument("--steps", type=arguments.count, default=2)
  parser.add_argument(
    "--matmul", type=arguments.count, help="side of the timed matrix product"
  )
  parser.add_argument(
    "--augment", action="store_true", help="with augmentation, of ours alone"
  )
  parser.add_argument(
    "--attention",
    default=["auto"],
    type=arguments.among(attention.FORMS),
    help="form of ours; before it, separated by commas, those of --more",
  )
  parser.add_argument(
    "--more",
    action="append",
    choices=cases.CASES,
    default=[],
    help="a case of which ours is timed in each form of attention, with "
    "augmentation and with each option, too",
  )
  parser.add_argument("--no-peer", action="store_true")
  parser.add_argument(
    "--compile", action="store_true", help="time torch.compile, too"
  )
  parser.add_argument(
    "--option",
    action="append",
    type=arguments.option,
    default=[],
    metavar="NAME=VALUE",
    help="of XLA, for the cases of --more",
  )
  parser.add_argument(
    "--turns",
    metavar="FOLDER",
    help="share the GPU with others that are given it, see turns.py",
  )
  parser.add_argument("--profile", metavar="FOLDER", help="write a trace")
  parser.add_argument("--json", metavar="FILE", help="append the figures")
  return parser


def run_case(name, config, parts, args) -> dict:
  """Builds the contestants of a case, times them in turns.

  Args:
    name: of the case.
    config: from `cases.config`.
    parts: the experiment of that config.
    args: the command line.

  Returns:
    Figures by name.
  """
  turns = Turns(args.turns, name)
  theirs, frozen = cases.teacher(config, parts)
  state = parts.create_state()
  batch = cases.batch(parts)
  formula = flops.per_image(parts.objective)
  print(
    "FLOPs per image by formula: "
    + ", ".join(f"{part} {x / 1e9:.3f} G" for part, x in formula.items())
  )
  found = {}
  peers = {} if args.no_peer else _peers(config, parts, state, theirs, args)
  for peer in list(peers.values())[:1]:
    found["peer_loss"] = contestants.first_loss(parts, batch, peer)
    _say(f"the peer's first loss: {found['peer_loss']:.6f}")
  rivals = {}
  for title, peer in peers.items():
    rivals[title] = contestants.Theirs(peer, batch)
    _say(f"{title}: compiled")
  experiments = _experiments(name, config, parts, args)
  with turns.alone():  # XLA times its candidates
    entered = _compiled(experiments, state, frozen)
  turns.meet()
  with turns.alone():
    for title, contestant in entered.items():
      found.setdefault("first", {})[title] = contestant.first()
      _say(f"{title}: first loss {found['first'][title]['loss']:.6f}")
    if args.profile:
      from benchmarks import lines

      lines.profile(next(iter(entered.values())), args.profile)
    on_cpu = jax.devices()[0].platform == "cpu"
    found["matmul_flops"] = contestants.matmul_rate(
      config.student.dtype_mm, args.matmul or (2048 if on_cpu else 8192)
    )
    entered |= rivals
    times = contestants.in_turns(entered, args.rounds, args.steps)
  best = min(
    (name for name in entered if name.startswith("ours")),
    key=lambda name: statistics.median(times[name]),
  )
  rows = {}
  for name, contestant in entered.items():
    rows[name] = {
      "seconds": times[name],
      "peak_bytes": contestant.peak_bytes(),
      "first_call_seconds": contestant.compile_seconds,
      "over_ours": contestants.ratio(times, best, name),
    }
    if isinstance(contestant, contestants.Ours):
      rows[name]["repeats"] = contestant.repeats()
  return found | {"flops_per_image": formula["total"], "rows": rows}


def _experiments(case, config, parts, args):
  """{name: (experiment, options of the compiler)} of our contestants."""
  found = {"ours": (parts, None)}
  if case in args.more:
    for form in args.attention[:-1]:
      found[f"ours, {form}"] = _built(config, "run.attention", form), None
    augmentation = cases.augmentation()
    found["ours, augmented"] = _built(config, "augment", augmentation), None
    for name, value in args.option:
      found[f"ours, {name}={value}"] = parts, {name: value}
  _say("built")
  return found


def _compiled(experiments, state, frozen):
  """{name: Ours} of those that XLA compiles, side by side."""
  found = {}
  with futures.ThreadPoolExecutor() as pool:
    running = {
      name: pool.submit(contestants.Ours, built, state, frozen, options)
      for name, (built, options) in experiments.items()
    }
  for name, future in running.items():
    if error := future.exception():
      _say(f"{name}: {str(error).partition(chr(10))[0]}")
    else:
      found[name] = future.result()
      _say(f"{name}: compiled")
  if not found:
    raise error
  return found


def _built(config, key, value):
  """The experiment with one key of the config changed."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.update_from_flattened_dict({key: value})
  return cases.build(config)


def _say(text):
  print(f"{time.perf_counter() - _BEGAN:4.0f} s  {text}", flush=True)


def _peers(config, parts, state, teacher, args):
  try:
    import torch

    from benchmarks import peer_torch
  except ImportError as error:
    print(f"no peer: {error} (install torch and timm)")
    return {}
  torch.set_num_threads(_THREADS)
  torch.manual_seed(0)
  forms = {"PyTorch eager": False}
  if args.compile:
    forms["torch.compile"] = True
  found = {
    name: peer_torch.Peer(
      config,
      parts,
      state.params,
      teacher,
      device="cuda" if torch.cuda.is_available() else "cpu",
      autocast=config.student.dtype_mm == "bfloat16",
      compiled=compiled,
    )
    for name, compiled in forms.items()
  }
  return found


def _print_table(found):
  size, rate = found["batch"], found["matmul_flops"]
  work = found["flops_per_image"] * size
  print(f"square matrix products: {rate / 1e12:.2f} TFLOP/s")
  print(
    f"{'':17}{'images/s':>10}{'ms':>9}{'best ms':>9}{'of matmul rate':>16}"
    f"{'MFU':>7}{'peak MB':>9}{'first call s':>14}{'over ours':>11}"
    f"{'repeats':>9}"
  )
  for name, row in found["rows"].items():
    seconds = statistics.median(row["seconds"])
    peak, top = row["peak_bytes"], found["peak_flops"]
    print(
      f"{name:17}{size / seconds:10.1f}{seconds * 1e3:9.1f}"
      f"{min(row['seconds']) * 1e3:9.1f}"
      f"{work / seconds / rate:16.1%}"
      f"{f'{work / seconds / top:.1%}' if top else '-':>7}"
      f"{f'{peak / 1e6:.0f}' if peak else '-':>9}"
      f"{row['first_call_seconds']:14.1f}"
      f"{row['over_ours']:10.2f}x"
      f"{row.get('repeats', '-')!s:>9}"
    )


if __name__ == "__main__":
  sys.exit(main())
