"""A checkpoint of before methods had names is restored to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitkd_jax.runs import checkpoint, legacy_state
from vitkd_jax.training import optim
from vitkd_jax.training import state as states


def make(with_methods=True):
  rng = np.random.default_rng(0)
  leaf = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
  head = {"align_high": {"kernel": leaf(4, 6), "bias": leaf(6)}}
  params = {
    "student": {"Dense_0": {"kernel": leaf(3, 4), "bias": leaf(4)}},
    "methods": {"vitkd": head} if with_methods else {},
  }
  optimizer = optim.make_optimizer(
    lambda step: 1e-3, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1,
    clip_norm=1.0,
  )  # fmt: skip
  opt_state = optimizer.init(params)
  updates, opt_state = optimizer.update(params, opt_state, params)
  return states.TrainState(
    step=jnp.int32(7),
    params=optax.apply_updates(params, updates),
    opt_state=opt_state,
    ema=params["student"],
    metrics={
      "loss": leaf(2),
      "grad_norm_methods": leaf(2),
      "vitkd/mimic": leaf(2),
      "weighted/vitkd/mimic": leaf(2),
    },
    skipped=jnp.zeros(2, jnp.int32),
  )


@pytest.mark.parametrize("with_methods", [True, False])
def test_it_is_restored_under_the_names_of_today(tmp_path, with_methods):
  state = make(with_methods)
  then = legacy_state.old(vars(state))
  assert then["params"].keys() == {"student", "head"}
  assert then["opt_state"][1][0].mu.keys() == {"student", "head"}
  assert then["metrics"].keys() == {
    "loss", "grad_norm_head", "raw_mimic", "weighted_mimic",
  }  # fmt: skip
  assert legacy_state.is_old(then)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(7, then, top1=None)
  checkpoints.wait()
  shapes = jax.eval_shape(lambda: state)
  shardings = jax.tree.map(lambda x: x.sharding, state)
  found = checkpoints.restore(shapes, shardings).state
  checkpoints.close()
  assert jax.tree.structure(found) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, found, state)
