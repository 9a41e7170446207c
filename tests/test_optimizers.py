"""Each optimiser by hand or against optax's, on any mesh, and resumed."""

import contextlib
import functools
import inspect

import drawn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from small_vit import small

from vitkd_jax.cluster import sharding
from vitkd_jax.models import equal
from vitkd_jax.runs import checkpoint
from vitkd_jax.runs import workdir as workdirs
from vitkd_jax.training import (
  defaults,
  experiment,
  optim,
  optimizer_section,
  optimizers,
)

NAMES = tuple(optimizers.OPTIMIZERS)
LR, DECAY = 0.1, 0.05


def make(name, *, lr=LR, weight_decay=DECAY, clip_norm=0.0, **options):
  return optim.make_optimizer(
    lambda step: lr,
    name=name,
    weight_decay=weight_decay,
    clip_norm=clip_norm,
    **options,
  )


def tree(seed=0, scale=1.0):
  """A matrix that decays, a bias that does not, and a matrix of zeros."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return scale * rng.standard_normal(shape, np.float32)

  return {
    "student": {
      "dense": {"kernel": draw(6, 4), "bias": draw(4)},
      "head": {"kernel": np.zeros((4, 3), np.float32)},
    },
    "methods": {},
  }


def walk(tx, params, grads):
  """The updates of several gradients, each applied before the next."""
  state, found, update = tx.init(params), [], jax.jit(tx.update)
  for gradient in grads:
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    found.append(updates)
  return found


def assert_equal(one, other, **tolerance):
  for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(x, y, **tolerance)


def test_adamw_is_the_default_and_what_it_was_bit_for_bit():
  numbers = dict(b1=0.9, b2=0.999, eps=1e-8)
  was = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      lambda step: LR, **numbers, weight_decay=DECAY, mask=optim.decay_mask
    ),
  )
  params, grads = tree(), [tree(1), tree(2)]
  for now in (
    optim.make_optimizer(
      lambda step: LR, weight_decay=DECAY, clip_norm=1.0, **numbers
    ),
    make("adamw", clip_norm=1.0),
  ):
    assert_equal(walk(now, params, grads), walk(was, params, grads), rtol=0)

    def structure(tx):
      return jax.tree.structure(tx.init(params))

    assert structure(now) == structure(was)


# Of two steps, in float64: (update of the first, update of the second).
def by_hand(name, params, grads, *, decays, **more):
  g0, g1 = (np.float64(g) for g in grads)
  p0, wd = np.float64(params), DECAY * decays
  if name == "lion":
    first = -LR * (np.sign(0.1 * g0) + wd * p0)
    second = np.sign(0.9 * 0.01 * g0 + 0.1 * g1)
    return first, -LR * (second + wd * (p0 + first))
  if name == "sgd":
    first = -LR * (g0 + wd * p0)
    moved = 0.9 * g0 + g1
    if more.get("nesterov"):
      first = -LR * (1.9 * g0 + wd * p0)
      moved = g1 + 0.9 * moved
    return first, -LR * (moved + wd * (p0 + first))
  assert name == "lamb"

  def scaled(direction, p):
    if not (more.get("always_adapt", True) or decays):
      return direction
    ratio = np.linalg.norm(p) / np.linalg.norm(direction)
    return direction * (ratio if np.any(p) and np.any(direction) else 1.0)

  first = -LR * scaled(g0 / (np.abs(g0) + 1e-6) + wd * p0, p0)
  m = (0.9 * 0.1 * g0 + 0.1 * g1) / (1 - 0.9**2)
  v = (0.999 * 0.001 * g0**2 + 0.001 * g1**2) / (1 - 0.999**2)
  p1 = p0 + first
  return first, -LR * scaled(m / (np.sqrt(v) + 1e-6) + wd * p1, p1)


@pytest.mark.parametrize(
  "name, more",
  [
    ("lion", {}),
    ("sgd", {}),
    ("sgd", dict(nesterov=True)),
    ("lamb", {}),
    ("lamb", dict(always_adapt=False)),
  ],
)
def test_two_steps_by_hand(name, more):
  params, grads = tree(), [tree(1), tree(2)]
  grads[0]["student"]["head"]["kernel"][0, 0] = 2.0
  found = walk(make(name, **more), params, grads)
  for part, leaf in (
    ("dense", "kernel"),
    ("dense", "bias"),
    ("head", "kernel"),
  ):

    def of(t, part=part, leaf=leaf):
      return t["student"][part][leaf]

    expected = by_hand(
      name, of(params), map(of, grads), decays=leaf == "kernel", **more
    )
    for got, want in zip(found, expected, strict=True):
      # Adam's second moment after one step: 1 - 0.999 in float32.
      np.testing.assert_allclose(of(got), want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [True, False])
def test_adafactor_is_optaxs_with_decay_times_the_learning_rate(scale):
  own = dict(min_dim_size_to_factor=4, multiply_by_parameter_scale=scale)
  params, grads = tree(), [tree(1), tree(2)]
  theirs = optax.adafactor(
    LR, weight_decay_rate=LR * DECAY, weight_decay_mask=optim.decay_mask, **own
  )
  ours = walk(make("adafactor", **own), params, grads)
  assert_equal(ours, walk(theirs, params, grads), rtol=1e-5, atol=1e-8)
  state = make("adafactor", **own).init(params)
  shapes = {x.shape for x in jax.tree.leaves(state)}
  assert (6, 4) not in shapes  # rows and columns alone
  assert {(6,), (4,)} <= shapes


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adamw():
  params, gradient = tree(), tree(1)
  tx = make("muon", weight_decay=0.0, ns_steps=5)
  (updates,) = walk(tx, params, [gradient])
  update = np.float64(updates["student"]["dense"]["kernel"])
  # Directions of the gradient, all of about one length.
  u, _, v = np.linalg.svd(gradient["student"]["dense"]["kernel"], False)
  lengths = np.diag(u.T @ update @ v.T) / (-LR * 0.2 * np.sqrt(6))
  assert ((lengths > 0.6) & (lengths < 1.3)).all(), lengths
  rest = u.T @ update @ v.T
  np.testing.assert_allclose(rest, np.diag(np.diag(rest)), atol=1e-4)
  # Nadam's first step, (0.9 * 0.1 / 0.19 + 0.1 / 0.1) g over |g|.
  bias = gradient["student"]["dense"]["bias"]
  share = 0.9 * 0.1 / (1 - 0.9**2) + 0.1 / 0.1
  np.testing.assert_allclose(
    updates["student"]["dense"]["bias"], -LR * share * np.sign(bias), rtol=1e-4
  )


def test_which_leaves_muon_takes_for_matrices():
  model = small(pool_type="map", rep_size=7, registers=1)
  student = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))
  )["params"]
  params = {"student": student, "methods": {"mgd": {
    "conv": {"kernel": jnp.zeros((3, 3, 4, 4))},
    "token": jnp.zeros((1, 1, 4)), "align": {"kernel": jnp.zeros((4, 5))},
  }}}  # fmt: skip
  found = jax.tree_util.tree_flatten_with_path(
    optimizers.matrices(params),
    is_leaf=lambda x: isinstance(x, optax.contrib.MuonDimensionNumbers),
  )[0]
  names = {
    jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in found
  }
  attention = "MultiHeadDotProductAttention_0"
  inside = [f"{attention}/{x}" for x in ("query", "key", "value", "out")]
  inside += ["MlpBlock_0/Dense_0", "MlpBlock_0/Dense_1"]
  expected = {
    f"student/{block}/{layer}/kernel"
    for block in (
      "Transformer/encoderblock_0",
      "Transformer/encoderblock_1",
      "MAPHead_0",
    )
    for layer in inside
  }
  expected |= {"student/pre_logits/kernel", "methods/mgd/align/kernel"}
  assert names == expected


def test_muon_is_the_same_for_scanned_blocks():
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    small().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))
  )["params"]

  def draw():
    return jax.tree.map(
      lambda x: rng.standard_normal(x.shape, np.float32), shapes
    )

  params, gradient = draw(), draw()

  def both(stack):
    return (
      {"student": stack(params), "methods": {}},
      [{"student": stack(gradient), "methods": {}}],
    )

  (plain,) = walk(make("muon"), *both(lambda x: x))
  (scanned,) = walk(make("muon"), *both(equal.stack_blocks))
  # Products in another order.
  assert_equal(
    equal.stack_blocks(plain["student"]),
    scanned["student"],
    atol=1e-6,
    rtol=1e-5,
  )


@pytest.mark.parametrize("name", NAMES)
def test_an_update_of_a_finite_gradient_is_finite(name):
  """The step skips no update for its own sake: it relies on this."""

  def least(key):  # the smallest valid eps
    return dict(eps=1e-12 if key == "muon" else 1e-30)

  options = least(name) if "eps" in optimizers.keys(name) else {}
  for params in (tree(0), tree(0, scale=0.0), tree(0, scale=1e-30)):
    for sizes in (
      [0, 0, 0],
      [1e-45, 1e-30, 0],
      [1e17, 0, 1e-38],
      [0, 1e-20, 1],
    ):
      grads = [tree(i, scale=np.float32(size)) for i, size in enumerate(sizes)]
      for updates in walk(make(name, **options), params, grads):
        for leaf in jax.tree.leaves(updates):
          assert np.isfinite(leaf).all(), sizes


@pytest.mark.parametrize(
  "values, said",
  [
    (
      dict(name="lionn"),
      "name to be one of 'adamw', 'lamb', 'lion', 'sgd', 'adafactor', 'muon', "
      "got 'lionn'; the nearest is 'lion'",
    ),
    (dict(lr=0.1), "unknown key config.optimizer.lr; the valid ones are"),
    (
      dict(name="lion", eps=1e-8),
      "config.optimizer.eps=1e-08 is not for lion, which takes clip_norm, "
      "name, layer_decay, weight_decay, b1, b2",
    ),
    (
      dict(momentun=None),
      "key config.optimizer.momentun; the valid ones are clip_norm",
    ),
    (dict(weight_decay=None), "config.optimizer.weight_decay is missing"),
    (dict(name="sgd", nesterov=1), "nesterov to be True or False, got 1"),
    (
      dict(name="sgd", nesterov=True, momentum=0.0),
      "expected optimizer momentum > 0 with nesterov=True, got 0",
    ),
    (dict(name="sgd", momentum=1.0), "0 <= optimizer momentum < 1, got 1.0"),
    # 1 in float32, for which Adam divides 0 by 0.
    (dict(b2=1 - 1e-9), "0 <= optimizer b2 < 1, got 0.999999999"),
    (dict(eps=1e-40), "expected a finite optimizer eps >= 1e-30, got 1e-40"),
    (dict(name="muon", eps=1e-20), "optimizer eps >= 1e-12, got 1e-20"),
    (dict(name="muon", ns_steps=0), "1 <= optimizer ns_steps <= 20, got 0"),
    (dict(name="muon", beta=-0.1), "0 <= optimizer beta < 1, got -0.1"),
    (dict(name="muon", consistent_rms=-1.0), "finite consistent_rms >= 0"),
    (dict(name="adafactor", decay_rate=0.0), "decay_rate < 1, got 0.0"),
    (
      dict(name="adafactor", clipping_threshold=0.5),
      "clipping_threshold >= 1, or 0 for none, got 0.5",
    ),
    (
      dict(name="adafactor", min_dim_size_to_factor=0),
      "integer min_dim_size_to_factor >= 1, got 0",
    ),
    (dict(name="lamb", weight_decay=-1.0), "a finite weight_decay >= 0"),
  ],
)
def test_what_an_optimiser_does_not_take_is_refused(values, said):
  section = dict(weight_decay=0.05, clip_norm=1.0) | values
  with pytest.raises(ValueError, match=r".") as refusal:
    optimizer_section.make(section, lambda step: 1e-3)
  assert said in str(refusal.value)
  assert "\n" not in str(refusal.value)


def test_a_section_is_completed_with_its_optimisers_defaults():
  section = dict(weight_decay=0.05, clip_norm=1.0)
  old = section | dict(b1=0.9, b2=0.999, eps=1e-8)
  new = dict(name="adamw", layer_decay=1.0, **old)
  assert optimizer_section.filled(old) == new
  assert optimizer_section.filled(section) == new
  for name in NAMES:
    found = optimizer_section.filled(section | dict(name=name, b1=None))
    own = optimizers.keys(name)
    assert own.keys() == found.keys() - {"name", "clip_norm", "layer_decay"}
    for key, parameter in own.items():
      if key != "weight_decay":
        assert parameter.default is not inspect.Parameter.empty
        assert found[key] == parameter.default


@pytest.fixture
def one_block(tiny_config):
  """A student alone, of one block: quickly compiled for each optimiser."""
  tiny_config.methods = tiny_config.teachers = {}
  tiny_config.augment = dict(label_smoothing=0.1)
  tiny_config.run.log_every = 1
  tiny_config.student = dict(
    variant="test/7", depth=1, pool_type="tok", head_zeroinit=False
  )
  return tiny_config


def train(parts, state, first, last):
  with contextlib.closing(parts.inputs.train(first)) as batches:
    for _ in range(first, last):
      batch = sharding.global_batch(next(batches), parts.mesh)
      state, report = parts.make_train_step()(state, {}, batch)
      assert not report["bad"].any()
  return state


@pytest.mark.parametrize("name", NAMES[1:])
def test_resumed_and_sharded_runs_equal_the_unbroken_one(
  one_block, name, tmp_path
):
  own = dict(adafactor=dict(min_dim_size_to_factor=16)).get(name, {})
  one_block.optimizer = dict(name=name, weight_decay=0.05, clip_norm=5.0, **own)
  config = ml_collections.ConfigDict(one_block.to_dict())
  one = experiment.build(config, devices=jax.devices()[:1])
  start = jax.device_get(drawn.state(one))
  halfway = train(one, drawn.state(one), 0, 2)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(2, halfway, top1=None)
    checkpoints.wait()
    unbroken = jax.device_get(train(one, halfway, 2, 4))
    restored = checkpoints.restore(one.state_shapes(), one.state_shardings())
  resumed = train(one, restored.state, 2, 4)
  assert_equal(unbroken, resumed, rtol=0)

  config.run.fsdp = 8
  eight = experiment.build(config)
  state = jax.device_put(start, eight.state_shardings())
  large = [x for x in jax.tree.leaves(state.opt_state) if x.size >= 2**12]
  assert large or name == "adafactor"  # rows and columns are small
  for leaf in large:
    assert leaf.addressable_shards[0].data.size == leaf.size / 8
  sharded = jax.device_get(train(eight, state, 0, 4))

  def moved(new):
    return jax.tree.map(np.subtract, new.params, start.params)

  pairs = zip(
    jax.tree_util.tree_leaves_with_path(moved(unbroken)),
    jax.tree.leaves(moved(sharded)),
    strict=True,
  )
  for (path, x), y in pairs:
    where = jax.tree_util.keystr(path)
    # Their gradient is rounding alone, as softmax ignores them.
    if "['key']['bias']" not in where:
      assert np.linalg.norm(x) > 0, where
      error = np.linalg.norm(x - y) / np.linalg.norm(x)
      # Muon makes small directions large, and their rounding with them: 1e-4
      # here. A sign of Lion's may turn where a momentum is rounding alone.
      assert error < (0.1 if name == "lion" else 1e-3), where


def test_a_run_from_before_the_name_existed_goes_on(tmp_path):
  old = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, clip_norm=1.0)
  claim = functools.partial(
    workdirs.claim, str(tmp_path), default=defaults.default
  )
  claim(ml_collections.ConfigDict(dict(run={}, optimizer=old)))
  config = ml_collections.ConfigDict(dict(run={}, optimizer=old))
  claim(optimizer_section.completed(config))
  config.optimizer.name = "lamb"
  with pytest.raises(ValueError, match=r"name was 'adamw' and is 'lamb'"):
    claim(optimizer_section.completed(config))
