"""Tests of vitkd_jax.models: vit, layers and attention."""

import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from vitkd_jax.models import attention, layers, posemb, vit

DEPTH = 2
SMALL = dict(width=16, depth=DEPTH, mlp_dim=24, num_heads=2, patch_size=(4, 4))
C = 5


def image(height=8, width=12, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((batch, height, width, 3), np.float32)


def small(**fields):
  return vit.Model(**dict(num_classes=C) | SMALL | fields)


@functools.cache
def shapes(model, height=8, width=12):
  """{path: ShapeDtypeStruct} of the parameters; nothing is computed."""
  tree = jax.eval_shape(model.init, jax.random.key(0), image(height, width, 1))
  return flat(tree["params"])


def flat(tree):
  return {
    "/".join(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def nested(leaves):
  tree = {}
  for path, leaf in leaves.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


@functools.cache
def filled(model, height=8, width=12):
  """Parameters by path, none of them at its start."""
  rng = np.random.default_rng(0)
  return {
    path: rng.normal(path.endswith("scale"), 0.3, leaf.shape).astype(np.float32)
    for path, leaf in shapes(model, height, width).items()
  }


@functools.cache
def compiled(model):
  return jax.jit(lambda params, image: model.apply({"params": params}, image))


def outputs(model, leaves=None, images=None):
  leaves = filled(model) if leaves is None else leaves
  images = image() if images is None else images
  logits, out = compiled(model)(nested(leaves), images)
  return logits, flat(out)


# By hand: a whole distilled DeiT III in float64.


def norm(x, p):
  """LayerNorm as in the paper, epsilon 1e-6."""
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def attend_by_hand(query, memory, p):
  """One [T, D] over another [S, D], head by head."""
  y = np.zeros_like(query) + p["out"]["bias"]
  for h in range(p["query"]["kernel"].shape[1]):
    q, k, v = (
      x @ p[name]["kernel"][:, h] + p[name]["bias"][h]
      for name, x in (("query", query), ("key", memory), ("value", memory))
    )
    scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
    weights = scores / scores.sum(-1, keepdims=True)
    y += weights @ v @ p["out"]["kernel"][h]
  return y


def gelu_erf(x):
  return x * np.vectorize(lambda t: 0.5 * (1 + math.erf(t / math.sqrt(2))))(x)


def gelu_tanh(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mlp_by_hand(x, p, gelu):
  hidden = gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
  return hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def by_hand(model, p, picture):
  """One image [H, W, 3]: the parts of each block, `encoded` and logits."""
  gelu = {"erf": gelu_erf, "tanh": gelu_tanh}[model.gelu]
  patch, tokens = model.patch_size[0], []
  for i in range(picture.shape[0] // patch):
    for j in range(picture.shape[1] // patch):
      window = picture[i * patch :, j * patch :][:patch, :patch]
      tokens.append(np.einsum("ijc,ijcd->d", window, p["embedding"]["kernel"]))
  x = np.stack(tokens) + p["embedding"]["bias"] + p["pos_embedding"][0]
  prefix = [p[name][0] for name in ("cls", "dist", "reg") if name in p]
  x, out = np.concatenate([*prefix, x]), {}
  for i in range(model.depth):
    block = p["Transformer"][f"encoderblock_{i}"]
    y = norm(x, block["LayerNorm_0"])
    y = attend_by_hand(y, y, block["MultiHeadDotProductAttention_0"])
    out[f"{i}/sa"] = y * block.get("layerscale_sa", 1)
    x = out[f"{i}/+sa"] = x + out[f"{i}/sa"]
    y = mlp_by_hand(norm(x, block["LayerNorm_1"]), block["MlpBlock_0"], gelu)
    out[f"{i}/mlp"] = y * block.get("layerscale_mlp", 1)
    x = out[f"{i}/+mlp"] = x + out[f"{i}/mlp"]
  x = out["encoded"] = norm(x, p["Transformer"]["encoder_norm"])
  if model.pool_type == "map":
    head = p["MAPHead_0"]
    y = attend_by_hand(
      head["probe"][0], x, head["MultiHeadDotProductAttention_0"]
    )
    y = y + mlp_by_hand(norm(y, head["LayerNorm_0"]), head["MlpBlock_0"], gelu)
    pooled = y[0]
  elif model.pool_type == "gap":
    pooled = x[model.num_prefix_tokens :].mean(0)
  else:
    pooled = x[0]
  out["logits"] = pooled @ p["head"]["kernel"] + p["head"]["bias"]
  if model.distilled:
    other = x[1] @ p["head_dist"]["kernel"] + p["head_dist"]["bias"]
    out["logits_cls"], out["logits_dist"] = out["logits"], other
    out["logits"] = (out["logits"] + other) / 2
  return out


DISTILLED = dict(
  pool_type="tok", distilled=True, registers=3, gelu="erf", layerscale_init=0.1
)


@pytest.mark.parametrize(
  "fields",
  [
    pytest.param(DISTILLED, id="distilled_layerscale_registers_erf"),
    pytest.param(dict(registers=2), id="gap_registers_tanh"),
    pytest.param(dict(pool_type="map"), id="map"),
  ],
)
def test_the_whole_model_by_hand(fields):
  """On images that are not square."""
  model = small(**fields)
  params = jax.tree.map(np.float64, nested(filled(model)))
  with jax.default_matmul_precision("highest"):
    logits, out = outputs(model)
  for b, picture in enumerate(np.float64(image())):
    expected = by_hand(model, params, picture)
    np.testing.assert_allclose(logits[b], expected["logits"], atol=1e-5)
    for key, value in expected.items():
      block, slash, place = key.partition("/")
      path = f"encoder/block{int(block):02d}/{place}" if slash else key
      np.testing.assert_allclose(out[path][b], value, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_gelu_by_hand(gelu):
  x = np.concatenate([np.linspace(-6, 6, 101), [-1e4, 0, 1e4]])
  expected = {"erf": gelu_erf, "tanh": gelu_tanh}[gelu](x)
  got, gradient = jax.vmap(jax.value_and_grad(layers.GELU[gelu]))(
    x.astype(np.float32)
  )
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gelu_erf_below_float32_is_off_by_less_than_its_rounding(dtype):
  x = np.concatenate([np.linspace(-12, 12, 4801), [-1e4, -100, 100, 1e4]])
  x = np.float64(jnp.asarray(x, dtype))
  got, gradient = jax.vmap(jax.value_and_grad(layers.GELU["erf"]))(
    jnp.asarray(x, dtype)
  )
  assert str(got.dtype) == str(gradient.dtype) == dtype
  eps = float(jnp.finfo(dtype).eps)
  expected = gelu_erf(x)
  error = np.abs(np.float64(got) - expected)
  assert (error <= 3e-5 + eps * np.abs(expected)).all()
  density = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
  cdf = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
  slope = cdf + x * density
  error = np.abs(np.float64(gradient) - slope)
  assert (error <= 6e-5 + eps * np.abs(slope)).all()


@pytest.mark.parametrize(
  ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)]
)
def test_both_ways_of_attention_are_one_function(dtype, tolerance):
  """The other tests run the CPU's alone; TPU and GPU take the other."""
  rng = np.random.default_rng(0)

  def array(*shape):
    return jnp.asarray(rng.standard_normal(shape) / math.sqrt(shape[0]), dtype)

  x = array(2, 5, 12)
  parts = [(array(12, 3, 4), array(3, 4)) for _ in range(3)]
  out = array(3, 4, 12), array(12)
  weight = rng.standard_normal((2, 5, 12))

  def run(attend):
    def total(x, parts, out):
      y = attend(x, parts, out)
      return jnp.sum(weight * jnp.float32(y)), y

    compute = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    return compute(x, parts, out)

  stacked = jax.tree.leaves(run(attention._attend_stacked))
  apart = jax.tree.leaves(run(attention._attend_apart))
  for one, other in zip(stacked, apart, strict=True):
    assert one.dtype == other.dtype == dtype
    one, other = np.float64(one), np.float64(other)
    # The key's bias has no effect: its gradient is rounding alone.
    scale = max(np.abs(one).max(), 1)
    assert np.abs(one - other).max() <= tolerance * scale


# Parameters and `out`.


def block_names(start, layerscale=False):
  attention = [
    f"MultiHeadDotProductAttention_0/{part}/{leaf}"
    for part in ("query", "key", "value", "out")
    for leaf in ("kernel", "bias")
  ]
  mlp = [
    f"MlpBlock_0/Dense_{i}/{leaf}"
    for i in (0, 1)
    for leaf in ("kernel", "bias")
  ]
  norms = [
    f"LayerNorm_{i}/{leaf}" for i in (0, 1) for leaf in ("scale", "bias")
  ]
  scales = ["layerscale_sa", "layerscale_mlp"] if layerscale else []
  return {f"{start}/{name}" for name in attention + mlp + norms + scales}


EVERYWHERE = {
  "embedding/kernel",
  "embedding/bias",
  "Transformer/encoder_norm/scale",
  "Transformer/encoder_norm/bias",
  "head/kernel",
  "head/bias",
}
UNROLLED = set().union(
  *(block_names(f"Transformer/encoderblock_{i}") for i in range(DEPTH))
)
MAP = {"MAPHead_0/probe"} | {
  name for name in block_names("MAPHead_0") if "LayerNorm_1" not in name
}


@pytest.mark.parametrize(
  "fields, own",
  [
    ({}, UNROLLED | {"pos_embedding"}),
    (dict(posemb="sincos2d"), UNROLLED),
    (dict(pool_type="tok"), UNROLLED | {"pos_embedding", "cls"}),
    (dict(pool_type="map"), UNROLLED | MAP | {"pos_embedding"}),
    (
      dict(rep_size=True),
      UNROLLED | {"pos_embedding", "pre_logits/kernel", "pre_logits/bias"},
    ),
    (
      dict(scan=True),
      block_names("Transformer/encoderblock") | {"pos_embedding"},
    ),
    (
      dict(DISTILLED, scan=True),
      block_names("Transformer/encoderblock", layerscale=True)
      | {"pos_embedding", "cls", "dist", "reg"}
      | {"head_dist/kernel", "head_dist/bias"},
    ),
  ],
)
def test_parameters_are_named_as_big_visions(fields, own):
  assert shapes(small(**fields)).keys() == EVERYWHERE | own


def test_shapes_are_those_of_big_vision():
  found = {path: leaf.shape for path, leaf in shapes(small()).items()}
  block = "Transformer/encoderblock_0"
  attention = f"{block}/MultiHeadDotProductAttention_0"
  assert found["embedding/kernel"] == (4, 4, 3, 16)
  assert found["pos_embedding"] == (1, 6, 16)
  assert found[f"{attention}/query/kernel"] == (16, 2, 8)
  assert found[f"{attention}/query/bias"] == (2, 8)
  assert found[f"{attention}/out/kernel"] == (2, 8, 16)
  assert found[f"{attention}/out/bias"] == (16,)
  assert found[f"{block}/MlpBlock_0/Dense_0/kernel"] == (16, 24)
  scanned = shapes(small(scan=True))
  stacked = scanned["Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"]
  assert stacked.shape == (DEPTH, 16, 24)


POOLED = {"head_input", "pre_logits", "pre_logits_2d", "logits", "logits_2d"}


@pytest.mark.parametrize(
  "fields, prefix, shape",
  [
    (dict(pool_type="gap"), 0, ()),
    (dict(pool_type="map"), 0, ()),
    (dict(pool_type="0"), 0, ()),
    (dict(pool_type="none"), 0, (6,)),
    (dict(pool_type="tok"), 1, ()),
    (dict(pool_type="gap", registers=2), 2, ()),
    (DISTILLED, 5, ()),
  ],
)
def test_keys_and_shapes_of_out(fields, prefix, shape):
  model = small(**fields)
  assert model.num_prefix_tokens == prefix
  assert model.grid(8, 12) == (2, 3)
  logits, out = jax.eval_shape(
    lambda p, x: model.apply({"params": p}, x), nested(shapes(model)), image()
  )
  assert logits.shape == (2, *shape, C)
  expected = {"stem": (2, 2, 3, 16), "with_posemb": (2, 6, 16)}
  for i in range(DEPTH):
    for place in ("sa", "+sa", "mlp", "+mlp"):
      expected[f"encoder/block{i:02d}/{place}"] = (2, 6 + prefix, 16)
  expected["encoder/pre_ln"] = expected["encoded"] = (2, 6 + prefix, 16)
  expected["head_input"] = expected["pre_logits"] = (2, *shape, 16)
  expected["pre_logits_2d"] = (2, 2, 3, 16)
  expected["logits"] = (2, *shape, C)
  expected["logits_2d"] = (2, 2, 3, C)
  if shape:
    del expected["head_input"]
  if model.distilled:
    expected["logits_cls"] = expected["logits_dist"] = (2, C)
  assert {path: leaf.shape for path, leaf in flat(out).items()} == expected


def test_without_a_head_the_features_come_out():
  model = vit.Model(**SMALL)
  leaves = {k: v for k, v in filled(small()).items() if "head" not in k}
  features, out = outputs(model, leaves)
  assert "logits" not in out
  np.testing.assert_array_equal(features, out["head_input"])
  # Of the mean over patches, as big_vision pools.
  np.testing.assert_allclose(features, out["encoded"].mean(1), atol=1e-6)


def test_patch_maps_hold_no_prefix_tokens():
  _, out = outputs(small(**DISTILLED))
  np.testing.assert_array_equal(
    out["pre_logits_2d"].reshape(2, 6, 16), out["encoded"][:, 5:]
  )
  np.testing.assert_array_equal(out["head_input"], out["encoded"][:, 0])
  np.testing.assert_array_equal(
    out["encoder/pre_ln"], out["encoder/block01/+mlp"]
  )


def test_images_do_not_see_one_another():
  logits, _ = outputs(small(**DISTILLED))
  swapped, _ = outputs(small(**DISTILLED), images=image()[::-1].copy())
  np.testing.assert_allclose(swapped, logits[::-1], rtol=1e-5, atol=1e-6)


def test_pixels_beyond_whole_patches_are_dropped():
  wider = np.pad(image(), ((0, 0), (0, 3), (0, 2), (0, 0)), constant_values=9)
  expected, _ = outputs(small(**DISTILLED))
  got, _ = outputs(small(**DISTILLED), images=wider)
  np.testing.assert_array_equal(got, expected)


# Start.


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


# Scan, remat, dtype.


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


# Dropout and drop path.


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


def test_dropout_keeps_the_expected_value():
  block = layers.MlpBlock(mlp_dim=64, dropout=0.25)
  x = np.ones((4000, 8), np.float32)
  params = block.init(jax.random.key(0), x)
  expected = block.apply(params, x)[0]
  drawn = block.apply(params, x, False, rngs={"dropout": jax.random.key(1)})
  error = np.abs(drawn.mean(0) - expected)
  assert (error < 4 * np.std(drawn, axis=0) / math.sqrt(len(x)) + 1e-6).all()
  assert np.std(drawn, axis=0).min() > 0


# Position embeddings.


def keys_kernel(x):
  """Bicubic with a = -1/2 (Keys, 1981), support [-2, 2]."""
  x = abs(x)
  if x < 1:
    return 1.5 * x**3 - 2.5 * x**2 + 1
  return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def cubic_weights(size, new_size):
  """Rows of an anti-aliased bicubic resize in float64, [new_size, size]."""
  scale = new_size / size
  stretch = max(1 / scale, 1)
  weights = np.array(
    [
      [
        keys_kernel((j - ((i + 0.5) / scale - 0.5)) / stretch)
        for j in range(size)
      ]
      for i in range(new_size)
    ]
  )
  return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("grid", [(2, 3), (6, 5), (4, 7)])
def test_resize_posemb_by_hand(grid):
  table = np.random.default_rng(0).standard_normal((4, 4, 8))
  expected = np.einsum(
    "ih,jw,hwd->ijd",
    cubic_weights(4, grid[0]),
    cubic_weights(4, grid[1]),
    table,
  )
  got = jax.jit(lambda x: posemb.resize_posemb(x, grid))(
    table.reshape(1, 16, 8).astype(np.float32)
  )
  np.testing.assert_allclose(got, expected.reshape(1, -1, 8), atol=1e-5)
  ones = posemb.resize_posemb(jnp.ones((1, 16, 8)), grid)
  np.testing.assert_allclose(ones, 1, rtol=1e-6)


def test_resize_posemb_leaves_its_own_grid_alone():
  table = jnp.ones((1, 6, 8))
  assert posemb.resize_posemb(table, (2, 3)) is table
  with pytest.raises(ValueError, match=r"square grid .*2x2, got 6 tokens"):
    posemb.resize_posemb(table, (2, 2))


def test_another_image_size_is_served_by_resizing():
  """At apply, equal to resizing the parameter beforehand; also not square."""
  model = small(pool_type="tok")
  leaves = filled(model, 8, 8)
  resized = dict(leaves)
  resized["pos_embedding"] = posemb.resize_posemb(
    jnp.asarray(leaves["pos_embedding"]), (3, 4)
  )
  images = image(12, 16)
  got, _ = outputs(model, leaves, images)
  expected, _ = outputs(model, resized, images)
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_sincos_by_hand():
  height, width, dim = 2, 3, 12
  expected = np.zeros((height * width, dim))
  for y in range(height):
    for x in range(width):
      for k in range(3):
        omega = 10_000 ** (-k / 2)  # 3 frequencies from 1 to 1/10000
        expected[y * width + x, [k, k + 3, k + 6, k + 9]] = (
          math.sin(x * omega),
          math.cos(x * omega),
          math.sin(y * omega),
          math.cos(y * omega),
        )
  got = posemb.sincos_2d(height, width, dim)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got[0], expected, atol=1e-6)


@pytest.mark.parametrize("dim", [4, 10])
def test_sincos_refuses(dim):
  with pytest.raises(ValueError, match=f"divisible by 4, .*, got {dim}"):
    posemb.sincos_2d(2, 2, dim)


# Building.


def test_fields_override_the_variants():
  model = vit.Model(10, variant="deit3_small_patch16_224", depth=2, gelu="tanh")
  assert (model.width, model.depth, model.gelu) == (384, 2, "tanh")
  assert model.layerscale_init == 1e-6
  plain = vit.Model(10, variant="S/16")
  assert plain == vit.ViT(
    10, width=384, mlp_dim=1536, num_heads=6, patch_size=(16, 16)
  )
  assert vit.Model(10) == vit.ViT(10)


def test_a_patch_size_from_json_is_a_tuple():
  model = small(patch_size=[4, 4])
  assert model == small()
  assert hash(model) == hash(small())


@pytest.mark.parametrize(
  "fields, match",
  [
    (dict(drop_paht=0.1), "unknown model field 'drop_paht'.*'drop_path'"),
    (dict(num_head=2), "unknown model field 'num_head'.*'num_heads'"),
    (dict(variant="deit_tny_patch16_224"), "deit_tiny_patch16_224"),
    (dict(gelu="exact"), "gelu='exact': expected one of 'tanh', 'erf'"),
    (dict(pool_type="cls"), "pool_type='cls'.*'gap', 'map', 'tok'"),
    (dict(posemb="rope"), "posemb='rope'.*'learn', 'sincos2d'"),
    (dict(init_scheme="timm"), "init_scheme='timm'.*'deit'"),
    (dict(remat_policy="dots"), "remat_policy='dots'.*dots_saveable"),
    (dict(remat_policy="save_only_these_names"), "nothing_saveable"),
    (dict(num_heads=3), "width 16 is not divisible by num_heads 3"),
    (dict(distilled=True), "distilled=True needs pool_type='tok', got 'gap'"),
    (dict(drop_path=1.0), r"drop_path=1.0: expected a rate in \[0, 1\)"),
    (dict(dropout=-0.1), r"dropout=-0.1: expected a rate in \[0, 1\)"),
    (dict(dropout="0.1"), "dropout='0.1': expected a rate"),
    (dict(depth="abc"), r"depth='abc': expected an integer in \[1, "),
    (dict(depth=10**6), r"depth=1000000: expected .*\[1, 512\]"),
    (dict(width=1 << 40, num_heads=1), r"width=.*\[1, 32768\]"),
    (dict(patch_size=(1 << 20, 1)), r"patch_size=.*\[1, 4096\]"),
    (dict(num_classes=10**9), r"num_classes=.*\[0, 10000000\]"),
    (dict(dtype_mm=[["a"]]), "dtype_mm="),
    (dict(depth=0), r"depth=0: expected an integer in \[1, "),
    (dict(depth=True), "depth=True: expected an integer"),
    (dict(width=16.0), "width=16.0: expected an integer"),
    (dict(num_heads=0), r"num_heads=0: expected an integer in \[1, "),
    (dict(num_heads=-2), "num_heads=-2"),
    (dict(registers=-1), r"registers=-1: expected an integer in \[0, "),
    (dict(mlp_dim=0), "mlp_dim=0"),
    (dict(patch_size=16), "patch_size=16: expected rows and columns"),
    (dict(patch_size=(16,)), r"patch_size=\(16,\): expected rows and columns"),
    (
      dict(patch_size=(0, 0)),
      r"patch_size=\(0, 0\): expected rows and columns",
    ),
    (dict(scan="yes"), "scan='yes': expected True or False"),
    (dict(rep_size=-3), "rep_size=-3: expected True, False or a width"),
    (
      dict(layerscale_init="a"),
      "layerscale_init='a': expected a finite number",
    ),
    (dict(dtype_mm="float33"), "dtype_mm='float33': expected one of float32"),
    (dict(dtype_mm="int32"), "dtype_mm='int32': expected one of float32"),
    (dict(dtype_mm=None), "dtype_mm=None: expected one of float32"),
    (dict(num_classes=-3), "num_classes=-3: expected an integer"),
    (dict(num_classes="abc"), "num_classes='abc': expected an integer"),
  ],
)
def test_model_refuses(fields, match):
  with pytest.raises(ValueError, match=match):
    small(**fields)


def test_an_image_below_a_patch_is_refused():
  with pytest.raises(ValueError, match="image of 3x8 pixels is smaller than"):
    shapes(small(), 3, 8)
