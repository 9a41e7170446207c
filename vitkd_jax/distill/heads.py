"""Modules trained beside the student and dropped at export."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.distill import generators, losses, projectors, tokens
from vitkd_jax.models import linear

TERMS = ("mimic", "generation")


class ViTKD(nn.Module):
  """ViTKD's aligners, mask token and generator, and its two loss terms.

  arXiv:2209.02432, sections 3.3 and 3.4.

  Attributes:
    teacher_width: D_t.
    mask_ratio: lambda in [0, 1), the ratio that the mask was drawn with.
    reduction: "sum" (the paper) or "mean", see `losses.mimic`.
    always_align: align even where the widths are equal; otherwise equal widths
      are compared as they are.
    generator: see `generators.generate`; "conv" is the paper's.
    grid: rows and columns of the token map; None for a square one.
    terms: which of "mimic" and "generation" to compute; a term left out has no
      parameters.
    dtype_mm: dtype of matrix products; parameters and losses stay float32.
  """

  teacher_width: int
  mask_ratio: float = losses.MASK_RATIO
  reduction: str = losses.REDUCTION
  always_align: bool = False
  generator: str = "conv"
  grid: tuple[int, int] | None = None
  terms: tuple[str, ...] = TERMS
  dtype_mm: Any = "float32"

  @nn.compact
  def __call__(
    self,
    student_low: jax.Array,
    student_high: jax.Array,
    teacher_low: jax.Array,
    teacher_high: jax.Array,
    mask: jax.Array,
  ) -> dict[str, jax.Array]:
    """{"mimic": [B], "generation": [B]}, float32 and unweighted.

    Args:
      student_low: [B, K, N, D_s] shallow maps.
      student_high: [B, N, D_s] deep map.
      teacher_low: [B, K, N, D_t].
      teacher_high: [B, N, D_t].
      mask: [B, N] bool, True where a token is replaced.

    Raises:
      ValueError: a term is unknown, the teacher's maps are not D_t wide, the
        numbers of tokens or blocks differ, there is no map to mimic, or the
        mask or the grid does not match the tokens.
    """
    self._check(student_low, student_high, teacher_low, teacher_high)
    values: dict[str, Any] = {}
    if "mimic" in self.terms:
      # Map by map: stacking and slicing maps would copy them.
      pairs = zip(
        jnp.unstack(student_low, axis=1),
        jnp.unstack(teacher_low, axis=1),
        strict=True,
      )
      values["mimic"] = sum(
        losses.mimic(
          self._align(student, f"align_low_{i}"),
          teacher,
          reduction=self.reduction,
        )
        for i, (student, teacher) in enumerate(pairs)
      )
    if "generation" in self.terms:
      aligned = self._align(student_high, "align_high")
      values["generation"] = losses.generation(
        self._generate(aligned, mask),
        teacher_high,
        mask,
        mask_ratio=self.mask_ratio,
        reduction=self.reduction,
      )
    return values

  def _align(self, x: jax.Array, name: str) -> jax.Array:
    if x.shape[-1] == self.teacher_width and not self.always_align:
      return x
    return linear.Dense(
      self.teacher_width,
      dtype=self.dtype_mm,
      kernel_init=projectors.kernel_init,
      bias_init=projectors.bias_init(x.shape[-1]),
      name=name,
    )(x)

  def _generate(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, N, D_t] -> the generator's output, with masked tokens replaced."""
    if mask.shape != x.shape[:2]:
      raise ValueError(
        f"expected a mask of shape [B, N] = {x.shape[:2]}, got {mask.shape}"
      )
    rows, columns = self.grid or tokens.square_grid(x.shape[1])
    if rows * columns != x.shape[1]:
      raise ValueError(
        f"expected a grid of {x.shape[1]} tokens, got {rows}x{columns}"
      )
    token = self.param(
      "mask_token", nn.initializers.zeros, (1, 1, self.teacher_width)
    )
    x = jnp.where(mask[..., None], linear.spread(token, x), x)
    return generators.generate(
      x,
      (rows, columns),
      kind=self.generator,
      dtype_mm=self.dtype_mm,
      name="generator",
    )

  def _check(
    self,
    student_low: jax.Array,
    student_high: jax.Array,
    teacher_low: jax.Array,
    teacher_high: jax.Array,
  ) -> None:
    for term in self.terms:
      if term not in TERMS:
        raise ValueError(
          f"expected terms to be among {', '.join(TERMS)}, got {term!r}"
        )
    for name, low, high in (
      ("student", student_low, student_high),
      ("teacher", teacher_low, teacher_high),
    ):
      # A student's maps are aligned one by one, so their widths may differ.
      last = -1 if name == "student" else None
      if (
        low.ndim != 4
        or high.ndim != 3
        or low.shape[2:][:last] != high.shape[1:][:last]
      ):
        raise ValueError(
          f"expected {name}_low [B, K, N, D] and {name}_high [B, N, D], got "
          f"{low.shape} and {high.shape}"
        )
    if teacher_high.shape[-1] != self.teacher_width:
      raise ValueError(
        f"expected the teacher's maps to be teacher_width="
        f"{self.teacher_width} wide, got {teacher_high.shape[-1]}"
      )
    if "mimic" in self.terms and not student_low.shape[1]:
      raise ValueError(
        "expected at least one shallow map to mimic, got student_low with K = 0"
      )
    if student_low.shape[:3] != teacher_low.shape[:3]:
      raise ValueError(
        "expected student_low and teacher_low to have the same blocks and "
        f"tokens, got {student_low.shape} and {teacher_low.shape}; "
        "tokens.resample resamples a teacher's map to the student's grid"
      )
