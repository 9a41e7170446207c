"""LAMB as DeiT III trained with it, and rates by layer, against timm's."""

import jax
import numpy as np
import optax
import pytest
import torch

from parity import timm_models
from vitkd_jax.training import leaves, optim

timm_models.import_timm()

from timm.optim import Lamb, param_groups_layer_decay  # noqa: E402


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


# Names of ours by those of timm, up to the part that tells the layer.
OURS = {
  "cls_token": "cls",
  "reg_token": "reg",
  "pos_embed": "pos_embedding",
  "patch_embed": "embedding/kernel",
  "norm": "Transformer/encoder_norm/scale",
  "head": "head/kernel",
}


def test_rates_by_layer():
  """The same but for the last norm, which timm counts to the last block."""
  depth, decay = 3, 0.65
  model = timm_models.import_timm().models.VisionTransformer(
    img_size=16, patch_size=8, embed_dim=8, depth=depth, num_heads=2,
    num_classes=4, reg_tokens=1,
  )  # fmt: skip
  names = {id(leaf): name for name, leaf in model.named_parameters()}
  checked = set()
  for group in param_groups_layer_decay(model, layer_decay=decay):
    for leaf in group["params"]:
      first, *rest = names[id(leaf)].split(".")
      ours = OURS.get(first) or f"Transformer/encoderblock_{rest[0]}/x"
      layer = leaves.layers(ours, depth)
      assert layer <= depth or first in ("norm", "head")
      layer -= first == "norm"
      assert group["lr_scale"] == pytest.approx(decay ** (depth + 1 - layer))
      checked.add(ours)
  assert len(checked) == len(OURS) + depth
