"""Manifold distillation (arXiv:2107.01378): how tokens relate."""

from collections.abc import Sequence
from typing import Any

import jax

from vitkd_jax.distill import forms, losses
from vitkd_jax.distill.view import Side


class Manifold(forms.MapMethod):
  """Squared distances of the tokens' Gram matrices, in three ways.

  `patch` relates the tokens of an image, `sample` those at one place of all
  images, `rand` some tokens of all images; see `losses.manifold_patch`. The
  authors train by it and kl alone: config.task.weight=0.

  Attributes:
    num_tokens: K, how many tokens `rand` draws from a group.
    group: consecutive images that `sample` and `rand` relate to each other, as
      one GPU's batch of the authors' (128 to 256); 0 for the whole batch, whose
      Gram matrices grow with its square.
    only: the terms to compute.
  """

  terms = {"patch": 4.0, "sample": 0.1, "rand": 0.2}  # noqa: RUF012, read only
  across_batch = True
  blocks: Sequence[int] = (0, 1, 2, 3, -4, -3, -2, -1)
  num_tokens: int = losses.NUM_RANDOM_TOKENS
  group: int = 0
  only: tuple[str, ...] = ("patch", "sample", "rand")

  def check(self, student: Side, teacher: Side) -> None:
    """Refuses a number of tokens below 1.

    Args:
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: there is one.
    """
    del student, teacher
    if self.num_tokens < 1:
      raise ValueError(f"expected num_tokens >= 1, got {self.num_tokens}")

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
    del side
    group = self.group or None
    found = {}
    if "patch" in self.only:
      found["patch"] = losses.manifold_patch(student, teacher)
    if "sample" in self.only:
      found["sample"] = losses.manifold_sample(student, teacher, group=group)
    if "rand" in self.only:
      found["rand"] = losses.manifold_rand(
        student,
        teacher,
        draws["scores"][:, number],
        num_tokens=self.num_tokens,
        group=group,
      )
    return found
