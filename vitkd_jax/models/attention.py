"""Multi-head attention, computed as each platform does it fastest.

Widths are D, tokens T and S, heads H, width of a head E, batch B.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.models.linear import Init, matmul, spread

_Affine = tuple[jax.Array, jax.Array]  # kernel and bias
_QKV = tuple[jax.Array, jax.Array, jax.Array]

# DeiT's `trunc_normal_(std=.02)` truncates at +-2 *absolute*, 100 standard
# deviations, so it is a plain normal.
_DEIT_KERNEL = nn.initializers.normal(0.02)


def kernel_init(init: str) -> Init:
  """The initialiser of linear kernels.

  Args:
    init: scheme, "big_vision" or "deit".
  """
  return {
    "big_vision": nn.initializers.xavier_uniform(),
    "deit": _DEIT_KERNEL,
  }[init]


class Projection(nn.Module):
  """Holds a kernel and a bias under one name; the caller multiplies.

  Attributes:
    matrix: (fan_in, fan_out), the shape for which the kernel is initialised.
    kernel_shape: in which it is stored, as in `DenseGeneral`.
    bias_shape: of the bias.
    kernel_init: initialiser of the kernel.
  """

  matrix: tuple[int, int]
  kernel_shape: tuple[int, ...]
  bias_shape: tuple[int, ...]
  kernel_init: Init

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
      return self.kernel_init(key, self.matrix, jnp.float32).reshape(shape)

    return (
      self.param("kernel", init, self.kernel_shape),
      self.param("bias", nn.initializers.zeros, self.bias_shape),
    )


class Attention(nn.Module):
  """Multi-head attention with `nn.MultiHeadDotProductAttention`'s parameters.

  Query, key and value stay three parameters. The platform that it is compiled
  for decides how the function is computed: `_attend_stacked` on CPU,
  `_attend_fused` on a GPU whose cuDNN can, `_attend_apart` elsewhere.

  Attributes:
    num_heads: H; divides the width.
    init_scheme: "big_vision" or "deit" initialisation.
    dtype_mm: dtype of matrix products.
    show_qkv: return query, key and value beside the result.
    form: of self-attention on a GPU, one of `FORMS`: XLA's own products,
      cuDNN's kernel, or cuDNN's wherever it can be.
  """

  num_heads: int
  init_scheme: str = "big_vision"
  dtype_mm: Any = "float32"
  show_qkv: bool = False
  form: str = "auto"

  @nn.compact
  def __call__(self, query: jax.Array, memory: jax.Array | None = None) -> Any:
    """Attends from `query` to `memory`.

    Args:
      query: [B, T, D].
      memory: [B, S, D]; None for self-attention.

    Returns:
      [B, T, D] in `dtype_mm`; with `show_qkv` that and (q, k, v), each
      [B, T, H, E] with bias, before the scale of the scores.
    """
    parts, out = _affines(
      query.shape[-1], self.num_heads, self.init_scheme, self.dtype_mm
    )
    query = query.astype(self.dtype_mm)
    if memory is not None:
      memory = memory.astype(self.dtype_mm)
      result, qkv = _attend_apart(query, parts, out, memory)
      return (result, qkv) if self.show_qkv else result

    def alone(function: Callable[..., Any]) -> Callable[..., Any]:
      # A branch computes all that it returns, read or not.
      return function if self.show_qkv else lambda *args: function(*args)[0]

    branches = {"cpu": alone(_attend_stacked)}
    width = query.shape[-1] // self.num_heads
    if self.form == "cudnn" or (
      self.form == "auto" and not why_not_cudnn(width, str(query.dtype))
    ):
      branches["cuda"] = alone(_attend_fused)
    return jax.lax.platform_dependent(
      query, parts, out, **branches, default=alone(_attend_apart)
    )


class TalkingHeads(nn.Module):
  """Self-attention whose heads are mixed around the softmax.

  Attention weights are softmax(scores L + l) W + w over the axis of heads
  (arXiv:2003.02436, equation 2; the biases as in arXiv:2103.17239). Parameters
  are those of `Attention`, and `mix_scores` (L, l) and `mix_weights` (W, w).
  No fused kernel computes this, as every head needs the scores of all.

  Attributes:
    num_heads: H; divides the width.
    init_scheme: "big_vision" or "deit" initialisation.
    dtype_mm: dtype of matrix products.
  """

  num_heads: int
  init_scheme: str = "big_vision"
  dtype_mm: Any = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Attends within x.

    Args:
      x: [B, T, D].

    Returns:
      [B, T, D] in `dtype_mm`.
    """
    heads = self.num_heads
    parts, out = _affines(x.shape[-1], heads, self.init_scheme, self.dtype_mm)
    mixes = [
      Projection(
        (heads, heads),
        (heads, heads),
        (heads,),
        kernel_init(self.init_scheme),
        name=name,
      )()
      for name in ("mix_scores", "mix_weights")
    ]
    x = x.astype(self.dtype_mm)
    q, k, v = (_project("btd,dhe->bthe", x, *part) for part in parts)
    y = jax.lax.platform_dependent(
      q, k, v, *mixes, tpu=_talk_folded, default=_talk
    )
    return _project("bthe,hed->btd", y, *out)


def _talk(
  q: jax.Array, k: jax.Array, v: jax.Array, before: _Affine, after: _Affine
) -> jax.Array:
  """Attention of q, k, v [B, T, H, E] with heads mixed as arrays of scores."""
  scores = jnp.einsum("bthe,bshe->bhts", q, k, **_FLOAT32)
  kernel = before[0].astype(jnp.float32) * q.shape[-1] ** -0.5
  scores = jnp.einsum("bhts,hg->bgts", scores, kernel)
  weights = jax.nn.softmax(scores + _over_heads(before[1], scores))
  weights = weights.astype(q.dtype)
  weights = jnp.einsum("bgts,gh->bhts", weights, after[0].astype(q.dtype))
  weights = weights + _over_heads(after[1], weights)
  return jnp.einsum("bhts,bshe->bthe", weights, v)


def _talk_folded(
  q: jax.Array, k: jax.Array, v: jax.Array, before: _Affine, after: _Affine
) -> jax.Array:
  """The same with each mix folded into the large product beside it.

  H times the FLOPs, but of full tiles: a mix alone is a product of width H,
  which leaves a TPU's matrix unit idle. For CaiT-S24 the compiler estimates
  0.55 to 0.78 of `_talk`'s cycles on v4, v5e and v6e.
  """
  kernel = before[0].astype(jnp.float32) * q.shape[-1] ** -0.5
  mixed = jnp.einsum("bthe,hg->bgthe", q, kernel.astype(q.dtype))
  scores = jnp.einsum("bgthe,bshe->bgts", mixed, k, **_FLOAT32)
  weights = jax.nn.softmax(scores + _over_heads(before[1], scores))
  values = v[:, :, None] * after[0].astype(v.dtype)[:, :, None]  # b s g h e
  y = jnp.einsum(
    "bgts,bsghe->bthe", weights.astype(q.dtype), values, **_FLOAT32
  )
  total = jnp.sum(v, axis=1, keepdims=True, dtype=jnp.float32)
  return (y + after[1][:, None] * total).astype(q.dtype)


def _over_heads(bias: jax.Array, like: jax.Array) -> jax.Array:
  """A bias [H] in the shape [B, H, T, S] and the dtype of `like`."""
  return spread(bias[:, None, None], like)


def _affines(
  width: int, heads: int, init_scheme: str, dtype_mm: Any
) -> tuple[list[_Affine], _Affine]:
  """Query, key and value, and the output projection, of the calling module."""
  split = (heads, width // heads)

  def affine(
    name: str, kernel_shape: tuple[int, ...], bias_shape: tuple[int, ...]
  ) -> _Affine:
    kernel, bias = Projection(
      (width, width),
      kernel_shape,
      bias_shape,
      kernel_init(init_scheme),
      name=name,
    )()
    return kernel.astype(dtype_mm), bias

  parts = [
    affine(name, (width, *split), split) for name in ("query", "key", "value")
  ]
  return parts, affine("out", (*split, width), (width,))


def _attend_stacked(
  x: jax.Array, parts: Sequence[_Affine], out: _Affine
) -> tuple[jax.Array, _QKV]:
  """Self-attention of [B, T, D] by few large products, fast on a CPU.

  Query, key and value are one product, and no product has two leading axes.
  They are returned, too.
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
  shown = einops.rearrange(qkv, "b t s h e -> s b t h e")
  return y + spread(bias, y), (shown[0], shown[1], shown[2])


def _attend_apart(
  x: jax.Array,
  parts: Sequence[_Affine],
  out: _Affine,
  memory: jax.Array | None = None,
) -> tuple[jax.Array, _QKV]:
  """Attention from [B, T, D], by default to itself, without merging axes.

  On a TPU, heads of 64 fill half a tile, so merging or splitting them costs a
  copy, a third of DeiT-Tiny's step. Here the compiler chooses the layouts.
  """
  memory = x if memory is None else memory
  q, k, v = (
    _project("btd,dhe->bthe", source, *part)
    for source, part in zip((x, memory, memory), parts, strict=True)
  )
  weights = _weights(jnp.einsum("bthe,bshe->bhts", q, k, **_FLOAT32), q)
  y = jnp.einsum("bhts,bshe->bthe", weights, v)
  return _project("bthe,hed->btd", y, *out), (q, k, v)


def _attend_fused(
  x: jax.Array, parts: Sequence[_Affine], out: _Affine
) -> tuple[jax.Array, _QKV]:
  """Self-attention by cuDNN's kernel, whose scores never leave the chip."""
  q, k, v = (_project("btd,dhe->bthe", x, *part) for part in parts)
  y = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
  return _project("bthe,hed->btd", y, *out), (q, k, v)


FORMS = ("auto", "xla", "cudnn")


@functools.cache
def why_not_cudnn(width: int, dtype: str) -> str:
  """Why this machine's cuDNN cannot compute attention; "" if it can.

  Args:
    width: of a head, E.
    dtype: of query, key and value.
  """
  device = jax.devices()[0]
  if device.platform != "gpu":
    return f"the devices here are of the platform {device.platform}"
  if jnp.dtype(dtype).itemsize != 2:
    return f"it computes in 16 bits, not in {dtype}"
  if float(getattr(device, "compute_capability", 0)) < 8:
    return f"{device.device_kind} is older than compute capability 8.0"
  shape = jax.ShapeDtypeStruct((1, 2, 1, width), dtype)
  attend = functools.partial(
    jax.nn.dot_product_attention, implementation="cudnn"
  )
  try:
    jax.eval_shape(attend, shape, shape, shape)
  except (RuntimeError, NotImplementedError, ValueError) as error:
    return str(error)
  return ""


def _project(
  axes: str, x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> jax.Array:
  y = jnp.einsum(axes, x, kernel)
  return y + spread(bias, y)


_FLOAT32: Any = dict(preferred_element_type=jnp.float32)


def _weights(scores: jax.Array, q: jax.Array) -> jax.Array:
  """softmax(scores / sqrt(E)) in the dtype of q [..., E]."""
  return jax.nn.softmax(scores * q.shape[-1] ** -0.5).astype(q.dtype)
