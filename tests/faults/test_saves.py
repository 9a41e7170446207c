"""Killed inside a save: the newest whole state is as it was written (7)."""

import os
import pathlib
import random
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import runner
import saver

from vitkd_jax.cluster import sharding
from vitkd_jax.runs import checkpoint

pytestmark = pytest.mark.slow


def test_six_kills_inside_a_save(tmp_path):
  rng, folder, reached = random.Random(1), tmp_path / "checkpoints", 0
  env = {**os.environ, "PYTHONPATH": str(runner.ROOT), "JAX_PLATFORMS": "cpu"}
  script = str(pathlib.Path(saver.__file__))
  in_flight = 0
  for turn in range(6):
    with subprocess.Popen(
      [sys.executable, script, str(folder), str(reached + 1)],
      stdout=subprocess.PIPE,
      text=True,
      env=env,
    ) as process:
      try:
        lines = iter(process.stdout.readline, "")
        # The first save is whole; the second one is interrupted.
        told = [next(lines) for _ in range(3)]
        assert told[1].split() == ["saved", str(reached + 1)]
        assert told[2].split() == ["saving", str(reached + 2)]
        if turn % 2:  # at once when the save has begun to write
          while process.poll() is None and not _unfinished(folder):
            time.sleep(0.001)
        else:
          time.sleep(rng.uniform(0, 0.35))
      finally:
        process.kill()
    in_flight += bool(_unfinished(folder))

    checkpoints = checkpoint.Checkpoints(folder)
    like = jax.eval_shape(lambda: saver.state(0))
    where = sharding.tree(like, sharding.make_mesh())
    found = checkpoints.restore(like, where).state
    step = int(found["step"])
    assert step >= reached + 1  # what was said to be saved is there
    np.testing.assert_array_equal(found["x"], np.full((2048, 4096), step))
    checkpoints.close()
    assert not _unfinished(folder)
    reached = step
  assert in_flight  # else the kills came too late to mean anything


def _unfinished(folder):
  return [path for path in folder.iterdir() if "tmp" in path.name]
