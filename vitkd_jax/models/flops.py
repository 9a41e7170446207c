"""FLOPs of models."""

import math
from typing import Any


def of_vit(model: Any, grid: tuple[int, int]) -> tuple[float, float]:
  """FLOPs of one image's patch embedding, and of the rest without a MAP head.

  Counts matrix products only, a multiply-add as two FLOPs.

  Args:
    model: a `vit.ViT`.
    grid: rows and columns of patch tokens.
  """
  patches, width = math.prod(grid), model.width
  length = patches + model.num_prefix_tokens
  stem = 2.0 * patches * 3 * math.prod(model.patch_size) * width

  def block(inner: int) -> float:
    hidden = (model.mlp_dim or 4 * width) * inner // width
    dense = 2.0 * length * inner * (4 * inner + 2 * hidden)
    return dense + 4.0 * length**2 * inner

  last, end = model.end_widths
  rest = (model.depth - 1) * block(width) + block(last)
  for inputs, outputs in ((width, model.last_width), (last, model.lift)):
    rest += 2.0 * length * inputs * (outputs or 0)
  rest += 2.0 * end * (model.num_classes or 0) * (1 + model.distilled)
  return stem, rest


def of_cait(model: Any, grid: tuple[int, int]) -> tuple[float, float]:
  """FLOPs of one image's patch embedding, and of the rest.

  As for a ViT. Heads are mixed on their own, as everywhere but on a TPU.

  Args:
    model: a `cait.CaiT`.
    grid: rows and columns of patch tokens.
  """
  patches, width = math.prod(grid), model.width
  stem = 2.0 * patches * 3 * math.prod(model.patch_size) * width
  mlp = 2 * width * (model.mlp_dim or 4 * width)
  block = 2.0 * patches * (4 * width**2 + mlp)
  block += 4.0 * patches**2 * (width + model.num_heads**2)
  last = 2.0 * (2 * width**2 + mlp)  # query, output and MLP of the CLS token
  last += 4.0 * (patches + 1) * (width**2 + width)
  classes = 2.0 * width * (model.num_classes or 0)
  return stem, model.depth * block + model.class_depth * last + classes
