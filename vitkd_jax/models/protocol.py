"""The contract of a backbone: all that the package uses of a model.

`vit.ViT` and `cait.CaiT` keep it. Only `weights`, which maps other libraries'
names, knows their fields.
"""

from typing import Any, Protocol

# Where in a block a model with attention has maps, and after the blocks.
PLACES = ("+mlp", "mlp", "+sa", "sa", "encoded")


class Backbone(Protocol):
  """An image classifier with token maps.

  Attributes:
    num_classes: C; None or 0 for no head.
    patch_size: rows and columns of a patch in pixels; divides those of images.
    width: D of the token maps.
    depth: number of blocks.
    dtype_mm: dtype of matrix products.
  """

  num_classes: int | None
  patch_size: tuple[int, int]
  width: int
  depth: int
  dtype_mm: Any

  @property
  def places(self) -> tuple[str, ...]:
    """Where in a block its maps are: "+mlp", "sa" and so on, and "encoded"."""
    ...

  @property
  def end_widths(self) -> tuple[int, int]:
    """D of the last block's maps, and of `encoded` and `head_input`."""
    ...

  @property
  def has_class_token(self) -> bool:
    """Whether the first token of a map is a CLS token."""
    ...

  def has_linear_head(self) -> bool:
    """Whether one layer makes the logits of `head_input`.

    Its parameters are then {"head": {"kernel": [D, C], "bias": [C]}}.
    """
    ...

  @property
  def num_prefix_tokens(self) -> int:
    """Number of tokens before the patch tokens of a map."""
    ...

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patch tokens.

    Args:
      height: of the image in pixels.
      width: of the image in pixels.
    """
    ...

  def init(self, key: Any, image: Any, /) -> Any:
    """Initial {"params": ...}.

    Args:
      key: random key.
      image: [B, H, W, 3] float32; only its shape matters.
    """
    ...

  # Typed as linen's, which passes any arguments on.
  def apply(self, variables: Any, /, *args: Any, **options: Any) -> Any:
    """Applies the model.

    Args:
      variables: {"params": ...}.
      *args: image, [B, H, W, 3] float32, normalised for this model.
      **options: train=True turns dropout and drop path on; linen's own, such as
        rngs={"dropout": key}.

    Returns:
      Logits [B, C], and by name the token maps
      `encoder.blockNN.{sa,+sa,mlp,+mlp}` and `encoded`, [B, T, D] with
      T = num_prefix_tokens + N, and `head_input` [B, D], which the head reads.
    """
    ...

  @property
  def qkv_heads(self) -> int:
    """Heads of the query, key and value that `with_qkv` shows; 0 for none."""
    ...

  def with_qkv(self) -> "Backbone":
    """The same model, which returns `encoder.blockNN.qkv`, too.

    That is (q, k, v), each [B, T, heads, E], with bias, before the scale of
    the scores.
    """
    ...

  def with_attention(self, form: str) -> "Backbone":
    """The same model, its self-attention in another form where it has any.

    Args:
      form: on a GPU, one of `attention.FORMS`.
    """
    ...

  def forward_flops(self, grid: tuple[int, int]) -> tuple[float, float]:
    """FLOPs of one image's patch embedding, and of the rest of the model.

    Args:
      grid: rows and columns of patch tokens.
    """
    ...

  def frozen(self, params: Any, dtype: str) -> tuple["Backbone", Any]:
    """The same function for a frozen model, in its cheapest form.

    Args:
      params: parameters of this model.
      dtype: of the parameters and matrix products.

    Returns:
      The model, and its parameters in `dtype`.
    """
    ...

  def quick_to_compile(self, params: Any) -> tuple["Backbone", Any]:
    """The same function in a form that compiles fast, to apply it once.

    Args:
      params: parameters of this model.

    Returns:
      The model and its parameters.
    """
    ...
