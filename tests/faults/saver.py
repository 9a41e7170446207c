"""Saves states of known values, one after another, until it is killed.

Arguments: the folder and the first step. The leaf of step n is n everywhere.
"""

import itertools
import sys

import jax.numpy as jnp

from vitkd_jax.runs import checkpoint


def state(step):
  """The tree that is saved at a step: 32 MB."""
  return {"step": jnp.int32(step), "x": jnp.full((2048, 4096), float(step))}


if __name__ == "__main__":
  folder, first = sys.argv[1], int(sys.argv[2])
  checkpoints = checkpoint.Checkpoints(folder)
  for step in itertools.count(first):
    checkpoints.save(step, state(step), top1=None)
    print("saving", step, flush=True)
    checkpoints.wait()
    print("saved", step, flush=True)
