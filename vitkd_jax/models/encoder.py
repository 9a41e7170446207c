"""The blocks of a ViT in a row, and the way to another width."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.models import attention, layers, linear


class Widen(nn.Module):
  """A dense layer without bias, and a LayerNorm (arXiv:2511.15572).

  Attributes:
    width: of the output.
    norm_eps: added to the variance in the LayerNorm.
    init_scheme: "big_vision" or "deit" initialisation.
    dtype_mm: dtype of the matrix product.
  """

  width: int
  norm_eps: float
  init_scheme: str
  dtype_mm: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, T, width].

    Args:
      x: [B, T, D].
    """
    init = attention.kernel_init(self.init_scheme)
    kernel = self.param("kernel", init, (x.shape[-1], self.width))
    y = linear.matmul(x.astype(self.dtype_mm), kernel.astype(self.dtype_mm))
    return nn.LayerNorm(self.norm_eps, name="LayerNorm_0")(y)


class Encoder(nn.Module):
  """Blocks and a final LayerNorm; unrolled, or one scan with remat.

  Attributes:
    depth: number of blocks.
    drop_path: rate of the last block, growing linearly from 0, in [0, 1).
    scan: one scanned block with stacked parameters, rematerialised.
    remat_policy: name in `jax.checkpoint_policies`, for the scan.
    final_norm: whether a LayerNorm follows the blocks.
    norm_eps: added to the variance in each LayerNorm.
    block: other fields of `layers.Encoder1DBlock`.
    last_width: of the last block, with an MLP to match; None for D.
    last_heads: of its attention, where it has a width of its own.
  """

  depth: int
  drop_path: float = 0.0
  scan: bool = False
  remat_policy: str = "nothing_saveable"
  final_norm: bool = True
  norm_eps: float = 1e-6
  block: dict[str, Any] | None = None
  last_width: int | None = None
  last_heads: int | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, deterministic: bool = True
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Applies the blocks.

    Args:
      x: [B, T, D].
      deterministic: turns dropout and drop path off.

    Returns:
      [B, T, D], and the maps [B, T, D] by name: `blockNN`, a dict of a block's
      parts, and `pre_ln`.
    """
    out: dict[str, Any] = {}
    # Linear in the depth, as in timm and DeiT: 0 for the first block.
    rates = None
    if self.drop_path:
      steps = self.drop_path * jnp.arange(self.depth)
      rates = (steps / max(self.depth - 1, 1)).astype(jnp.float32)
    fields: dict[str, Any] = {"norm_eps": self.norm_eps, **(self.block or {})}
    if self.scan:
      remat = nn.remat(
        layers.Encoder1DBlock,
        prevent_cse=False,
        static_argnums=(3,),
        policy=getattr(jax.checkpoint_policies, self.remat_policy, None),
      )
      x, parts = nn.scan(
        remat,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0 if self.drop_path else nn.broadcast, nn.broadcast),
        length=self.depth,
      )(name="encoderblock", **fields)(x, rates, deterministic)
      for i in range(self.depth):
        out[f"block{i:02d}"] = jax.tree.map(lambda part, i=i: part[i], parts)
    else:
      for i in range(self.depth):
        if self.last_width is not None and i == self.depth - 1:
          width, hidden = x.shape[-1], fields["mlp_dim"] or 4 * x.shape[-1]
          fields["mlp_dim"] = hidden * self.last_width // width
          fields["num_heads"] = self.last_heads
          widen = Widen(
            self.last_width,
            self.norm_eps,
            fields["init_scheme"],
            fields["dtype_mm"],
            name="widen",
          )
          x = widen(x)
        block = layers.Encoder1DBlock(name=f"encoderblock_{i}", **fields)
        rate = None if rates is None else rates[i]
        x, out[f"block{i:02d}"] = block(x, rate, deterministic)
    out["pre_ln"] = x
    if self.final_norm:
      x = nn.LayerNorm(self.norm_eps, name="encoder_norm")(x)
    return x, out
