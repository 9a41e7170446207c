"""MGD (arXiv:2205.01529) as in cls_KD: generation from masked channels."""

from collections.abc import Sequence
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.distill import losses, projectors
from vitkd_jax.distill.view import (
  Label,
  Needs,
  Side,
  View,
  needs_of_pairs,
  pairs,
)
from vitkd_jax.models import linear


class MGD(nn.Module):
  """The teacher's map, generated from the student's with channels at zero.

  A fresh mask for each image and map, over all tokens; every position counts,
  see `losses.mgd`. (The paper masks tokens; this is what the authors run for
  classification.)

  Attributes:
    blocks: of the student; negative ones count from the last.
    teacher_blocks: of the teacher, as many; none for those of the student.
    place: where in them: "+mlp" or "+sa" (residual stream), "mlp" or "sa", or
      "encoded" (after the last LayerNorm).
    mask_ratio: probability in [0, 1) that a channel is zeroed.
  """

  terms = {"mgd": 7e-5}  # noqa: RUF012, read only
  blocks: Sequence[int] = (-1,)
  teacher_blocks: Sequence[int] | None = None
  place: str = "+mlp"
  mask_ratio: float = 0.15

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The token maps of both.

    Args:
      fields: of this class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: a model lacks a block, or the ratio is out of its range.
    """
    if not 0 <= fields.mask_ratio < 1:
      raise ValueError(f"expected 0 <= mask_ratio < 1, got {fields.mask_ratio}")
    return needs_of_pairs(
      student, teacher, fields.blocks, fields.teacher_blocks, fields.place
    )

  def draws(
    self, key: jax.Array, batch: int, student: Side
  ) -> dict[str, jax.Array]:
    """What masks are drawn from: {"keys": uint32 [B, maps, 2]}.

    Args:
      key: typed PRNG key.
      batch: B.
      student: the student.
    """
    del student
    keys = jax.random.split(key, (batch, len(self.blocks)))
    return {"keys": jax.random.key_data(keys)}

  @nn.compact
  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"mgd": [B]}, the mean over the maps.

    Args:
      student: the student's view.
      teacher: the teacher's; its maps are resampled to the student's grid.
      label: not used.
      draws: from `draws`.
    """
    del label
    found = pairs(
      student, teacher, self.blocks, self.teacher_blocks, self.place
    )
    values = []
    width, side = teacher.side.width, student.side
    for i, (s, t) in enumerate(found):
      if s.shape[-1] != width:
        s = projectors.Projector(
          width, dtype_mm=side.dtype_mm, name=f"align_{i}"
        )(s)
      keys = jax.random.wrap_key_data(draws["keys"][:, i])
      zeroed = jax.vmap(
        lambda key: losses.channel_mask(key, 1, width, self.mask_ratio)
      )(keys)  # [B, 1, D]
      x = jnp.where(zeroed, 0, s)
      x = einops.rearrange(x, "b (h w) d -> b h w d", h=side.grid[0])
      for j in range(2):
        x = linear.Conv(
          width,
          (3, 3),
          dtype=side.dtype_mm,
          kernel_init=projectors.kernel_init,
          bias_init=projectors.bias_init(9 * width),
          name=f"generator_{i}_{j}",
        )(nn.relu(x) if j else x)
      x = einops.rearrange(x, "b h w d -> b (h w) d")
      values.append(losses.mgd(x, t))
    return {"mgd": jnp.mean(jnp.stack(values), axis=0)}
