"""Refusals of vitkd_jax.training.sections that need nothing but the values."""

from collections.abc import Sequence
import math

import pytest

from vitkd_jax.training import sections


@pytest.mark.parametrize(
  "kind, value, said",
  [
    # An override that cannot be parsed comes as text in a tuple.
    (
      tuple[float, float],
      ("(nan,1.0)",),
      "config.data.x=('(nan,1.0)',): wanted a sequence of 2 finite numbers",
    ),
    (
      tuple[float, float],
      (math.nan, 1.0),
      "config.data.x=(nan, 1.0): wanted a sequence of 2 finite numbers",
    ),
    (
      Sequence[int],
      (),
      "config.data.x=(): wanted a sequence of one or more whole numbers",
    ),
    (float | None, "a", "config.data.x='a': wanted a finite number or None"),
  ],
)
def test_a_wrong_type_is_told_with_the_right_one(kind, value, said):
  with pytest.raises(ValueError, match=r".") as refusal:
    sections.check_types("data", {"x": value}, {"x": kind})
  assert str(refusal.value) == said


@pytest.mark.parametrize(
  "values, said",
  [
    (dict(epochs=0.0), "epochs=0.0: wanted more than 0"),
    (dict(epochs=1e12), "at most 1000000"),  # its steps would not fit int32
    (dict(seed=2**63), "wanted less than 2**63"),
    (dict(seed=-1), "wanted at least 0"),
  ],
)
def test_numbers_out_of_their_range(values, said):
  given = dict(seed=0, epochs=1.0, batch_size=8) | values
  with pytest.raises(ValueError, match=r".") as refusal:
    sections.check_run(sections.make(sections.Run, "run", given))
  assert said in str(refusal.value)
