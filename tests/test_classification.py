"""Tests of vitkd_jax.evaluation.classification."""

import jax.numpy as jnp
import numpy as np

from vitkd_jax.evaluation import classification


def test_padding_and_ties():
  table = np.float32([
    [3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0],
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
  ])  # fmt: skip
  sums = classification.measure(
    jnp.array(table[[0, 0, 1, 1, 1]]),
    jnp.array([0, 4, 0, 5, 0]),
    jnp.array([1.0, 1.0, 1.0, 1.0, 0.0]),
  )
  # Ties count for the lower class: label 0 is first, label 5 sixth.
  assert sums["top1"] == 2
  assert sums["top5"] == 3
  assert sums["count"] == 4
  z = np.log(np.exp([3, 2, 1, 0, 0, 0, 0]).sum())
  np.testing.assert_allclose(
    sums["nll"], (z - 3) + (z - 0) + 2 * np.log(7), rtol=1e-6
  )


def test_a_model_of_nan_scores_nothing():
  logits, label = jnp.full((4, 10), jnp.nan), jnp.arange(4)
  sums = classification.measure(logits, label, jnp.ones(4))
  assert (int(sums["top1"]), int(sums["top5"])) == (0, 0)
