"""ViTKD (arXiv:2209.02432): shallow maps are mimicked, the deep one generated.

After the authors' code, github.com/yzd-v/cls_KD, branch `master`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.distill import forms, generators, heads, losses, tokens
from vitkd_jax.distill.losses import arrays
from vitkd_jax.distill.view import Label, Needs, Side, Taps, View, check_maps


class ViTKD(nn.Module):
  """Squared distances of token maps: `mimic` low, `generation` high.

  Its parameters are those of `heads.ViTKD`, trained beside the student.

  Attributes:
    low_blocks: blocks whose maps are mimicked; negative ones count from the
      last.
    low_place: where in them: "+mlp" or "+sa" (residual stream), "mlp" or "sa".
    high_block: block of the generated map; unused with "encoded".
    high_place: as `low_place`, or "encoded" (after the last LayerNorm).
    mask_ratio: lambda in [0, 1), the ratio of tokens that are replaced.
    reduction: "sum" (the paper) or "mean", see `losses.mimic`.
    always_align: align even where the widths are equal; otherwise equal widths
      are compared as they are.
    generator: "conv" (the paper), "self_attention" or "cross_attention", see
      `generators.generate`.
    only: the terms to compute.
  """

  terms = {"mimic": 3e-5, "generation": 3e-6}  # noqa: RUF012, read only
  low_blocks: Sequence[int] = (0, 1)
  low_place: str = "+mlp"
  high_block: int = -1
  high_place: str = "encoded"
  mask_ratio: float = losses.MASK_RATIO
  reduction: str = losses.REDUCTION
  always_align: bool = False
  generator: str = "conv"
  only: tuple[str, ...] = heads.TERMS

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The low maps and the high one, of both.

    Args:
      fields: of this class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: a field is out of its range, or a model lacks a block.
    """
    forms.check_mask_ratio(fields.mask_ratio)
    arrays.check_known("reduction", fields.reduction, losses.REDUCTIONS)
    arrays.check_known("generator", fields.generator, generators.KINDS)
    if fields.low_place == "encoded":
      raise ValueError(
        "expected low_place in a block, such as '+mlp', got 'encoded', which "
        "is after the last block"
      )
    if not fields.low_blocks:
      raise ValueError("expected at least one block in low_blocks, got none")
    maps = (
      *((block, fields.low_place) for block in fields.low_blocks),
      (fields.high_block, fields.high_place),
    )
    check_maps(min(student, teacher, key=lambda side: side.depth), maps)
    for who, side, each in (
      ("student", student, maps[:-1]),
      ("teacher", teacher, maps),
    ):
      widths = {side.width_of(*place) for place in each}
      if len(widths) > 1:
        raise ValueError(
          f"expected maps of the {who} of one width, got "
          f"{' and '.join(map(str, sorted(widths)))}"
        )
    return Needs(Taps(maps=maps), Taps(maps=maps))

  def draws(
    self, key: jax.Array, batch: int, student: Side
  ) -> dict[str, jax.Array]:
    """The tokens to replace: {"mask": bool [B, N]}.

    Args:
      key: typed PRNG key.
      batch: B.
      student: the student.
    """
    ratio = self.mask_ratio
    return {"mask": tokens.random_mask(key, batch, student.num_tokens, ratio)}

  @nn.compact
  def __call__(
    self,
    student: View,
    teacher: View,
    label: Label,
    draws: dict[str, jax.Array],
  ) -> dict[str, jax.Array]:
    """{"mimic": [B], "generation": [B]}, of them those in `only`.

    Args:
      student: the student's view.
      teacher: the teacher's; its maps are resampled to the student's grid.
      label: not used.
      draws: from `draws`.
    """
    del label
    head = heads.ViTKD(
      teacher.side.width_of(self.high_block, self.high_place),
      mask_ratio=self.mask_ratio,
      reduction=self.reduction,
      always_align=self.always_align,
      generator=self.generator,
      grid=student.side.grid,
      terms=self.only,
      dtype_mm=student.side.dtype_mm,
    )
    nn.share_scope(self, head)
    low, high = self._maps(teacher)
    grids = teacher.side.grid, student.side.grid
    low, high = tokens.resample(low, *grids), tokens.resample(high, *grids)
    return head(*self._maps(student), low, high, draws["mask"])

  def generates(self) -> dict[str, tuple[int, str]]:
    """{submodule: (block, place)} of the generated map."""
    if "generation" not in self.only:
      return {}
    name = generators.output(self.generator, "generator")
    return {name: (self.high_block, self.high_place)}

  def mimics(self) -> dict[str, tuple[int, str]]:
    """{submodule: (block, place)} of each aligned map."""
    if "mimic" not in self.only:
      return {}
    return {
      f"align_low_{number}": (block, self.low_place)
      for number, block in enumerate(self.low_blocks)
    }

  def flops(self, student: Side, teacher: Side) -> float:
    """FLOPs of an image's forward pass, in matrix products.

    Args:
      student: the student.
      teacher: the teacher.
    """
    number = student.num_tokens
    width = teacher.width_of(self.high_block, self.high_place)

    def align(block: int, place: str) -> float:
      own = student.width_of(block, place)
      aligned = own != width or self.always_align
      return 2.0 * number * own * width * aligned

    low = sum(align(block, self.low_place) for block in self.low_blocks)
    high = align(self.high_block, self.high_place)
    high += generators.flops(self.generator, number, width)
    return low * ("mimic" in self.only) + high * ("generation" in self.only)

  def _maps(self, view: View) -> tuple[jax.Array, jax.Array]:
    """Low [B, K, N, D] and high [B, N, D]."""
    low = [view.map(block, self.low_place) for block in self.low_blocks]
    return jnp.stack(low, axis=1), view.map(self.high_block, self.high_place)
