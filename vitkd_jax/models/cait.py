"""CaiT, "Going deeper with Image Transformers" (arXiv:2103.17239), frozen.

The blocks see patch tokens alone and let their heads talk; a few class blocks
follow, in which the CLS token attends to itself and to the finished patches.
It is the teacher of several papers on ViTs. Nothing is dropped in training, so
this module fits a teacher and not the authors' training of it.

Parameter names are big_vision's where a ViT has the same part.
"""

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


class CaiT(nn.Module):
  """Class-attention Image Transformer; build it with `Model`.

  Attributes:
    num_classes: C; None or 0 for no head.
    patch_size: rows and columns of a patch in pixels.
    width: D.
    depth: number of blocks of the patch tokens.
    class_depth: number of class blocks after them.
    mlp_dim: hidden width of every MLP; None for 4 D.
    num_heads: attention heads; divides the width.
    gelu: "erf" (the authors, timm) or "tanh".
    layerscale_init: initial LayerScale; None for no LayerScale.
    norm_eps: added to the variance in every LayerNorm.
    scan: one scanned block with stacked parameters, rematerialised; the class
      blocks stay apart.
    dtype_mm: dtype of matrix products; parameters stay float32.
  """

  num_classes: int | None = None
  patch_size: tuple[int, int] = (16, 16)
  width: int = 384
  depth: int = 24
  class_depth: int = 2
  mlp_dim: int | None = None
  num_heads: int = 8
  gelu: str = "erf"
  layerscale_init: float | None = 1e-5
  norm_eps: float = 1e-6
  scan: bool = False
  dtype_mm: Any = "float32"

  places = protocol.PLACES

  @property
  def end_widths(self) -> tuple[int, int]:
    """The width, twice: no map is wider than another."""
    return self.width, self.width

  @property
  def has_class_token(self) -> bool:
    """False: the token maps are of patches alone."""
    return False

  @property
  def qkv_heads(self) -> int:
    """0: heads that talk have no scores of their own to compare."""
    return 0

  def with_attention(self, form: str) -> "CaiT":
    """The same: no other form mixes heads.

    Args:
      form: not used.
    """
    del form
    return self

  def with_qkv(self) -> "CaiT":
    """Not possible: there is nothing to show."""
    raise NotImplementedError("heads that talk have no scores of their own")

  @property
  def num_prefix_tokens(self) -> int:
    """0: the CLS token enters after the blocks."""
    return 0

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patch tokens.

    Args:
      height: of the image in pixels.
      width: of the image in pixels.
    """
    return height // self.patch_size[0], width // self.patch_size[1]

  def forward_flops(self, grid: tuple[int, int]) -> tuple[float, float]:
    """FLOPs of one image's patch embedding, and of the rest.

    Args:
      grid: rows and columns of patch tokens.
    """
    return flops.of_cait(self, grid)

  def has_linear_head(self) -> bool:
    """Whether one layer, `head`, makes the logits of `head_input`."""
    return bool(self.num_classes)

  def frozen(self, params: Any, dtype: str) -> tuple["CaiT", Any]:
    """As `equal.frozen`.

    Args:
      params: parameters of this model.
      dtype: of the parameters and matrix products.
    """
    return equal.frozen(self, params, dtype)

  def quick_to_compile(self, params: Any) -> tuple["CaiT", Any]:
    """The same function with scanned blocks, which compiles faster.

    Args:
      params: parameters of this model.

    Returns:
      The model and its parameters.
    """
    return self.clone(scan=True), equal.stack_blocks(params)

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Computes logits and intermediate maps.

    Args:
      image: [B, H, W, 3] float32, normalised for this model. Rows and columns
        beyond the last full patch are dropped.
      train: changes nothing, as there is no dropout.

    Returns:
      logits: [B, C] float32 (the pooled features [B, D] without a head).
      out: the intermediate maps: `stem` [B, h, w, D]; `with_posemb`,
        `encoder.blockNN.{sa,+sa,mlp,+mlp}`, `encoder.pre_ln` (the last block's
        `+mlp`) and `encoded` (the same after the final LayerNorm), of patch
        tokens, [B, N, D]; `class_encoder.blockNN.{sa,+sa,mlp,+mlp}` of the CLS
        token, [B, 1, D]; `head_input` [B, D], the CLS token after the final
        LayerNorm; and `logits`.

    Raises:
      ValueError: the image is smaller than a patch.
    """
    del train
    out: dict[str, Any] = {}
    x = out["stem"] = layers.patch_embedding(
      image, self.width, self.patch_size, "deit", self.dtype_mm
    )
    batch, height, width, _ = x.shape
    x = jnp.reshape(x, [batch, height * width, -1])
    position = posemb.learned(self, (height, width), self.width, 0.02)
    x = out["with_posemb"] = x + linear.spread(position, x)
    block: Any = dict(
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      gelu=self.gelu,
      layerscale_init=self.layerscale_init,
      init_scheme="deit",
      dtype_mm=self.dtype_mm,
      norm_eps=self.norm_eps,
    )
    x, out["encoder"] = encoder.Encoder(
      depth=self.depth,
      scan=self.scan,
      final_norm=False,
      block=dict(block, talking_heads=True),
      name="Transformer",
    )(x)
    token = self.param("cls", nn.initializers.normal(0.02), (1, 1, self.width))
    token = einops.repeat(token, "1 1 d -> b 1 d", b=batch).astype(x.dtype)
    out["class_encoder"] = {}
    for i in range(self.class_depth):
      token, out["class_encoder"][f"block{i:02d}"] = layers.Encoder1DBlock(
        **block, name=f"classblock_{i}"
      )(token, None, memory=x)
    norm = nn.LayerNorm(self.norm_eps, name="encoder_norm")
    out["encoded"] = norm(x)
    x = out["head_input"] = norm(token)[:, 0]
    if self.num_classes:
      x = out["logits"] = layers.head(self.num_classes, False, "deit", "head")(
        x
      )
    return x, out


# Keyword arguments of `Model`.
FIELDS = tuple(
  name
  for name in CaiT.__dataclass_fields__
  if name not in ("num_classes", "parent", "name")
)


def Model(
  num_classes: int | None = None, *, variant: str | None = None, **fields: Any
) -> CaiT:
  """Builds the linen module of a variant.

  Args:
    num_classes: C; None or 0 for no head.
    variant: a timm name ("cait_s24_224"); None for the defaults of `CaiT`.
    **fields: of `CaiT`; they override the variant's.

  Raises:
    ValueError: an unknown variant or field, an invalid value, or heads that do
      not divide the width.
  """
  fields = variants.arguments("CaiT", FIELDS, variant, fields)
  model = CaiT(num_classes, **fields)
  checks.check_fields(model)
  return model
