"""What is known of a model before it runs."""

import dataclasses
import math
from typing import Any

from vitkd_jax.distill import tokens


@dataclasses.dataclass(frozen=True)
class Side:
  """What is known of a model in a training before it runs.

  Attributes:
    width: D of its token maps, but for those at its end, see `width_of`.
    depth: number of blocks.
    grid: rows and columns of its patch tokens.
    num_prefix_tokens: number of tokens before the patch tokens of a map.
    num_classes: C; None or 0 without a head.
    dtype_mm: dtype of its matrix products.
    has_class_token: whether the first prefix token is a CLS token.
    has_head: whether its logits are one linear layer of `View.pooled`.
    places: where in a block its maps are, some of `tokens.PLACES`.
    qkv_heads: heads of the query, key and value of a block; 0 for none.
    last_width: D of the last block's maps; 0 for that of the others.
    end_width: D of "encoded" and of `View.pooled`; 0 for `width`.
  """

  width: int
  depth: int
  grid: tuple[int, int]
  num_prefix_tokens: int = 0
  num_classes: int | None = None
  dtype_mm: Any = "float32"
  has_class_token: bool = False
  has_head: bool = False
  places: tuple[str, ...] = tokens.PLACES
  qkv_heads: int = 0
  last_width: int = 0
  end_width: int = 0

  def width_of(self, block: int, place: str = "+mlp") -> int:
    """D of a token map, and of a CLS token.

    Args:
      block: negative ones count from the last.
      place: see `tokens.PLACES`.
    """
    if place == "encoded":
      return self.end_width or self.width
    last = block % self.depth == self.depth - 1
    return (last and self.last_width) or self.width

  @property
  def pooled_width(self) -> int:
    """D of what the head reads."""
    return self.end_width or self.width

  @property
  def num_tokens(self) -> int:
    """N, the number of its patch tokens."""
    return math.prod(self.grid)


def of(model: Any, image_size: tuple[int, int]) -> Side:
  """What is known of a model before it runs.

  Args:
    model: see `models.protocol.Backbone`; or big_vision's ViT, which lacks most
      of it: its fields tell the rest.
    image_size: (H, W) of its images in pixels.

  """
  known = dict(
    width=model.width,
    depth=model.depth,
    num_classes=model.num_classes,
    dtype_mm=model.dtype_mm,
  )
  if hasattr(model, "end_widths"):
    last, end = model.end_widths
    return Side(
      **known,
      grid=model.grid(*image_size),
      num_prefix_tokens=model.num_prefix_tokens,
      has_class_token=model.has_class_token,
      has_head=model.has_linear_head(),
      places=model.places,
      qkv_heads=model.qkv_heads,
      last_width=last,
      end_width=end,
    )
  class_token = model.pool_type == "tok"
  height, width = (
    side // patch
    for side, patch in zip(image_size, model.patch_size, strict=True)
  )
  return Side(
    **known,
    grid=(height, width),
    num_prefix_tokens=int(class_token),
    has_class_token=class_token,
    has_head=bool(model.num_classes) and not model.rep_size,
  )


def check_grids(method: str, student: Side, name: str, teacher: Side) -> None:
  """Refuses to compare maps on different grids.

  Args:
    method: name of the method that compares them.
    student: what is known of the student.
    name: of the teacher.
    teacher: what is known of it.

  Raises:
    ValueError: the grids differ.
  """
  if teacher.grid != student.grid:
    own, found = ("{}x{}".format(*x.grid) for x in (student, teacher))
    raise ValueError(
      f"expected the token grid of config.teachers.{name} to be the student's "
      f"{own} for config.methods.{method}, got {found}; set config.teachers."
      f"{name}.resample=True to resample its maps"
    )
