"""The contract of a backbone: all that the package asks a model for.

`vit.ViT` keeps it. What maps other libraries' weights (`weights`) knows ViTs by
their fields; nothing else does.
"""

from typing import Any, Protocol

import jax


class Backbone(Protocol):
  """An image classifier with token maps.

  Attributes:
    num_classes: C; None or 0 for no head.
    patch_size: rows and columns of a patch in pixels; images are a multiple.
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
  def num_prefix_tokens(self) -> int:
    """Tokens of a map that come before those of the patches."""
    ...

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patch tokens for an image of that many pixels."""
    ...

  def init(self, key: jax.Array, image: jax.Array) -> Any:
    """{"params": ...} for images [B, H, W, 3] float32."""
    ...

  def apply(
    self, variables: Any, image: jax.Array, train: bool = False, **options: Any
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(logits [B, C], out).

    Args:
      variables: {"params": ...}.
      image: [B, H, W, 3] float32, normalised for this model.
      train: dropout and drop path are on.
      **options: linen's, such as rngs={"dropout": key}.

    Returns:
      Logits, and the token maps by name: `encoder.blockNN.{sa,+sa,mlp,+mlp}`
      and `encoded`, [B, T, D] with T = num_prefix_tokens + N.
    """
    ...

  def forward_flops(self, grid: tuple[int, int]) -> tuple[float, float]:
    """Of an image's patch embedding, and of all that follows it."""
    ...

  def frozen(self, params: Any, dtype: str) -> tuple["Backbone", Any]:
    """The same function, cheapest to apply: (model, parameters of `dtype`)."""
    ...

  def quick_to_compile(self, params: Any) -> tuple["Backbone", Any]:
    """The same function for whoever applies it once: (model, parameters)."""
    ...
