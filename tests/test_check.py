"""Tests of `vitkd_jax.check`."""

import math

import pytest

from vitkd_jax import check


def test_known_names_the_choices_and_the_nearest():
  check.known("mode", "zeros", ("zeros", "reflect"))
  said = (
    r"^expected mode to be one of 'zeros', 'reflect', got 'reflct'; "
    r"the nearest is 'reflect'$"
  )
  with pytest.raises(ValueError, match=said):
    check.known("mode", "reflct", ("zeros", "reflect"))


@pytest.mark.parametrize("value", [None, 3, ["zeros"]])
def test_known_refuses_other_types(value):
  with pytest.raises(ValueError, match="mode to be one of 'zeros', got"):
    check.known("mode", value, {"zeros": 0})


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None, math.nan])
def test_integers_refuses(value):
  with pytest.raises(ValueError, match=r"^expected an integer b >= 1, got "):
    check.integers(1, a=1, b=value)


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, "1", None])
def test_reals_refuses(value):
  with pytest.raises(ValueError, match=r"^expected a finite b >= 0, got "):
    check.reals(a=0, b=value)


def test_reals_bounds_are_inclusive():
  check.reals(2.0, a=0, b=2.0)
  with pytest.raises(ValueError, match=r"^expected b in \[0, 2\], got 2"):
    check.reals(2.0, b=2.0001)


def test_nothing_far_is_called_near():
  assert check.nearest("reflct", ["zeros", "reflect"]) == (
    "the nearest is 'reflect'"
  )
  assert check.nearest("imagenet2012", ["fashion_mnist", "mnist"]) == (
    "the valid ones are fashion_mnist, mnist"
  )
  many = [f"w{i:02d}" for i in range(21)]
  assert check.nearest("kkkk", many).endswith("w18, w19 and others")
  assert check.nearest("a", []) == "it takes no key"
  with pytest.raises(ValueError, match=r"'reflect', got 'kk'$"):
    check.known("mode", "kk", ("zeros", "reflect"))


@pytest.mark.parametrize(
  "value, real",
  [
    (0, True),
    (-1.5, True),
    (10**308, True),
    (10**309, False),  # of which `float` makes an OverflowError
    (float("nan"), False),
    (float("-inf"), False),
    (True, False),
    ("1", False),
    (None, False),
  ],
)
def test_a_number_that_a_float_can_hold(value, real):
  assert check.is_real(value) is real
