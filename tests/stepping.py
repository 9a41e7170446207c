"""Runs the first steps of a training."""

import contextlib

import drawn
import jax

from vitkd_jax.cluster import sharding
from vitkd_jax.training import experiment


def steps(config, devices, count=2):
  """Parts, the state after some steps, and each step's metrics."""
  config.run.log_every = 1
  parts = experiment.build(config, devices=devices)
  state, step = drawn.state(parts), parts.make_train_step()
  found = []
  with contextlib.closing(parts.inputs.train(0)) as batches:
    for _ in range(count):
      batch = sharding.global_batch(next(batches), parts.mesh)
      state, report = step(state, parts.teacher_params, batch)
      metrics = jax.device_get(report["metrics"])
      found.append({name: float(pair[0]) for name, pair in metrics.items()})
      assert not report["bad"].any()
  return parts, jax.device_get(state), found
