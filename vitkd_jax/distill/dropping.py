"""UNIC's teacher dropping: which teachers count for which image."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vitkd_jax.distill import losses


@dataclasses.dataclass(frozen=True)
class Dropping:
  """See `losses.teacher_coefficients`.

  Attributes:
    rate: chance that a teacher other than an image's hardest is left out.
    normalisation: "per_image" or "unic".
  """

  rate: float
  normalisation: str = "per_image"

  def draw(self, key: jax.Array, batch: int, num_teachers: int) -> jax.Array:
    """bool [B, T], True where a teacher stays.

    Args:
      key: typed PRNG key.
      batch: B.
      num_teachers: T.
    """
    return jax.random.bernoulli(key, 1 - self.rate, (batch, num_teachers))

  def apply(
    self,
    values: Mapping[str, jax.Array],
    weights: Mapping[str, Any],
    taught: Sequence[Sequence[str]],
    keep: jax.Array,
  ) -> dict[str, jax.Array]:
    """The terms, those of each teacher times its coefficients.

    Args:
      values: {term: [B]}.
      weights: {term: weight}.
      taught: of each teacher, its terms.
      keep: from `draw`.
    """
    each = [sum(weights[x] * values[x] for x in terms) for terms in taught]
    shares = losses.teacher_coefficients(
      jnp.stack(each), keep.T, normalisation=self.normalisation
    )
    found = dict(values)
    for share, terms in zip(shares, taught, strict=True):
      found |= {term: share * values[term] for term in terms}
    return found
