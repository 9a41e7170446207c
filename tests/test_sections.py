"""Refusals of vitkd_jax.training.sections that need nothing but the values."""

from collections.abc import Sequence
import math

import pytest

from vitkd_jax.training import ranges, sections


@pytest.mark.parametrize(
  "kind, value, said",
  [
    # An override that cannot be parsed comes as text in a tuple.
    (
      tuple[float, float],
      ("(nan,1.0)",),
      "a sequence of 2 finite numbers, got ('(nan,1.0)',)",
    ),
    (
      tuple[float, float],
      (math.nan, 1.0),
      "a sequence of 2 finite numbers, got (nan, 1.0)",
    ),
    (
      Sequence[int],
      (),
      "a sequence of one or more integers, got ()",
    ),
    (
      float | None,
      "a",
      "a finite number or None, got 'a'",
    ),
  ],
)
def test_a_wrong_type_is_told_with_the_right_one(kind, value, said):
  with pytest.raises(ValueError, match=r".") as refusal:
    sections.check_types("data", {"x": value}, {"x": kind})
  assert str(refusal.value) == f"expected config.data.x to be {said}"


@pytest.mark.parametrize(
  "values, said",
  [
    (dict(epochs=0.0), "expected 0 < config.run.epochs <= 1000000, got 0.0"),
    (
      dict(epochs=1e12),
      "<= 1000000, got 1000000000000.0",
    ),  # its steps would not fit int32
    (
      dict(seed=2**63),
      "expected config.run.seed < 2**63, got 9223372036",
    ),
    (dict(seed=-1), "expected config.run.seed >= 0, got -1"),
  ],
)
def test_numbers_out_of_their_range(values, said):
  given = dict(seed=0, epochs=1.0, batch_size=8) | values
  with pytest.raises(ValueError, match=r".") as refusal:
    ranges.check(sections.make(sections.Run, "run", given))
  assert said in str(refusal.value)
