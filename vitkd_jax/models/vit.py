"""ViT, DeiT, distilled DeiT and DeiT III: image -> (logits, out).

The parameter tree and the keys of `out` are big_vision's, so its checkpoints
and code fit without conversion. Features of DeiT and timm (the exact gelu,
LayerScale, drop path, a distillation token, registers) are fields of the same
module.
"""

import functools
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.models import (
  checks,
  encoder,
  equal,
  flops,
  layers,
  linear,
  posemb,
  protocol,
  variants,
)


class ViT(nn.Module):
  """Vision Transformer; build it with `Model`.

  Attributes:
    num_classes: C; None or 0 for no head.
    patch_size: rows and columns of a patch in pixels.
    width: D.
    depth: number of blocks.
    mlp_dim: hidden width of the MLP; None for 4 D.
    num_heads: attention heads; divides the width.
    posemb: "learn" or "sincos2d".
    rep_size: width of a tanh layer before the head; True for D, False or 0 for
      no such layer.
    dropout: rate after the embedding and in every branch, in [0, 1).
    pool_type: "gap", "map", "tok" (a CLS token), "0" or "none".
    head_zeroinit: the head starts at zero.
    scan: one scanned block with stacked parameters, rematerialised.
    remat_policy: what the scan keeps for the backward pass, a name in
      `jax.checkpoint_policies`.
    dtype_mm: dtype of matrix products; parameters stay float32.
    gelu: "tanh" (big_vision) or "erf" (DeiT, timm, mmpretrain).
    layerscale_init: initial LayerScale; None for no LayerScale.
    drop_path: stochastic depth of the last block, growing linearly from 0, in
      [0, 1).
    distilled: adds a distillation token with its own head; the logits are the
      mean of both heads (arXiv:2012.12877).
    registers: number of register tokens (arXiv:2309.16588).
    init_scheme: "big_vision" or "deit" initialisation.
    class_token: adds a CLS token; None adds one if the pooling is "tok".
    fc_norm: the last LayerNorm follows the pooling ("gap") instead of preceding
      it, as in models fine-tuned from MAE (arXiv:2111.06377).
    norm_eps: added to the variance in every LayerNorm.
    lift: width to which the tokens are projected, in the place of the last
      LayerNorm; the head reads the patches' mean (Lift, arXiv:2511.15572).
    last_width: width of the last block and what follows, with an MLP to match
      (WideLast, arXiv:2511.15572); None for the width of the others.
    last_heads: attention heads of that block; divides its width.
  """

  num_classes: int | None = None
  patch_size: tuple[int, int] = (16, 16)
  width: int = 768
  depth: int = 12
  mlp_dim: int | None = None
  num_heads: int = 12
  posemb: str = "learn"
  rep_size: int | bool = False
  dropout: float = 0.0
  pool_type: str = "gap"
  head_zeroinit: bool = True
  scan: bool = False
  remat_policy: str = "nothing_saveable"
  dtype_mm: Any = "float32"
  gelu: str = "tanh"
  layerscale_init: float | None = None
  drop_path: float = 0.0
  distilled: bool = False
  registers: int = 0
  init_scheme: str = "big_vision"
  class_token: bool | None = None
  fc_norm: bool = False
  norm_eps: float = 1e-6
  lift: int | None = None
  last_width: int | None = None
  last_heads: int | None = None
  show_qkv: bool = False  # see `with_qkv`
  attention: str = "auto"  # see `with_attention`

  places = protocol.PLACES

  @property
  def end_widths(self) -> tuple[int, int]:
    """D of the last block's maps, and of `encoded` and `head_input`."""
    last = self.last_width or self.width
    return last, self.lift or last

  @property
  def has_class_token(self) -> bool:
    """Whether the first token is a CLS token."""
    return self.pool_type == "tok" or bool(self.class_token)

  @property
  def num_prefix_tokens(self) -> int:
    """Tokens before the patch tokens: CLS, distillation, registers."""
    return self.has_class_token + self.distilled + self.registers

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patch tokens.

    Args:
      height: of the image in pixels.
      width: of the image in pixels.
    """
    return height // self.patch_size[0], width // self.patch_size[1]

  def forward_flops(self, grid: tuple[int, int]) -> tuple[float, float]:
    """As `flops.of_vit`.

    Args:
      grid: rows and columns of patch tokens.
    """
    return flops.of_vit(self, grid)

  def has_linear_head(self) -> bool:
    """Whether one layer, `head`, makes the logits of `head_input`."""
    beside = self.distilled or self.rep_size or self.pool_type == "none"
    return bool(self.num_classes) and not beside

  @property
  def qkv_heads(self) -> int:
    """Heads of the query, key and value that `with_qkv` shows."""
    return self.num_heads

  def with_qkv(self) -> "ViT":
    """The same model, with each block's query, key and value in its `out`."""
    return self.clone(show_qkv=True)

  def with_attention(self, form: str) -> "ViT":
    """The same model, its attention computed in another form.

    Args:
      form: on a GPU, one of `attention.FORMS`.
    """
    return self.clone(attention=form)

  def frozen(self, params: Any, dtype: str) -> tuple["ViT", Any]:
    """As `equal.frozen`.

    Args:
      params: parameters of this model.
      dtype: of the parameters and matrix products.
    """
    return equal.frozen(self, params, dtype)

  def quick_to_compile(self, params: Any) -> tuple["ViT", Any]:
    """The same function with scanned blocks, which compiles faster.

    Args:
      params: parameters of this model.

    Returns:
      The model and its parameters.
    """
    if self.last_width:  # blocks that differ
      return self, params
    return self.clone(scan=True), equal.stack_blocks(params)

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Computes logits and intermediate maps.

    Args:
      image: [B, H, W, 3] float32, normalised for this model. Rows and columns
        beyond the last full patch are dropped, as in big_vision.
      train: turns dropout and drop path on, which need the rng "dropout".

    Returns:
      logits: [B, C] float32 (the pooled features [B, D] without a head).
      out: the intermediate maps, with T = num_prefix_tokens + N tokens:
        `stem` [B, h, w, D], `with_posemb` [B, N, D],
        `encoder.blockNN.{sa,+sa,mlp,+mlp}` [B, T, D], `encoder.pre_ln` (the
        last block's `+mlp`), `encoded` [B, T, D] (after the final LayerNorm;
        with `fc_norm` the same as before it, with `lift` the lifted tokens),
        `head_input` [B, D],
        `pre_logits`, `logits`; `pre_logits_2d`, `logits_2d` [B, h, w, .]; and
        `logits_cls`, `logits_dist` [B, C], the two heads of a distilled model.

    Raises:
      ValueError: the image is smaller than a patch.
    """
    out: dict[str, Any] = {}
    x = out["stem"] = layers.patch_embedding(
      image, self.width, self.patch_size, self.init_scheme, self.dtype_mm
    )
    batch, height, width, _ = x.shape
    x = jnp.reshape(x, [batch, height * width, -1])
    posemb = self._posemb((height, width))
    x = out["with_posemb"] = x + linear.spread(posemb, x)
    x = jnp.concatenate([*self._prefix_tokens(batch, x.dtype), x], axis=1)
    x = nn.Dropout(self.dropout)(x, not train)

    x, out["encoder"] = encoder.Encoder(
      depth=self.depth,
      drop_path=self.drop_path,
      scan=self.scan,
      remat_policy=self.remat_policy,
      final_norm=not (self.fc_norm or self.lift),
      norm_eps=self.norm_eps,
      block=dict(
        mlp_dim=self.mlp_dim,
        num_heads=self.num_heads,
        dropout=self.dropout,
        gelu=self.gelu,
        layerscale_init=self.layerscale_init,
        init_scheme=self.init_scheme,
        dtype_mm=self.dtype_mm,
        show_qkv=self.show_qkv,
        attention=self.attention,
      ),
      last_width=self.last_width,
      last_heads=self.last_heads,
      name="Transformer",
    )(x, not train)
    if self.lift:
      x = encoder.Widen(
        self.lift, 1e-5, self.init_scheme, self.dtype_mm, name="lift"
      )(x)
    encoded = out["encoded"] = x
    patches = encoded[:, self.num_prefix_tokens :]
    x_2d = jnp.reshape(patches, [batch, height, width, -1])
    x = self._pool(encoded, patches)
    if self.fc_norm:
      norm = nn.LayerNorm(self.norm_eps, name="fc_norm")
      x, x_2d = norm(x), norm(x_2d)
    out["head_input"] = x
    if self.pool_type == "none":
      del out["head_input"]
    if self.rep_size:
      rep_size = self.width if self.rep_size is True else self.rep_size
      hidden = linear.Dense(rep_size, name="pre_logits")
      x, x_2d = nn.tanh(hidden(x)), nn.tanh(hidden(x_2d))
    out["pre_logits_2d"], out["pre_logits"] = x_2d, x
    if self.num_classes:
      make_head = functools.partial(
        layers.head, self.num_classes, self.head_zeroinit, self.init_scheme
      )
      head = make_head("head")
      out["logits_2d"] = head(x_2d)
      logits = head(x)
      if self.distilled:
        out["logits_cls"] = logits
        out["logits_dist"] = make_head("head_dist")(encoded[:, 1])
        logits = (logits + out["logits_dist"]) / 2
      x = out["logits"] = logits
    return x, out

  def _posemb(self, grid: tuple[int, int]) -> jax.Array:
    if self.posemb == "sincos2d":
      return posemb.sincos_2d(*grid, self.width)
    std = 0.02 if self.init_scheme == "deit" else self.width**-0.5
    return posemb.learned(self, grid, self.width, std)

  def _prefix_tokens(self, batch: int, dtype: Any) -> list[jax.Array]:
    """Each [B, n, D]; DeiT's position embeddings are folded into the tokens."""
    start = 0.02 if self.init_scheme == "deit" else 0.0
    tokens = []
    for name, count, std in (
      ("cls", int(self.has_class_token), start),
      ("dist", int(self.distilled), start),
      ("reg", self.registers, 0.02),  # equal registers would stay equal
    ):
      if count:
        shape = (1, count, self.width)
        token = self.param(name, nn.initializers.normal(std), shape)
        token = einops.repeat(token, "1 n d -> b n d", b=batch)
        tokens.append(token.astype(dtype))  # cast last: see `linear.spread`
    return tokens

  def _pool(self, encoded: jax.Array, patches: jax.Array) -> jax.Array:
    match "gap" if self.lift else self.pool_type:
      case "map":
        return layers.MAPHead(
          self.mlp_dim,
          self.num_heads,
          self.gelu,
          self.norm_eps,
          name="MAPHead_0",
        )(encoded)
      case "gap":
        return jnp.mean(patches, axis=1)
      case "tok" | "0":
        return encoded[:, 0]
    return encoded


# Keyword arguments of `Model`.
FIELDS = tuple(
  name
  for name in ViT.__dataclass_fields__
  if name not in ("num_classes", "parent", "name", "show_qkv", "attention")
)


def Model(
  num_classes: int | None = None,
  *,
  variant: str | None = None,
  **fields: Any,
) -> ViT:
  """Builds the linen module of a variant.

  Args:
    num_classes: C; None or 0 for no head.
    variant: a size ("S/16", exactly big_vision's model) or a timm name
      ("deit3_small_patch16_224"); None for the defaults of `ViT`.
    **fields: of `ViT`; they override the variant's.

  Raises:
    ValueError: an unknown variant or field, an invalid value, heads that do not
      divide the width, or a distillation token without a CLS token.
  """
  fields = variants.arguments("ViT", FIELDS, variant, fields)
  model = ViT(num_classes, **fields)
  checks.check(model)
  return model
