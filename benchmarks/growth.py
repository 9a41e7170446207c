r"""How the cost of reports, evaluations and resumes grows.

  python -m benchmarks.growth CASE [CASE ...]    such as arms:200 classes:100000

arms:N and seeds:N report on N runs of different methods, or of one; log:N and
resume:N report on, and resume, a run with N lines of metrics; classes:N scores
synthetic logits and writes the results. A process of its own does each: its
wall-clock and CPU time, and the operating system's account of its memory.
"""

import argparse
from collections.abc import Sequence
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from benchmarks import arguments

CASES = ("arms", "seeds", "classes", "resume", "log")
TERMS = ("task", "nkd", "vitkd/mimic", "vitkd/generation")
IMAGES = 10_000
STEPS = 30_000


def write_run(folder: pathlib.Path, arm: int, seed: int, lines: int) -> None:
  """A workdir: an evaluation after every tenth line of metrics."""
  folder.mkdir(parents=True)
  weights = {"mimic": 3e-5 * (1 + arm), "generation": 3e-5}
  config = {
    "run": {"seed": seed, "batch_size": 64, "epochs": 300.0},
    "data": {"name": "imagenet2012", "train_split": "train", "eval_split": "v"},
    "student": {"variant": "deit_tiny_patch16_224"},
    "teachers": {"large": {"weights": "t", "variant": "deit3_large"}},
    "task": {"weight": 1.0},
    "methods": {"vitkd": {"weights": weights}, "nkd": {"weights": {"nkd": 1}}},
    "augment": {f"option_{i}": i / 7 for i in range(40)},
  }
  (folder / "config.json").write_text(json.dumps({"config": config}))
  with (folder / "metrics.jsonl").open("w") as file:
    for i in range(1, lines + 1):
      wave = 1 + 0.1 * math.sin(i * (1 + arm))
      raw = {
        t: wave * (k + 3 * lines / (i + lines)) for k, t in enumerate(TERMS)
      }
      values = {
        "step": i * STEPS // lines if lines < STEPS else i,
        "loss": sum(raw.values()), **raw,
        **{f"weighted/{term}": value / 3 for term, value in raw.items()},
        "accuracy": i / lines, "learning_rate": 1e-3 * (1 - i / (lines + 1)),
        "grad_norm_student": wave, "grad_norm_methods": 2 * wave,
        "images_per_second": 1000 * wave, "data_wait": 0.01,
        "eta_seconds": 64 * (max(lines, STEPS) - 1) * (1 - i / lines) / 1000,
      }  # fmt: skip
      file.write(json.dumps(values) + "\n")
      if i % 10 == 0:
        top1 = 0.7 * i / (i + 0.1 * lines) + 0.001 * (arm % 37) + 1e-4 * seed
        file.write(f'{{"step": {values["step"]}, "eval_top1": {top1}}}\n')


def resume(folder: str) -> None:
  """Opens the log of a run as if its last checkpoint were of step N - 10."""
  from vitkd_jax.runs import metrics

  last = int(folder.rpartition("-")[2])
  with metrics.Writer(folder, first_step=last - 10, total_steps=last):
    pass


def score(classes: int, out: str) -> None:
  """The evaluation's command without its reading of weights and images."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vitkd_jax.data import datasets, preprocess
  from vitkd_jax.evaluation import scoring
  from vitkd_jax.reporting import evaluated

  class Source:
    def __len__(self):
      return IMAGES

    def __getitem__(self, index):
      label = index * 7919 % classes
      pixels = [label >> 16, label >> 8 & 255, label & 255, index % 251]
      image = np.uint8(pixels)[:, None].repeat(3, 1).reshape(2, 2, 3)
      return {"image": image, "label": np.int32(label)}

  class Model:
    def apply(self, _, image):
      pixels = jnp.round((image[..., 0] / 2 + 0.5) * 255).reshape(-1, 4)
      label = pixels[:, :3] @ jnp.float32([65536, 256, 1])
      number = jnp.arange(classes, dtype=jnp.float32)
      noise = jnp.sin(number * (1 + pixels[:, 3:]))
      return noise + 0.9 * (number == label[:, None]), None

  images = preprocess.Preprocess((2, 2), None, (0.5,) * 3, (0.5,) * 3)
  student = scoring.Scored(Model(), {"none": jnp.zeros(1)}, images)
  names = tuple(f"class {i}" for i in range(classes))
  info = datasets.Info("synthetic", classes, (2, 2), {"v": IMAGES}, names)
  found = scoring.evaluate(student, Source(), info)
  evaluated.show(found, f"{classes} classes, {jax.device_count()} device")
  pathlib.Path(out).mkdir()
  evaluated.write(found, {}, out)


def measure(command: Sequence[str], out: str, limits) -> str:
  """The cells of a process's row; what it writes is under `out`."""
  began, peak = time.monotonic(), 0
  with open(os.path.join(os.path.dirname(out), "said"), "w+") as said:
    process = subprocess.Popen(command, stdout=said, stderr=said)
    while True:
      pid, status, usage = os.wait4(process.pid, os.WNOHANG)
      wall = time.monotonic() - began
      if pid:
        break
      pages = pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()
      peak = max(peak, int(pages[1]) * resource.getpagesize() / 1e9)
      if wall > limits.seconds or peak > limits.gigabytes:
        process.kill()
      time.sleep(0.05)
    said.seek(0)
    last = (said.read().splitlines() or [""])[-1][:60] if status else "done"
  if os.WIFSIGNALED(status):
    last = f"killed at {wall:.0f} s, {peak:.1f} GB"
  files = [p for p in pathlib.Path(out).rglob("*") if p.is_file()]
  written = sum(p.stat().st_size for p in files) / 1e6
  cpu = usage.ru_utime + usage.ru_stime
  memory = usage.ru_maxrss / 1024
  return f"{wall:.1f} | {cpu:.1f} | {memory:,.0f} | {written:.2f} | {last}"


def _case(text: str) -> tuple[str, int]:
  kind, _, number = text.partition(":")
  if kind not in CASES or not number:
    raise argparse.ArgumentTypeError(
      f"expected a case such as arms:200, got {text!r}"
    )
  return kind, arguments.count(number)


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("cases", nargs="+", metavar="CASE", type=_case,
                      help=f"one of {', '.join(CASES)}, and :N")  # fmt: skip
  parser.add_argument("--seconds", type=float, default=600)
  parser.add_argument("--gigabytes", type=float, default=10)
  given = parser.parse_args(argv)
  print(
    "| case | s | CPU s | peak MB | written MB | |\n|---|---|---|---|---|---|"
  )
  for case in given.cases:
    kind, count = case
    with tempfile.TemporaryDirectory() as folder:
      runs, out = os.path.join(folder, "runs"), os.path.join(folder, "out")
      made = {"arms": count, "seeds": count, "resume": 1, "log": 1}.get(kind, 0)
      lines = count if kind in ("resume", "log") else 300
      for i in range(made):
        arm, seed = (i, 0) if kind == "arms" else (0, i)
        name = f"run-{i if made > 1 else lines}"
        write_run(pathlib.Path(runs, name), arm, seed, lines)
      self = "from benchmarks import growth; growth."
      command = {
        "classes": ["-c", f"{self}score({count}, {out!r})"],
        "resume": ["-c", f"{self}resume({f'{runs}/run-{count}'!r})"],
      }.get(kind, ["-m", "vitkd_jax.report", runs, "--out", out])
      row = measure([sys.executable, *command], out, given)
      print(f"| {kind}:{count} | {row} |", flush=True)


if __name__ == "__main__":
  main()
