"""Layers of a ViT encoder, with big_vision's parameter names.

Widths are D, tokens T (prefix and patch tokens together), heads H, batch B.
All parameters are float32; matrix products run in `dtype_mm`.
"""

import functools
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.models.linear import Dense, Init, matmul, spread

# DeiT's `trunc_normal_(std=.02)` cuts at +-2 *absolute*, 100 standard
# deviations out, so that it is a plain normal.
_DEIT_KERNEL = nn.initializers.normal(0.02)


def _gelu_erf(x):
  """The exact gelu as PyTorch computes it; cheaper than jax.nn's erfc.

  Below float32 erf is a tanh, within 6e-5: a TPU's matrix units would wait for
  the polynomials of erf, and for this form they do not.
  """
  if x.dtype not in (jnp.bfloat16, jnp.float16):
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))
  return _gelu_tanh_of_quintic(x)


@jax.custom_jvp
def _gelu_tanh_of_quintic(x):
  y = x.astype(jnp.float32)
  return (y * _normal_cdf(y)).astype(x.dtype)


@_gelu_tanh_of_quintic.defjvp
def _gelu_jvp(primals, tangents):
  (x,), (tangent,) = primals, tangents
  y = x.astype(jnp.float32)
  cdf = _normal_cdf(y)
  slope = cdf + y * jnp.exp(-0.5 * y * y) * np.float32(1 / np.sqrt(2 * np.pi))
  return (y * cdf).astype(x.dtype), tangent * slope.astype(x.dtype)


def _normal_cdf(x):
  """The normal distribution's, within 6e-5; times x within 3e-5.

  The coefficients minimise the latter's maximum; the cubic one alone is the
  "tanh" gelu's, 20 times farther off. Beyond 6 the clip keeps the sign.
  """
  square = jnp.minimum(x * x, 36.0)
  series = 7.97507880e-1 + square * (3.70056500e-2 - 3.51517384e-4 * square)
  return 0.5 + 0.5 * jnp.tanh(x * series)


GELU = {"tanh": functools.partial(nn.gelu, approximate=True), "erf": _gelu_erf}


def kernel_init(init: str) -> Init:
  """The initialiser of linear kernels: "big_vision" or "deit"."""
  return {
    "big_vision": nn.initializers.xavier_uniform(),
    "deit": _DEIT_KERNEL,
  }[init]


def mlp_bias_init(init: str) -> Init:
  """The initialiser of the feed-forward biases."""
  return {
    "big_vision": nn.initializers.normal(stddev=1e-6),
    "deit": nn.initializers.zeros,
  }[init]


class Projection(nn.Module):
  """Holds a kernel and a bias under one name; the caller multiplies.

  The kernel is initialised as the matrix [fan_in, fan_out] that it stands for
  and stored in the shape of `DenseGeneral`.
  """

  matrix: tuple[int, int]
  kernel_shape: tuple[int, ...]
  bias_shape: tuple[int, ...]
  kernel_init: Init

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    def init(key, shape):
      return self.kernel_init(key, self.matrix, jnp.float32).reshape(shape)

    return (
      self.param("kernel", init, self.kernel_shape),
      self.param("bias", nn.initializers.zeros, self.bias_shape),
    )


class Attention(nn.Module):
  """Multi-head attention with `nn.MultiHeadDotProductAttention`'s parameters.

  Query, key and value stay three parameters. The same function is computed in
  one of two ways, by the platform that it is compiled for: see
  `_attend_stacked` and `_attend_apart`.
  """

  num_heads: int
  init_scheme: str = "big_vision"
  dtype_mm: Any = "float32"

  @nn.compact
  def __call__(self, query: jax.Array, memory: jax.Array | None = None):
    """Attends from query [B, T, D] to memory [B, S, D], itself by default."""
    width, heads = query.shape[-1], self.num_heads
    split = (heads, width // heads)

    def projection(name, kernel_shape, bias_shape):
      kernel, bias = Projection(
        (width, width),
        kernel_shape,
        bias_shape,
        kernel_init(self.init_scheme),
        name=name,
      )()
      return kernel.astype(self.dtype_mm), bias

    parts = [
      projection(name, (width, *split), split)
      for name in ("query", "key", "value")
    ]
    out = projection("out", (*split, width), (width,))
    query = query.astype(self.dtype_mm)
    if memory is not None:
      return _attend_apart(query, parts, out, memory.astype(self.dtype_mm))
    return jax.lax.platform_dependent(
      query, parts, out, cpu=_attend_stacked, default=_attend_apart
    )


def _attend_stacked(x, parts, out):
  """Self-attention of [B, T, D] by few large products, which a CPU likes.

  Query, key and value are one product, and no product has two leading axes.
  """
  kernel = jnp.stack([kernel for kernel, _ in parts], axis=1)
  bias = jnp.stack([bias for _, bias in parts])
  qkv = matmul(x, jnp.reshape(kernel, (kernel.shape[0], -1)))
  qkv = jnp.reshape(qkv, (*x.shape[:-1], *kernel.shape[1:]))
  qkv = qkv + spread(bias, qkv)
  q, k, v = einops.rearrange(qkv, "b t s h e -> s b h t e")
  weights = _weights(jnp.einsum("bhte,bhse->bhts", q, k, **_FLOAT32), q)
  y = jnp.einsum("bhts,bhse->bhte", weights, v)
  y = einops.rearrange(y, "b h t e -> b t (h e)")
  kernel, bias = out
  y = matmul(y, einops.rearrange(kernel, "h e d -> (h e) d"))
  return y + spread(bias, y)


def _attend_apart(x, parts, out, memory=None):
  """Attention from [B, T, D], by default to itself, with no axes merged.

  On a TPU heads of 64 fill half a tile: whatever merges or splits them costs a
  copy, a third of DeiT-Tiny's step. The compiler chooses the layouts here.
  """
  memory = x if memory is None else memory
  q, k, v = (
    _project("btd,dhe->bthe", source, *part)
    for source, part in zip((x, memory, memory), parts, strict=True)
  )
  weights = _weights(jnp.einsum("bthe,bshe->bhts", q, k, **_FLOAT32), q)
  y = jnp.einsum("bhts,bshe->bthe", weights, v)
  return _project("bthe,hed->btd", y, *out)


def _project(axes, x, kernel, bias):
  y = jnp.einsum(axes, x, kernel)
  return y + spread(bias, y)


_FLOAT32 = dict(preferred_element_type=jnp.float32)


def _weights(scores, q):
  """softmax(scores / sqrt(E)) in the dtype of q [..., E]."""
  return jax.nn.softmax(scores * q.shape[-1] ** -0.5).astype(q.dtype)


class MlpBlock(nn.Module):
  """Two dense layers around a gelu, whose form is explicit."""

  mlp_dim: int | None = None
  dropout: float = 0.0
  gelu: str = "tanh"
  init_scheme: str = "big_vision"
  dtype_mm: Any = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    width = x.shape[-1]
    dense = functools.partial(
      Dense,
      dtype=self.dtype_mm,
      kernel_init=kernel_init(self.init_scheme),
      bias_init=mlp_bias_init(self.init_scheme),
    )
    x = dense(self.mlp_dim or 4 * width, name="Dense_0")(x)
    x = nn.with_logical_constraint(x, ("act_batch", "act_len", "act_emb"))
    x = GELU[self.gelu](x)
    x = nn.Dropout(self.dropout)(x, deterministic)
    return dense(width, name="Dense_1")(x)


class Encoder1DBlock(nn.Module):
  """One pre-norm block; LayerScale and drop path are off unless asked for."""

  mlp_dim: int | None = None
  num_heads: int = 12
  dropout: float = 0.0
  gelu: str = "tanh"
  layerscale_init: float | None = None
  init_scheme: str = "big_vision"
  dtype_mm: Any = "float32"
  norm_eps: float = 1e-6

  @nn.compact
  def __call__(self, x, drop_path, deterministic: bool = True):
    """Returns the residual stream [B, T, D] and the dict of its parts.

    Args:
      x: [B, T, D].
      drop_path: float32 scalar, the probability that an example's branch is
        left out (arXiv:1603.09382); 0 or None for never.
      deterministic: no dropout and no drop path.
    """
    out = {}

    def branch(y, name):
      if self.layerscale_init is not None:  # arXiv:2103.17239, equation 8
        gamma = self.param(
          f"layerscale_{name}",
          nn.initializers.constant(self.layerscale_init),
          x.shape[-1:],
        )
        y = y * spread(gamma, y)
      out[name] = y
      y = nn.with_logical_constraint(y, ("act_batch", "act_len", "act_emb"))
      y = nn.Dropout(self.dropout)(y, deterministic)
      if drop_path is not None and not deterministic:
        keep = jax.random.bernoulli(
          self.make_rng("dropout"), 1 - drop_path, (y.shape[0], 1, 1)
        )
        y = jnp.where(keep, y / (1 - drop_path).astype(y.dtype), 0)
      return y

    shared = dict(init_scheme=self.init_scheme, dtype_mm=self.dtype_mm)
    x = nn.with_logical_constraint(x, ("act_batch", "act_len", "act_emb"))
    y = Attention(
      self.num_heads, name="MultiHeadDotProductAttention_0", **shared
    )(nn.LayerNorm(self.norm_eps, name="LayerNorm_0")(x))
    x = out["+sa"] = x + branch(y, "sa")
    y = MlpBlock(self.mlp_dim, self.dropout, self.gelu, **shared)(
      nn.LayerNorm(self.norm_eps, name="LayerNorm_1")(x), deterministic
    )
    x = out["+mlp"] = x + branch(y, "mlp")
    x = nn.with_logical_constraint(x, ("act_batch", "act_len", "act_emb"))
    return x, out


class Encoder(nn.Module):
  """Blocks and a final LayerNorm; unrolled, or one scan with remat."""

  depth: int
  drop_path: float = 0.0
  scan: bool = False
  remat_policy: str = "nothing_saveable"
  final_norm: bool = True
  norm_eps: float = 1e-6
  block: dict[str, Any] | None = None

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True):
    out = {}
    # Linear in the depth, as timm and DeiT have it: 0 for the first block.
    rates = self.drop_path * jnp.arange(self.depth) / max(self.depth - 1, 1)
    rates = rates.astype(jnp.float32) if self.drop_path else None
    fields = {"norm_eps": self.norm_eps, **(self.block or {})}
    if self.scan:
      block = nn.remat(
        Encoder1DBlock,
        prevent_cse=False,
        static_argnums=(3,),
        policy=getattr(jax.checkpoint_policies, self.remat_policy, None),
      )
      x, parts = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0 if self.drop_path else nn.broadcast, nn.broadcast),
        length=self.depth,
      )(name="encoderblock", **fields)(x, rates, deterministic)
      for i in range(self.depth):
        out[f"block{i:02d}"] = jax.tree.map(lambda part, i=i: part[i], parts)
    else:
      for i in range(self.depth):
        block = Encoder1DBlock(name=f"encoderblock_{i}", **fields)
        rate = None if rates is None else rates[i]
        x, out[f"block{i:02d}"] = block(x, rate, deterministic)
    out["pre_ln"] = x
    if self.final_norm:
      x = nn.LayerNorm(self.norm_eps, name="encoder_norm")(x)
    return x, out


class MAPHead(nn.Module):
  """Multi-head attention pooling (arXiv:2106.04560): [B, T, D] -> [B, D]."""

  mlp_dim: int | None = None
  num_heads: int = 12
  gelu: str = "tanh"
  norm_eps: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    probe = self.param(
      "probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1])
    )
    probe = einops.repeat(probe, "1 1 d -> b 1 d", b=x.shape[0])
    x = Attention(self.num_heads, name="MultiHeadDotProductAttention_0")(
      probe, x
    )
    x = x + MlpBlock(self.mlp_dim, gelu=self.gelu)(
      nn.LayerNorm(self.norm_eps)(x)
    )
    return x[:, 0]
