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

Affine = tuple[jax.Array, jax.Array]  # kernel and bias
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
    parts, out = affines(
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
      self.form == "auto"
      and query.dtype.itemsize == 2  # else tracing would start JAX's backend
      and not why_not_cudnn(width, str(query.dtype))
    ):
      branches["cuda"] = alone(_attend_fused)
    return jax.lax.platform_dependent(
      query, parts, out, **branches, default=alone(_attend_apart)
    )


def affines(
  width: int, heads: int, init_scheme: str, dtype_mm: Any
) -> tuple[list[Affine], Affine]:
  """Query, key and value, and the output projection, of the calling module.

  Args:
    width: D.
    heads: H.
    init_scheme: "big_vision" or "deit" initialisation.
    dtype_mm: dtype of the kernels returned.
  """
  split = (heads, width // heads)

  def affine(
    name: str, kernel_shape: tuple[int, ...], bias_shape: tuple[int, ...]
  ) -> Affine:
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
  x: jax.Array, parts: Sequence[Affine], out: Affine
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
  weights = _weights(jnp.einsum("bhte,bhse->bhts", q, k, **FLOAT32), q)
  y = jnp.einsum("bhts,bhse->bhte", weights, v)
  y = einops.rearrange(y, "b h t e -> b t (h e)")
  kernel, bias = out
  y = matmul(y, einops.rearrange(kernel, "h e d -> (h e) d"))
  shown = einops.rearrange(qkv, "b t s h e -> s b t h e")
  return y + spread(bias, y), (shown[0], shown[1], shown[2])


def _attend_apart(
  x: jax.Array,
  parts: Sequence[Affine],
  out: Affine,
  memory: jax.Array | None = None,
) -> tuple[jax.Array, _QKV]:
  """Attention from [B, T, D], by default to itself, without merging axes.

  On a TPU, heads of 64 fill half a tile, so merging or splitting them costs a
  copy, a third of DeiT-Tiny's step. Here the compiler chooses the layouts.
  """
  memory = x if memory is None else memory
  q, k, v = (
    project("btd,dhe->bthe", source, *part)
    for source, part in zip((x, memory, memory), parts, strict=True)
  )
  weights = _weights(jnp.einsum("bthe,bshe->bhts", q, k, **FLOAT32), q)
  y = jnp.einsum("bhts,bshe->bthe", weights, v)
  return project("bthe,hed->btd", y, *out), (q, k, v)


@jax.custom_vjp
def _attend_fused(
  x: jax.Array, parts: Sequence[Affine], out: Affine
) -> tuple[jax.Array, _QKV]:
  """Self-attention by cuDNN's kernel, whose scores never leave the chip."""
  q, k, v = (project("btd,dhe->bthe", x, *part) for part in parts)
  y = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
  return project("bthe,hed->btd", y, *out), (q, k, v)


def _attend_padded(
  x: jax.Array, parts: Sequence[Affine], out: Affine
) -> tuple[jax.Array, _QKV]:
  """The same with a token more, which nothing attends to, if T is odd.

  JAX refuses the gradient of cuDNN's attention for an odd T, though cuDNN
  itself does so only with a bias.
  """
  batch, tokens, _ = x.shape
  if odd := tokens % 2:
    x = jnp.pad(x, ((0, 0), (0, odd), (0, 0)))
  q, k, v = (project("btd,dhe->bthe", x, *part) for part in parts)
  y = jax.nn.dot_product_attention(
    q,
    k,
    v,
    key_value_seq_lengths=jnp.full(batch, tokens, "int32") if odd else None,
    implementation="cudnn",
  )
  shown = q[:, :tokens], k[:, :tokens], v[:, :tokens]
  return project("bthe,hed->btd", y, *out)[:, :tokens], shown


_attend_fused.defvjp(
  lambda *args: jax.vjp(_attend_padded, *args),
  lambda backward, cotangents: backward(cotangents),
)


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
  of = jax.ShapeDtypeStruct
  affine = of((width, 1, width), dtype), of((1, width), "float32")
  last = of((1, width, width), dtype), of((width,), "float32")

  def total(x: jax.Array, parts: Sequence[Affine], out: Affine) -> jax.Array:
    return jnp.sum(_attend_fused(x, parts, out)[0])

  try:
    x = of((1, 3, width), dtype)
    jax.eval_shape(jax.grad(total), x, [affine] * 3, last)
  except (RuntimeError, NotImplementedError, ValueError) as error:
    return str(error)
  return ""


def project(
  axes: str, x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> jax.Array:
  """An affine map.

  Args:
    axes: of the product of `x` and `kernel`, as `jnp.einsum` has them.
    x: of any shape.
    kernel: in the dtype of `x`.
    bias: float32, broadcastable to the result.
  """
  y = jnp.einsum(axes, x, kernel)
  return y + spread(bias, y)


FLOAT32: Any = dict(preferred_element_type=jnp.float32)


def _weights(scores: jax.Array, q: jax.Array) -> jax.Array:
  """softmax(scores / sqrt(E)) in the dtype of q [..., E]."""
  return jax.nn.softmax(scores * q.shape[-1] ** -0.5).astype(q.dtype)
