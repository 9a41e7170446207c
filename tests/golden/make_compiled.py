"""Stores what the compiled train steps cost: `compiled.json`.

  python tests/golden/make_compiled.py            # after a change that is meant
  python tests/golden/make_compiled.py --print    # what the steps cost now

FLOPs, bytes, memory and collectives as the compiler counts them on one and on
two virtual CPU devices; exact for one version of JAX on one kind of CPU.
"""

import collections
import json
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
FILE = pathlib.Path(__file__).with_name("compiled.json")

# name: case of `benchmarks.cases`, images, devices.
STEPS = {
  "quickstart": ("quickstart", 64, 1),
  "quickstart, 2 devices": ("quickstart", 64, 2),
  "s3-ti": ("s3-ti", 8, 1),
}


def cost(case: str, batch: int, devices: int) -> dict:
  """The figures of one step."""
  import jax

  from benchmarks import cases
  from vitkd_jax.estimate import hlo

  config = cases.config(case, batch=batch)
  parts = cases.build(config, jax.devices()[:devices])
  lowered = parts.make_train_step().lower(*parts.step_shapes())
  # The plain kernels: those of XLA's libraries differ from CPU to CPU.
  compiled = lowered.compile(
    compiler_options={"xla_cpu_experimental_ynn_fusion_type": ""}
  )
  counted, memory = compiled.cost_analysis(), compiled.memory_analysis()
  collectives = collections.Counter()
  for collective in hlo.collectives(compiled.as_text()):
    collectives[collective.kind] += collective.times
  return {
    "flops": int(counted["flops"]),
    "bytes": int(counted["bytes accessed"]),
    "temporary": memory.temp_size_in_bytes,
    "arguments": memory.argument_size_in_bytes,
    "collectives": dict(collectives),
  }


def main():
  """Writes the file, or prints it."""
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
  sys.path.insert(0, str(ROOT))
  import jax

  steps = {name: cost(*step) for name, step in STEPS.items()}
  text = json.dumps({"jax": jax.__version__, "steps": steps}, indent=2) + "\n"
  if "--print" in sys.argv:
    print(text)
  else:
    FILE.write_text(text)


if __name__ == "__main__":
  main()
