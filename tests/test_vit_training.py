"""Tests of vitkd_jax.models.vit in training: start, scan, dtype, dropout."""

import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from small_vit import (
  DISTILLED,
  SMALL,
  filled,
  flat,
  image,
  nested,
  outputs,
  shapes,
  small,
)

from vitkd_jax.models import vit


def test_start_as_in_deit_and_as_in_big_vision():
  deit = small(**DISTILLED, depth=1, init_scheme="deit", head_zeroinit=False)
  bv = small(pool_type="tok", registers=3, depth=1)
  deit, bv = (
    flat(jax.jit(model.init)(jax.random.key(0), image())["params"])
    for model in (deit, bv)
  )
  for name in ("cls", "pos_embedding", "head/kernel"):
    assert 0.01 < deit[name].std() < 0.03, name
  gamma = deit["Transformer/encoderblock_0/layerscale_mlp"]
  np.testing.assert_array_equal(gamma, np.float32(0.1))
  for name in ("cls", "head/kernel", "head/bias"):
    np.testing.assert_array_equal(bv[name], 0, err_msg=name)
  assert 0.2 < bv["pos_embedding"].std() < 0.3  # 1 / sqrt(16)
  # Registers have no position: equal ones would get equal gradients for ever.
  for leaves in (deit, bv):
    assert not np.array_equal(leaves["reg"][0, 0], leaves["reg"][0, 1])


def test_every_parameter_gets_a_finite_gradient():
  model = small(**DISTILLED)

  @jax.jit
  def run(params, images):
    def total(params):
      logits, _ = model.apply({"params": params}, images)
      return jnp.sum(jnp.square(logits))

    return jax.grad(total)(params)

  leaves = nested(filled(model))
  for scale in (1, 1e4):
    for path, gradient in flat(run(leaves, scale * image())).items():
      assert np.isfinite(gradient).all(), path
      # A bias of all keys shifts every score of a row alike.
      if scale == 1 and "key/bias" not in path:
        assert (gradient != 0).any(), path


def unrolled_from(leaves):
  """A scanned model's leaves under the names of the loop."""
  found = {}
  for path, leaf in leaves.items():
    if "/encoderblock/" in path:
      for i, part in enumerate(leaf):
        found[path.replace("/encoderblock/", f"/encoderblock_{i}/")] = part
    else:
      found[path] = leaf
  return found


@functools.cache
def differentiated(model):
  """Compiled gradients of a scalar of the logits, and `out`."""

  def total(params):
    logits, out = model.apply({"params": params}, image(), train=True)
    return jnp.sum(jnp.square(logits)), out

  return jax.jit(jax.grad(total, has_aux=True))


@pytest.mark.parametrize(
  "policy", ["nothing_saveable", "dots_with_no_batch_dims_saveable"]
)
def test_scan_is_the_loop(policy):
  """Every key of `out` and the gradients, under each remat policy."""
  scanned = small(**DISTILLED, scan=True, remat_policy=policy)
  leaves = filled(scanned)
  gradient, out = map(flat, differentiated(scanned)(nested(leaves)))
  expected_gradient, expected = map(
    flat,
    differentiated(small(**DISTILLED))(nested(unrolled_from(leaves))),
  )
  assert out.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_allclose(out[key], value, atol=1e-5, err_msg=key)
  gradient = unrolled_from(gradient)
  assert gradient.keys() == expected_gradient.keys()
  for key, value in expected_gradient.items():
    scale = np.abs(value).max()
    np.testing.assert_allclose(
      gradient[key], value, atol=1e-5 * max(scale, 1), err_msg=key
    )


def test_bfloat16_computes_narrow_and_keeps_parameters_wide():
  fields = dict(DISTILLED, head_zeroinit=False)
  model = small(**fields, dtype_mm="bfloat16")
  assert {str(leaf.dtype) for leaf in shapes(model).values()} == {"float32"}
  leaves = filled(model)
  logits, out = outputs(model, leaves)
  for key in (
    "stem",
    "with_posemb",
    "encoder/block00/mlp",
    "encoder/block01/+mlp",
  ):
    assert out[key].dtype == jnp.bfloat16, key
  assert logits.dtype == out["encoded"].dtype == jnp.float32
  wide, wide_out = outputs(small(**fields), leaves)
  # 8 bits through two blocks; a wrong cast of statistics costs far more.
  for got, expected in ((logits, wide), (out["encoded"], wide_out["encoded"])):
    error = np.linalg.norm(np.float32(got) - expected)
    assert 0 < error < 0.03 * np.linalg.norm(expected)
  # A frozen teacher's parameters are bfloat16 themselves; logits are not.
  narrow = {k: jnp.asarray(v, jnp.bfloat16) for k, v in leaves.items()}
  logits, _ = outputs(model, narrow)
  assert logits.dtype == jnp.float32


def equations(jaxpr):
  """Those of a program and of all that it calls."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from equations(inner)


@pytest.mark.parametrize("scan", [False, True])
def test_bfloat16_sums_gradients_in_float32(scan):
  """Of the position embedding, tokens, LayerScale and biases: over a batch."""
  fields = dict(
    DISTILLED, head_zeroinit=False, layerscale_init=0.1, registers=2, scan=scan
  )
  model = small(**fields, dtype_mm="bfloat16")
  tree = jax.eval_shape(model.init, jax.random.key(0), image())

  def total(params):
    return jnp.sum(model.apply(params, image())[0])

  sums = [
    equation.invars[0].aval.dtype
    for equation in equations(jax.make_jaxpr(jax.grad(total))(tree).jaxpr)
    if equation.primitive.name == "reduce_sum"
  ]
  assert len(sums) > 20
  assert set(sums) == {np.dtype("float32")}


def test_training_needs_no_key_where_nothing_is_drawn():
  model = small(**DISTILLED)
  train = functools.partial(model.apply, train=True)
  trained, _ = jax.jit(train)({"params": nested(filled(model))}, image())
  tested, _ = outputs(model)
  np.testing.assert_allclose(trained, tested, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("field", ["dropout", "drop_path"])
@pytest.mark.parametrize("scan", [False, True])
def test_randomness_is_for_training_and_needs_a_key(field, scan):
  model = small(pool_type="tok", scan=scan, **{field: 0.5})
  plain = small(pool_type="tok", scan=scan)
  params = {"params": nested(filled(model))}
  images = image(batch=16)  # so that two keys cannot drop the same by chance
  expected, _ = outputs(plain, filled(model), images)
  np.testing.assert_array_equal(outputs(model, None, images)[0], expected)
  with pytest.raises(Exception, match="dropout"):
    jax.eval_shape(lambda p: model.apply(p, images, train=True), params)
  draw = jax.jit(
    lambda key: model.apply(params, images, train=True, rngs={"dropout": key})[
      0
    ]
  )
  first = draw(jax.random.key(0))
  assert np.isfinite(first).all()
  np.testing.assert_array_equal(draw(jax.random.key(0)), first)
  assert (draw(jax.random.key(1)) != first).any()
  assert (first != expected).any()


@pytest.mark.parametrize("scan", [False, True])
def test_drop_path_leaves_whole_branches_out(scan):
  """Rates 0, p/2, p over three blocks, for each example and branch anew."""
  rate, batch = 0.5, 2000
  model = vit.Model(
    None,
    **SMALL | dict(width=4, depth=3, mlp_dim=4, num_heads=1, scan=scan),
    drop_path=rate,
  )
  params = {"params": nested(filled(model, 4, 4))}
  # Equal images: what differs is what was drawn.
  images = np.repeat(image(4, 4, 1), batch, axis=0)
  _, out = jax.jit(
    lambda key: model.apply(params, images, train=True, rngs={"dropout": key})
  )(jax.random.key(0))
  before = np.float32(out["with_posemb"])
  draws = []
  for i in range(3):
    block, share = out["encoder"][f"block{i:02d}"], rate * i / 2
    for branch in ("sa", "mlp"):
      added = np.float32(block[f"+{branch}"]) - before
      before = np.float32(block[f"+{branch}"])
      whole = np.float32(block[branch]) / (1 - share)
      dropped = (added == 0).all(axis=(1, 2))
      np.testing.assert_allclose(
        added[~dropped], whole[~dropped], rtol=1e-4, atol=1e-5
      )
      # 4 standard deviations of a binomial share; 0 in the first block.
      deviation = 4 * math.sqrt(share * (1 - share) / batch)
      assert abs(dropped.mean() - share) <= deviation
      draws.append(dropped)
  assert not np.array_equal(draws[4], draws[5])
