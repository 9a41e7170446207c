"""Similarities between the tokens of an image, as probabilities."""

from collections.abc import Sequence
from typing import Any

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


class TokenSimilarity(nn.Module):
  """KL between the tokens' similarities, see `losses.token_similarity`.

  LightlyTrain's local term, with its linear map of the student's tokens.

  Attributes:
    blocks: of the student; negative ones count from the last.
    teacher_blocks: of the teacher, as many; none for those of the student.
    place: where in them: "+mlp" or "+sa" (residual stream), "mlp" or "sa", or
      "encoded" (after the last LayerNorm).
    temperature: tau > 0, of both.
  """

  terms = {"token_similarity": 1.0}  # noqa: RUF012, read only
  blocks: Sequence[int] = (-1,)
  teacher_blocks: Sequence[int] | None = None
  place: str = "+mlp"
  temperature: float = losses.TOKEN_TEMPERATURE

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The token maps of both.

    Args:
      fields: of this class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: a model lacks a block, or tau is not positive.
    """
    if not fields.temperature > 0:
      raise ValueError(f"expected temperature > 0, got {fields.temperature}")
    return needs_of_pairs(
      student, teacher, fields.blocks, fields.teacher_blocks, fields.place
    )

  @nn.compact
  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"token_similarity": [B]}, the mean over the maps.

    Args:
      student: the student's view.
      teacher: the teacher's; its maps are resampled to the student's grid.
      label: not used.
      draws: none.
    """
    del label, draws
    found = pairs(
      student, teacher, self.blocks, self.teacher_blocks, self.place
    )
    values = [
      losses.token_similarity(
        projectors.Projector(
          teacher.side.width,
          dtype_mm=student.side.dtype_mm,
          name=f"projector_{i}",
        )(s),
        t,
        temperature=self.temperature,
      )
      for i, (s, t) in enumerate(found)
    ]
    return {"token_similarity": jnp.mean(jnp.stack(values), axis=0)}
