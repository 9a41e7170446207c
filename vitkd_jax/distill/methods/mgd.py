"""MGD (arXiv:2205.01529) as in cls_KD: generation from masked channels."""

from typing import Any

import jax
import jax.numpy as jnp

from vitkd_jax.distill import forms, generators, losses, projectors
from vitkd_jax.distill.view import Side


class MGD(forms.MapMethod):
  """The teacher's map, generated from the student's with channels at zero.

  A fresh mask for each image and map, over all tokens; every position counts,
  see `losses.mgd`. (The paper masks tokens; this is what the authors run for
  classification.)

  Attributes:
    mask_ratio: probability in [0, 1) that a channel is zeroed.
  """

  terms = {"mgd": 7e-5}  # noqa: RUF012, read only
  mask_ratio: float = 0.15

  def check(self, student: Side, teacher: Side) -> None:
    """Refuses a ratio outside [0, 1).

    Args:
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: there is one.
    """
    del student, teacher
    forms.check_mask_ratio(self.mask_ratio)

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

  def compare(
    self,
    number: int,
    student: jax.Array,
    teacher: jax.Array,
    side: Side,
    draws: Any,
  ) -> dict[str, jax.Array]:
    """{term: [B] float32} of one pair.

    Args:
      number: of the pair.
      student: map [B, N, D_s].
      teacher: map [B, N, D_t].
      side: the student.
      draws: from `draws`.
    """
    width = teacher.shape[-1]
    if student.shape[-1] != width:
      student = projectors.Projector(
        width, dtype_mm=side.dtype_mm, name=f"align_{number}"
      )(student)
    keys = jax.random.wrap_key_data(draws["keys"][:, number])
    zeroed = jax.vmap(
      lambda key: losses.channel_mask(key, 1, width, self.mask_ratio)
    )(keys)  # [B, 1, D]
    generated = generators.generate(
      jnp.where(zeroed, 0, student),
      side.grid,
      dtype_mm=side.dtype_mm,
      name=f"generator_{number}",
    )
    return {"mgd": losses.mgd(generated, teacher)}

  def mimics(self) -> dict[str, tuple[int, str]]:
    """{submodule: (block, place)} of each map; all of its tokens count."""
    return {
      generators.output("conv", f"generator_{number}"): (block, self.place)
      for number, (_, block) in enumerate(self.block_pairs())
    }
