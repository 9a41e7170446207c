"""Manifold distillation (arXiv:2107.01378): how tokens relate."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.distill import losses
from vitkd_jax.distill.view import (
  Label,
  Needs,
  Side,
  View,
  needs_of_pairs,
  pairs,
)


class Manifold(nn.Module):
  """Squared distances of the tokens' Gram matrices, in three ways.

  `patch` relates the tokens of an image, `sample` those at one place of all
  images, `rand` some tokens of all images; see `losses.manifold_patch`. The
  authors train by it and kl alone: config.task.weight=0.

  Attributes:
    blocks: of the student; negative ones count from the last.
    teacher_blocks: of the teacher, as many; none for those of the student.
    place: where in them: "+mlp" or "+sa" (residual stream), "mlp" or "sa", or
      "encoded" (after the last LayerNorm).
    num_tokens: K, how many tokens `rand` draws from a group.
    group: consecutive images that `sample` and `rand` relate to each other, as
      one GPU's batch of the authors' (128 to 256); 0 for the whole batch, whose
      Gram matrices grow with its square.
    only: the terms to compute.
  """

  terms = {"patch": 4.0, "sample": 0.1, "rand": 0.2}  # noqa: RUF012, read only
  across_batch = True
  blocks: Sequence[int] = (0, 1, 2, 3, -4, -3, -2, -1)
  teacher_blocks: Sequence[int] | None = None
  place: str = "+mlp"
  num_tokens: int = losses.NUM_RANDOM_TOKENS
  group: int = 0
  only: tuple[str, ...] = ("patch", "sample", "rand")

  @staticmethod
  def needs(fields: Any, student: Side, teacher: Side) -> Needs:
    """The token maps of both.

    Args:
      fields: of this class.
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: a model lacks a block, or there are no tokens to draw.
    """
    if fields.num_tokens < 1:
      raise ValueError(f"expected num_tokens >= 1, got {fields.num_tokens}")
    return needs_of_pairs(
      student, teacher, fields.blocks, fields.teacher_blocks, fields.place
    )

  def draws(
    self, key: jax.Array, batch: int, student: Side
  ) -> dict[str, jax.Array]:
    """Which tokens `rand` takes: {"scores": float32 [B, maps, N]}.

    Args:
      key: typed PRNG key.
      batch: B.
      student: the student.
    """
    if "rand" not in self.only:
      return {}
    shape = batch, len(self.blocks), student.num_tokens
    return {"scores": jax.random.uniform(key, shape)}

  def __call__(
    self, student: View, teacher: View, label: Label, draws: Any
  ) -> dict[str, jax.Array]:
    """{"patch": [B], "sample": [B], "rand": [B]}, means over the maps.

    Args:
      student: the student's view.
      teacher: the teacher's; its maps are resampled to the student's grid.
      label: not used.
      draws: from `draws`.
    """
    del label
    group = self.group or None
    values: dict[str, list[jax.Array]] = {term: [] for term in self.only}
    found = pairs(
      student, teacher, self.blocks, self.teacher_blocks, self.place
    )
    for i, (s, t) in enumerate(found):
      if "patch" in values:
        values["patch"].append(losses.manifold_patch(s, t))
      if "sample" in values:
        values["sample"].append(losses.manifold_sample(s, t, group=group))
      if "rand" in values:
        scores = draws["scores"][:, i]
        values["rand"].append(
          losses.manifold_rand(
            s, t, scores, num_tokens=self.num_tokens, group=group
          )
        )
    return {
      term: jnp.mean(jnp.stack(each), axis=0) for term, each in values.items()
    }
