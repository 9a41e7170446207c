"""A student's leaves by name: frozen ones, and learning rates by layer."""

import contextlib

import drawn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_vit import small

from vitkd_jax import doctor
from vitkd_jax.cluster import sharding
from vitkd_jax.runs import checkpoint
from vitkd_jax.training import experiment, leaves, optim


def shapes(model):
  tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))[
    "params"
  ]
  return traverse_util.flatten_dict(tree, sep="/")


SMALL = shapes(small(pool_type="tok"))
SCANNED = shapes(small(pool_type="tok", scan=True))
MLP = [f"MlpBlock_0/Dense_{i}/{x}" for i in (0, 1) for x in ("kernel", "bias")]


@pytest.mark.parametrize(
  "patterns, expected",
  [
    ((), set()),
    (("embedding/*",), {"embedding/kernel", "embedding/bias"}),
    (("cls", "pos_*"), {"cls", "pos_embedding"}),
    (
      ("Transformer/*_1/MlpBlock_0/**",),
      {f"Transformer/encoderblock_1/{x}" for x in MLP},
    ),
    (
      ("Transformer/encoderblock_?/MlpBlock_0/Dense_0/bias",),
      {f"Transformer/encoderblock_{i}/MlpBlock_0/Dense_0/bias" for i in (0, 1)},
    ),
    (("**/scale",), {x for x in SMALL if x.endswith("/scale")}),
    (("Transformer/**",), {x for x in SMALL if x.startswith("Transformer/")}),
  ],
)
def test_patterns_take_the_leaves_that_they_match(patterns, expected):
  assert leaves.frozen(SMALL, patterns, depth=2) == expected


def test_blocks_that_are_one_leaf_are_frozen_together():
  """By the same names as if they were apart."""
  found = leaves.frozen(SCANNED, ("Transformer/**/Dense_0/*",), depth=2)
  block = "Transformer/encoderblock/MlpBlock_0/Dense_0"
  assert found == {f"{block}/kernel", f"{block}/bias"}
  each = [f"Transformer/encoderblock_{i}/**" for i in (0, 1)]
  found = leaves.frozen(SCANNED, each, depth=2)
  assert found == {x for x in SCANNED if "encoderblock/" in x}


@pytest.mark.parametrize(
  "patterns, names, said",
  [
    (
      ("cls", "embeding/*"),
      SMALL,
      "freeze: 'embeding/*' matches no leaf of the student; the nearest is "
      "'embedding/",
    ),
    (("embedding",), SMALL, "'embedding' matches no leaf"),
    (("*",), {"a/b": 0}, "'*' matches no leaf of the student"),
    (("**",), SMALL, "freeze leaves nothing of the student to train"),
    (
      ("Transformer/encoderblock_0/**",),
      SCANNED,
      "which are one leaf in a scanned student; set config.student.scan=False",
    ),
  ],
)
def test_patterns_that_cannot_be_followed_are_refused(patterns, names, said):
  with pytest.raises(ValueError, match=r".") as refusal:
    leaves.frozen(names, patterns, depth=2)
  assert said in str(refusal.value)


@pytest.mark.parametrize(
  "name, layer",
  [
    ("embedding/kernel", 0),
    ("pos_embedding", 0),
    ("cls", 0),
    ("dist", 0),
    ("reg", 0),
    ("Transformer/encoderblock_0/LayerNorm_0/scale", 1),
    ("Transformer/encoderblock_11/MlpBlock_0/Dense_1/bias", 12),
    ("Transformer/encoder_norm/scale", 13),
    ("fc_norm/bias", 13),
    ("MAPHead_0/probe", 13),
    ("pre_logits/kernel", 13),
    ("head/kernel", 13),
    ("head_dist/bias", 13),
  ],
)
def test_layers_are_counted_from_the_stem_to_the_head(name, layer):
  assert leaves.layers(name, 12) == layer


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd", "muon"])
@pytest.mark.parametrize("scan", [False, True])
def test_an_update_is_scaled_by_its_layer(name, scan):
  rng = np.random.default_rng(0)

  def draw():
    student = {
      k: rng.standard_normal(x.shape, np.float32)
      for k, x in (SCANNED if scan else SMALL).items()
    }
    own = {"mgd": {"kernel": rng.standard_normal((4, 4), np.float32)}}
    nested = traverse_util.unflatten_dict(student, sep="/")
    return {"student": nested, "methods": own}

  params, gradient = draw(), draw()

  def update(layer_decay):
    tx = optim.make_optimizer(
      lambda step: 0.1,
      2,
      name=name,
      weight_decay=0.05,
      clip_norm=1.0,
      layer_decay=layer_decay,
    )
    found, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    return found

  plain, scaled = update(1.0), update(0.5)
  assert jax.tree.map(np.array_equal, *(
    x["methods"] for x in (plain, scaled)
  )) == {"mgd": {"kernel": True}}  # fmt: skip
  plain, scaled = (
    traverse_util.flatten_dict(x["student"], sep="/") for x in (plain, scaled)
  )
  by_layer = {"embedding": 1 / 8, "cls": 1 / 8, "pos_embedding": 1 / 8}
  for key, value in plain.items():
    factor = by_layer.get(key.split("/")[0], 1.0)
    if "encoderblock_" in key:
      factor = 1 / 4 if "encoderblock_0" in key else 1 / 2
    if "encoderblock/" in key:
      axes = (1,) * (value.ndim - 1)
      factor = np.reshape([1 / 4, 1 / 2], (2, *axes)).astype(np.float32)
    # Powers of two are exact, but products are fused in another order.
    np.testing.assert_allclose(
      value * factor, scaled[key], rtol=2e-5, atol=1e-8, err_msg=key
    )


@pytest.mark.parametrize("decay", [0.0, 1.1, -0.5])
def test_a_decay_that_is_none_is_refused(decay):
  with pytest.raises(ValueError, match=rf"0 < .*layer_decay <= 1, got {decay}"):
    leaves.decayed(optax.identity(), decay, 2)


@pytest.fixture
def partly_frozen(tiny_config):
  """A student alone whose embedding and first block are not trained."""
  tiny_config.methods = tiny_config.teachers = {}
  tiny_config.augment = dict(label_smoothing=0.1)
  tiny_config.student = dict(
    variant="test/7",
    depth=2,
    pool_type="tok",
    head_zeroinit=False,
    freeze=("embedding/*", "Transformer/encoderblock_0/**"),
  )
  return tiny_config


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_leaves_stay_and_take_no_state(partly_frozen, name, tmp_path):
  partly_frozen.optimizer = dict(
    name=name, weight_decay=0.05, clip_norm=5.0, layer_decay=0.9
  )
  parts = experiment.build(partly_frozen, devices=jax.devices()[:1])
  state = drawn.state(parts)
  start = jax.device_get(state)
  step = parts.make_train_step()
  with contextlib.closing(parts.inputs.train(0)) as batches:
    taken = [sharding.global_batch(next(batches), parts.mesh) for _ in range(2)]
  state, _ = step(state, {}, taken[0])
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, top1=None)
    checkpoints.wait()
    state, _ = step(state, {}, taken[1])
    restored = checkpoints.restore(
      parts.state_shapes(), parts.state_shardings()
    )
  again, _ = step(restored.state, {}, taken[1])
  state = jax.device_get(state)
  jax.tree.map(np.testing.assert_array_equal, state, jax.device_get(again))
  counts = {True: 0, False: 0}
  for tree in (state.params["student"], state.ema):
    pairs = zip(
      jax.tree_util.tree_leaves_with_path(tree),
      jax.tree.leaves(start.params["student"]),
      strict=True,
    )
    for (path, now), was in pairs:
      where = jax.tree_util.keystr(path)
      name = where.strip("[]'").replace("']['", "/")
      still = name in parts.objective.frozen
      counts[still] += was.size
      assert np.array_equal(now, was) == still, where
  assert counts[True] > 0
  trained, kept = counts[False] // 2, counts[True] // 2
  moments = sum(
    x.size for x in jax.tree.leaves(state.opt_state) if x.shape != (3,)
  )
  assert moments < 2 * trained + 20  # and counters
  whole = jax.tree.leaves(state.params["student"])
  assert trained + kept == sum(x.size for x in whole)


def test_the_doctor_expects_no_gradient_of_frozen_leaves(
  partly_frozen, drawn_state, one_device
):
  found = {x.what: x for x in doctor.examine(partly_frozen)}
  said = found["gradients of the student"]
  assert said.good, said
  assert said.found.endswith("18 are frozen")


def test_a_config_is_told_what_is_wrong(partly_frozen):
  for freeze, said in (
    (("embedding",), "'embedding' matches no leaf of the student"),
    ("embedding/*", "freeze to be a sequence of patterns, got 'embedding/*'"),
    ((3,), "freeze to be a sequence of patterns, got (3,)"),
  ):
    with partly_frozen.ignore_type():
      partly_frozen.student.freeze = freeze
    with pytest.raises(ValueError, match=r".") as refusal:
      experiment.build(partly_frozen)
    assert said in str(refusal.value)
