"""Layers of a ViT encoder, with big_vision's parameter names.

Widths are D, tokens T (prefix and patch tokens together), heads H, batch B.
All parameters are float32; matrix products run in `dtype_mm`.
"""

from collections.abc import Callable
import functools
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.models.attention import Attention, kernel_init
from vitkd_jax.models.linear import Conv, Dense, Init, spread
from vitkd_jax.models.talking import TalkingHeads


def _gelu_erf(x: jax.Array) -> jax.Array:
  """The exact gelu as PyTorch computes it; cheaper than jax.nn's erfc.

  In 16 bits a tanh replaces erf, within 6e-5: a TPU's matrix units would wait
  for the polynomials of erf, but not for this form.
  """
  if x.dtype not in (jnp.bfloat16, jnp.float16):
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))
  return _gelu_tanh_of_quintic(x)


@jax.custom_jvp
def _gelu_tanh_of_quintic(x: jax.Array) -> jax.Array:
  y = x.astype(jnp.float32)
  return (y * _normal_cdf(y)).astype(x.dtype)


@_gelu_tanh_of_quintic.defjvp
def _gelu_jvp(primals, tangents):
  (x,), (tangent,) = primals, tangents
  y = x.astype(jnp.float32)
  cdf = _normal_cdf(y)
  slope = cdf + y * jnp.exp(-0.5 * y * y) * np.float32(1 / np.sqrt(2 * np.pi))
  return (y * cdf).astype(x.dtype), tangent * slope.astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
  """The normal distribution's CDF, within 6e-5; times x, within 3e-5.

  The coefficients minimise the maximum error of the latter; up to the cubic
  term this is the "tanh" gelu, whose error is 20 times larger. The clip keeps
  the sign beyond |x| = 6.
  """
  square = jnp.minimum(x * x, 36.0)
  series = 7.97507880e-1 + square * (3.70056500e-2 - 3.51517384e-4 * square)
  return 0.5 + 0.5 * jnp.tanh(x * series)


GELU: dict[str, Callable[[jax.Array], jax.Array]] = {
  "tanh": functools.partial(nn.gelu, approximate=True),
  "erf": _gelu_erf,
}


def mlp_bias_init(init: str) -> Init:
  """The initialiser of the feed-forward biases.

  Args:
    init: scheme, "big_vision" or "deit".
  """
  return {
    "big_vision": nn.initializers.normal(stddev=1e-6),
    "deit": nn.initializers.zeros,
  }[init]


def patch_embedding(
  image: jax.Array,
  width: int,
  patch_size: tuple[int, int],
  init_scheme: str,
  dtype_mm: Any,
) -> jax.Array:
  """[B, h, w, D] by a convolution `embedding` of the calling module.

  Args:
    image: [B, H, W, 3].
    width: D.
    patch_size: rows and columns of a patch in pixels.
    init_scheme: "big_vision" or "deit" initialisation.
    dtype_mm: dtype of matrix products.

  Raises:
    ValueError: the image is smaller than a patch.
  """
  rows, columns = image.shape[1:3]
  if rows < patch_size[0] or columns < patch_size[1]:
    raise ValueError(
      f"image of {rows}x{columns} pixels is smaller than a patch of "
      f"{patch_size[0]}x{patch_size[1]}; choose a smaller patch_size"
    )
  init: dict[str, Any] = {}
  if init_scheme == "deit":  # PyTorch's default for a convolution
    init["kernel_init"] = nn.initializers.variance_scaling(
      1 / 3, "fan_in", "uniform"
    )
  return Conv(
    width,
    patch_size,
    strides=patch_size,
    padding="VALID",
    dtype=dtype_mm,
    name="embedding",
    **init,
  )(jnp.asarray(image, dtype_mm))


class MlpBlock(nn.Module):
  """Two dense layers with a gelu between them.

  Attributes:
    mlp_dim: hidden width; None for 4 D.
    dropout: rate after the gelu, in [0, 1).
    gelu: key of `GELU`.
    init_scheme: "big_vision" or "deit" initialisation.
    dtype_mm: dtype of matrix products.
  """

  mlp_dim: int | None = None
  dropout: float = 0.0
  gelu: str = "tanh"
  init_scheme: str = "big_vision"
  dtype_mm: Any = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    """Applies the layers.

    Args:
      x: [B, T, D].
      deterministic: turns dropout off.

    Returns:
      [B, T, D] in `dtype_mm`.
    """
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
  """One pre-norm block, by default without LayerScale and drop path.

  Attributes:
    mlp_dim: hidden width of the MLP; None for 4 D.
    num_heads: attention heads; divides the width.
    dropout: rate in each branch, in [0, 1).
    gelu: key of `GELU`.
    layerscale_init: initial LayerScale; None for no LayerScale.
    init_scheme: "big_vision" or "deit" initialisation.
    dtype_mm: dtype of matrix products.
    norm_eps: added to the variance in each LayerNorm.
    show_qkv: return query, key and value among the parts; not of talking heads.
    talking_heads: self-attention mixes its heads, see `TalkingHeads`.
    attention: form of self-attention on a GPU, one of `attention.FORMS`.
  """

  mlp_dim: int | None = None
  num_heads: int = 12
  dropout: float = 0.0
  gelu: str = "tanh"
  layerscale_init: float | None = None
  init_scheme: str = "big_vision"
  dtype_mm: Any = "float32"
  norm_eps: float = 1e-6
  show_qkv: bool = False
  talking_heads: bool = False
  attention: str = "auto"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    drop_path: jax.Array | None,
    deterministic: bool = True,
    memory: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Applies the block.

    Args:
      x: [B, T, D].
      drop_path: float32 scalar, the probability that an example skips a branch
        (arXiv:1603.09382); 0 or None for never.
      deterministic: turns dropout and drop path off.
      memory: [B, S, D], further tokens that x attends to and that stay as they
        are (class attention, arXiv:2103.17239); None for self-attention.

    Returns:
      The residual stream [B, T, D], and its parts `sa`, `+sa`, `mlp`, `+mlp`,
      each [B, T, D]; with `show_qkv` also `qkv`, three of [B, T, H, D / H].
    """
    out: dict[str, Any] = {}

    def branch(y: jax.Array, name: str) -> jax.Array:
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

    shared: Any = dict(init_scheme=self.init_scheme, dtype_mm=self.dtype_mm)
    x = nn.with_logical_constraint(x, ("act_batch", "act_len", "act_emb"))
    kind: Any = functools.partial(
      Attention, show_qkv=self.show_qkv, form=self.attention
    )
    if self.talking_heads:
      kind = TalkingHeads
    attention = kind(
      self.num_heads, name="MultiHeadDotProductAttention_0", **shared
    )
    norm = nn.LayerNorm(self.norm_eps, name="LayerNorm_0")
    y = norm(x)
    if memory is None:
      y = attention(y)
    else:
      y = attention(y, jnp.concatenate([y, norm(memory)], axis=1))
    if self.show_qkv:
      y, out["qkv"] = y
    x = out["+sa"] = x + branch(y, "sa")
    y = MlpBlock(self.mlp_dim, self.dropout, self.gelu, **shared)(
      nn.LayerNorm(self.norm_eps, name="LayerNorm_1")(x), deterministic
    )
    x = out["+mlp"] = x + branch(y, "mlp")
    x = nn.with_logical_constraint(x, ("act_batch", "act_len", "act_emb"))
    return x, out


def head(num_classes: int, zeroinit: bool, scheme: str, name: str) -> Dense:
  """A classification head, float32 even if a frozen model's parameters are not.

  Args:
    num_classes: C.
    zeroinit: start at zero.
    scheme: "big_vision" or "deit" initialisation.
    name: of the layer.
  """
  if zeroinit:
    init = nn.initializers.zeros
  elif scheme == "deit":
    init = nn.initializers.normal(0.02)
  else:
    init = nn.initializers.lecun_normal()
  return Dense(num_classes, dtype=jnp.float32, kernel_init=init, name=name)


class MAPHead(nn.Module):
  """Multi-head attention pooling (arXiv:2106.04560).

  Attributes:
    mlp_dim: hidden width of the MLP; None for 4 D.
    num_heads: attention heads; divides the width.
    gelu: key of `GELU`.
    norm_eps: added to the variance in the LayerNorm.
  """

  mlp_dim: int | None = None
  num_heads: int = 12
  gelu: str = "tanh"
  norm_eps: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, D]: the pooled tokens.

    Args:
      x: [B, T, D].
    """
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
