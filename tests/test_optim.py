"""Schedules, decay mask and optimiser against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitkd_jax.distill import heads
from vitkd_jax.models import vit
from vitkd_jax.training import optim

MMCLS = dict(
  kind="mmcls",
  peak=1e-3,
  total_steps=300,
  warmup_steps=20,
  warmup_start=1e-6,
  end=1e-5,
)
DEIT = dict(
  kind="deit",
  peak=1e-3,
  total_steps=300,
  warmup_steps=5,
  warmup_start=1e-6,
  end=1e-5,
)


def cosine(i, total=300, peak=1e-3, end=1e-5):
  return end + 0.5 * (peak - end) * (1 + np.cos(np.pi * i / total))


@pytest.mark.parametrize(
  "step, expected",
  [
    (0, 1e-6),  # 1e-3 of the cosine's first value
    (10, cosine(10) * (1 - 0.5 * (1 - 1e-3))),
    (19, cosine(19) * (1 - 0.05 * (1 - 1e-3))),
    (20, cosine(20)),
    (150, 0.5 * (1e-3 + 1e-5)),
    (300, 1e-5),
    (400, 1e-5),
  ],
)
def test_mmcls_schedule_scales_the_cosine(step, expected):
  schedule = jax.jit(optim.make_schedule(**MMCLS))
  np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)


@pytest.mark.parametrize(
  "step, expected",
  [
    (0, 1e-6),
    (2, 1e-6 + 0.4 * (1e-3 - 1e-6)),
    (5, cosine(5)),  # joins the cosine that has run since step 0
    (300, 1e-5),
  ],
)
def test_deit_schedule_rises_in_a_line(step, expected):
  schedule = jax.jit(optim.make_schedule(**DEIT))
  np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)


def test_schedule_without_warmup_starts_at_the_peak():
  schedule = optim.make_schedule(**{**MMCLS, "warmup_steps": 0})
  np.testing.assert_allclose(schedule(0), 1e-3, rtol=1e-6)


@pytest.mark.parametrize(
  "change, said",
  [
    (dict(kind="linear"), "one of 'mmcls', 'deit', got 'linear'"),
    (dict(warmup_steps=301), "a warm-up of at most 300 steps, .* got 301"),
    (dict(peak=0.0), "peak > 0, .* got 0.0"),
    (dict(peak=float("inf")), "finite learning rates .* got inf"),
    (dict(end=float("nan")), "finite learning rates .* and nan"),
  ],
)
def test_schedule_refuses(change, said):
  with pytest.raises(ValueError, match=said):
    optim.make_schedule(**{**MMCLS, **change})


@pytest.mark.parametrize(
  "change, said",
  [
    # 0 / 0 where a gradient is 0, as for what no loss reaches.
    (dict(eps=0.0), "eps > 0, got 0.0"),
    (dict(b2=1.0), "0 <= optimizer b2 < 1, got 1.0"),
    (dict(weight_decay=-0.1), "weight_decay >= 0, got -0.1"),
    (dict(clip_norm=float("nan")), "clip_norm >= 0, got nan"),
  ],
)
def test_optimizer_refuses(change, said):
  adamw = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, clip_norm=5.0)
  with pytest.raises(ValueError, match=said):
    optim.make_optimizer(lambda step: 1e-3, **{**adamw, **change})


def test_decay_mask_names_every_leaf_that_does_not_decay():
  model = vit.Model(
    4, variant="test/8", pool_type="tok", distilled=True, registers=1,
    layerscale_init=0.1,
  )  # fmt: skip
  student = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))
  )["params"]
  head = heads.ViTKD(8)
  shapes = (1, 2, 4, 6), (1, 4, 6), (1, 2, 4, 8), (1, 4, 8)
  maps = [jnp.zeros(s) for s in shapes]
  head = jax.eval_shape(
    head.init, jax.random.key(0), *maps, jnp.zeros((1, 4), bool)
  )["params"]
  mask = optim.decay_mask({"student": student, "head": head})
  flat, _ = jax.tree_util.tree_flatten_with_path(mask)
  kept = {path[-1].key for path, decays in flat if not decays}
  decayed = {path[-1].key for path, decays in flat if decays}
  assert kept == {
    "bias", "scale", "cls", "dist", "reg", "pos_embedding",
    "layerscale_sa", "layerscale_mlp",
  }  # fmt: skip
  # The mask token decays, as in the reference.
  assert decayed == {"kernel", "mask_token"}


def test_adamw_first_update_with_clip_matches_numpy():
  # Global norm of (3, 4) and 12 is 13, clipped to 6.5: everything halves.
  params = {
    "student": {"kernel": jnp.array([2.0, -1.0]), "bias": jnp.array([1.0])},
    "head": {"mask_token": jnp.array([0.5])},
  }
  grads = {
    "student": {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([0.0])},
    "head": {"mask_token": jnp.array([12.0])},
  }
  lr, decay, eps = 0.1, 0.05, 1e-3
  tx = optim.make_optimizer(
    lambda step: lr,
    b1=0.9,
    b2=0.999,
    eps=eps,
    weight_decay=decay,
    clip_norm=6.5,
  )
  updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)

  def expected(gradient, value, decays):
    g = gradient / 2
    # After one step both moments, unbiased, are g and g^2.
    return -lr * (g / (np.abs(g) + eps) + decays * decay * value)

  np.testing.assert_allclose(
    updates["student"]["kernel"],
    expected(np.array([3.0, 4.0]), np.array([2.0, -1.0]), 1),
    rtol=1e-5,
  )
  np.testing.assert_allclose(updates["student"]["bias"], [0.0], atol=1e-12)
  np.testing.assert_allclose(
    updates["head"]["mask_token"], expected(12.0, 0.5, 1)[None], rtol=1e-5
  )


@pytest.mark.parametrize("clip_norm", [None, 0.0])
def test_no_clipping_where_none_is_asked_for(clip_norm):
  params = {"kernel": jnp.array([1.0])}
  make = lambda clip: optim.make_optimizer(  # noqa: E731
    lambda step: 1.0, b1=0.0, b2=0.0, eps=1e3, weight_decay=0.0, clip_norm=clip
  )
  grads = {"kernel": jnp.array([1e4])}
  tx = make(clip_norm)
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(updates["kernel"], [-1e4 / 1.1e4], rtol=1e-5)


def test_ema_moves_by_the_complement_of_its_decay():
  ema = optim.update_ema({"a": jnp.array(1.0)}, {"a": jnp.array(3.0)}, 0.75)
  np.testing.assert_allclose(ema["a"], 1.5)
