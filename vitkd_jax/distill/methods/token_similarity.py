"""Similarities between the tokens of an image, as probabilities."""

from typing import Any

import jax

from vitkd_jax.distill import forms, losses, projectors
from vitkd_jax.distill.losses import classes
from vitkd_jax.distill.view import Side


class TokenSimilarity(forms.MapMethod):
  """KL between the tokens' similarities, see `losses.token_similarity`.

  LightlyTrain's local term, with its linear map of the student's tokens.

  Attributes:
    temperature: tau > 0, of both.
  """

  terms = {"token_similarity": 1.0}  # noqa: RUF012, read only
  temperature: float = losses.TOKEN_TEMPERATURE

  def check(self, student: Side, teacher: Side) -> None:
    """Refuses a temperature that is not positive.

    Args:
      student: the student.
      teacher: the teacher.

    Raises:
      ValueError: there is one.
    """
    del student, teacher
    classes.check_positive(temperature=self.temperature)

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
      draws: none.
    """
    del draws
    projected = projectors.Projector(
      teacher.shape[-1],
      dtype_mm=side.dtype_mm,
      name=f"projector_{number}",
    )(student)
    value = losses.token_similarity(
      projected, teacher, temperature=self.temperature
    )
    return {"token_similarity": value}
