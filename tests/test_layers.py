"""Tests of vitkd_jax.models: layers and attention, and a model by hand."""

import math
import types

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from on_paper import attend, gelu_erf, gelu_tanh, mlp, norm
import pytest
from small_vit import DISTILLED, filled, image, nested, outputs, small

from vitkd_jax.models import attention, layers


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
    y = attend(y, y, block["MultiHeadDotProductAttention_0"])
    out[f"{i}/sa"] = y * block.get("layerscale_sa", 1)
    x = out[f"{i}/+sa"] = x + out[f"{i}/sa"]
    y = mlp(norm(x, block["LayerNorm_1"]), block["MlpBlock_0"], gelu)
    out[f"{i}/mlp"] = y * block.get("layerscale_mlp", 1)
    x = out[f"{i}/+mlp"] = x + out[f"{i}/mlp"]
  x = out["encoded"] = norm(x, p["Transformer"]["encoder_norm"])
  if model.pool_type == "map":
    head = p["MAPHead_0"]
    y = attend(head["probe"][0], x, head["MultiHeadDotProductAttention_0"])
    y = y + mlp(norm(y, head["LayerNorm_0"]), head["MlpBlock_0"], gelu)
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


@pytest.fixture
def without_cudnn(monkeypatch):
  """XLA stands in for cuDNN's kernel, which is not here."""
  attend = jax.nn.dot_product_attention
  monkeypatch.setattr(
    jax.nn,
    "dot_product_attention",
    lambda *args, **options: attend(
      *args, **options | {"implementation": "xla"}
    ),
  )


@pytest.mark.parametrize(
  ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)]
)
def test_the_ways_of_attention_are_one_function(
  dtype, tolerance, without_cudnn
):
  """The other tests run the CPU's alone; TPU and GPU take the others."""
  rng = np.random.default_rng(0)

  def array(*shape):
    return jnp.asarray(rng.standard_normal(shape) / math.sqrt(shape[0]), dtype)

  x = array(2, 5, 12)
  parts = [(array(12, 3, 4), array(3, 4)) for _ in range(3)]
  out = array(3, 4, 12), array(12)
  weight = rng.standard_normal((2, 5, 12))

  def run(attend):
    def total(x, parts, out):
      y, _ = attend(x, parts, out)
      return jnp.sum(weight * jnp.float32(y)), y

    compute = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    return compute(x, parts, out)

  stacked = jax.tree.leaves(run(attention._attend_stacked))
  for way in (attention._attend_apart, attention._attend_fused):
    for one, other in zip(stacked, jax.tree.leaves(run(way)), strict=True):
      assert one.dtype == other.dtype == dtype
      one, other = np.float64(one), np.float64(other)
      # The key's bias has no effect: its gradient is rounding alone.
      scale = max(np.abs(one).max(), 1)
      assert np.abs(one - other).max() <= tolerance * scale


@pytest.fixture
def gpu(monkeypatch, without_cudnn):
  """A GPU, as far as `why_not_cudnn` asks for one."""
  device = types.SimpleNamespace(
    platform="gpu", compute_capability="9.0", device_kind="a card"
  )
  monkeypatch.setattr(jax, "devices", lambda: [device])
  attention.why_not_cudnn.cache_clear()
  yield device
  attention.why_not_cudnn.cache_clear()


def test_what_a_gpu_s_attention_needs(gpu, monkeypatch):
  assert not attention.why_not_cudnn(64, "bfloat16")
  assert "16 bits, not in float32" in attention.why_not_cudnn(64, "float32")

  def refuse(*args, **options):
    raise NotImplementedError("The head dim must be <= 128")

  monkeypatch.setattr(jax.nn, "dot_product_attention", refuse)
  assert "head dim" in attention.why_not_cudnn(512, "bfloat16")
  gpu.compute_capability = "7.5"
  assert "older than compute" in attention.why_not_cudnn(32, "bfloat16")


def test_tracing_in_float32_asks_for_no_device(monkeypatch):
  """Which would start JAX's backend, too early for several processes."""

  def refuse():
    raise AssertionError("asked for devices")

  monkeypatch.setattr(jax, "devices", refuse)
  attention.why_not_cudnn.cache_clear()
  x = jax.ShapeDtypeStruct((2, 5, 12), "float32")
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
  shapes = jax.eval_shape(attention.Attention(3).init, key, x)
  assert shapes["params"]["out"]["bias"].shape == (12,)


def test_dropout_keeps_the_expected_value():
  block = layers.MlpBlock(mlp_dim=64, dropout=0.25)
  x = np.ones((4000, 8), np.float32)
  params = block.init(jax.random.key(0), x)
  expected = block.apply(params, x)[0]
  drawn = block.apply(params, x, False, rngs={"dropout": jax.random.key(1)})
  error = np.abs(drawn.mean(0) - expected)
  assert (error < 4 * np.std(drawn, axis=0) / math.sqrt(len(x)) + 1e-6).all()
  assert np.std(drawn, axis=0).min() > 0
