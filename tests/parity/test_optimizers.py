"""LAMB as DeiT III trained with it, against timm's."""

import jax
import numpy as np
import optax
import pytest
import torch

from parity import timm_models
from vitkd_jax.training import optim

timm_models.import_timm()

from timm.optim import Lamb  # noqa: E402


@pytest.mark.parametrize("always", [True, False])
def test_lamb(always):
  rng = np.random.default_rng(0)
  leaves = {
    name: rng.standard_normal(shape, np.float32)
    for name, shape in (("kernel", (6, 4)), ("bias", (4,)), ("scale", (4,)))
  }
  grads = [
    {k: rng.standard_normal(v.shape, np.float32) for k, v in leaves.items()}
    for _ in range(3)
  ]
  theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in leaves.items()}
  lamb = Lamb(
    [
      dict(params=[theirs["kernel"]], weight_decay=0.05),
      dict(params=[theirs["bias"], theirs["scale"]], weight_decay=0.0),
    ],
    lr=0.1,
    max_grad_norm=None,
    always_adapt=always,
  )
  tx = optim.make_optimizer(
    lambda step: 0.1,
    name="lamb",
    weight_decay=0.05,
    clip_norm=0.0,
    always_adapt=always,
  )
  ours, state, update = leaves, tx.init(leaves), jax.jit(tx.update)
  for gradient in grads:
    updates, state = update(gradient, state, ours)
    ours = optax.apply_updates(ours, updates)
    for name, leaf in theirs.items():
      leaf.grad = torch.tensor(gradient[name])
    lamb.step()
    for name, leaf in theirs.items():
      np.testing.assert_allclose(
        ours[name], leaf.detach().numpy(), rtol=1e-5, atol=1e-6
      )
