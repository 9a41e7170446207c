"""A thousand steps: one trace, no growth, no transfer that nobody asked for."""

import jax
import numpy as np
import pytest

from vitkd_jax.cluster import sharding
from vitkd_jax.training import experiment

STEPS = 1000


def resident_bytes():
  """Of this process, as Linux counts them."""
  with open("/proc/self/status") as lines:
    fields = dict(line.split(":", 1) for line in lines)
  return int(fields["VmRSS"].split()[0]) * 1024


@pytest.mark.slow
def test_a_thousand_steps_are_all_alike(tiny_config):
  tiny_config.run.log_every = 50
  parts = experiment.build(tiny_config)
  state = parts.create_state()
  step = parts.make_train_step()
  rng = np.random.default_rng(0)
  size = parts.run.batch_size
  batches = [
    sharding.global_batch(
      {
        "image": rng.integers(0, 256, (size, *parts.image_shape), np.uint8),
        "label": rng.integers(0, 10, size, np.int32),
      },
      parts.mesh,
    )
    for _ in range(3)
  ]
  arrays, memory, losses = set(), {}, []
  with jax.transfer_guard("disallow"):
    for number in range(1, STEPS + 1):
      batch = batches[number % 3]
      state, out = step(state, parts.teacher_params, batch)
      # As the training does on several CPU devices.
      jax.block_until_ready(out)
      if number % 50 == 0:
        metrics = jax.device_get(out["metrics"])
        losses.append(metrics["loss"][0] / metrics["loss"][1])
        arrays.add(len(jax.live_arrays()))
        memory[number] = resident_bytes()
  assert step._cache_size() == 1
  assert len(arrays) == 1, f"live arrays grew: {sorted(arrays)}"
  # 20 MiB over 800 steps would be seen as a leak of 26 kB a step.
  assert memory[STEPS] - memory[200] < 20 * 2**20, memory
  assert len(losses) == STEPS // 50
  assert np.isfinite(losses).all()
  assert losses[-1] < losses[0]
