"""big_vision's checkpoints on gs://, read by tensorstore."""

import drawn
import jax
import numpy as np
import pytest
from test_bv_steps import FIELDS, OPTIONS, save, state

from vitkd_jax import weights
from vitkd_jax.runs import students


def test_they_are_read_as_from_the_disk(server, tmp_path):
  params = drawn.params(10, **FIELDS)
  save(tmp_path, "000000012", state({"student": params}))
  for file in tmp_path.rglob("*"):
    if file.is_file():
      name = f"bv/{file.relative_to(tmp_path)}"
      server.store.objects["runs", name] = (7, file.read_bytes())
  near = students.load(f"{tmp_path}/checkpoint.bv:student", **OPTIONS)
  for path in (
    "checkpoint.bv",
    "checkpoint.bv-LAST",
    "checkpoint.bv-000000012",
  ):
    far = students.load(f"gs://runs/bv/{path}:student", **OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, far.params, near.params)
    assert far.sha256() == near.sha256()
  assert students.load("gs://runs/bv:student", **OPTIONS).file == far.file
  with pytest.raises(ValueError, match="expected weights at 'gs://runs/none"):
    weights.load("gs://runs/none/checkpoint.bv", **OPTIONS)
