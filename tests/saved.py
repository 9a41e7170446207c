"""What runs have saved, read and damaged."""

import pathlib

import jax
import pytest

from vitkd_jax.runs import checkpoint
from vitkd_jax.training import experiment

# Of a module that reads what cannot be read: Orbax leaves the coroutines of a
# read that fails to the garbage collector.
DAMAGED = [
  pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
  pytest.mark.usefixtures("collected"),
]


def last_states(config, *workdirs):
  """What a run of the config finds in each workdir."""
  parts = experiment.build(config)
  for workdir in workdirs:
    checkpoints = checkpoint.Checkpoints(pathlib.Path(workdir) / "checkpoints")
    restored = checkpoints.restore(
      parts.state_shapes(), parts.state_shardings()
    )
    checkpoints.close()
    yield jax.device_get(restored.state)
