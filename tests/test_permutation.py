"""Grain's shuffle, of which permutation.py is the fast form."""

import grain
import numpy as np
import pytest

from vitkd_jax.data import order, permutation


def shuffled(number, seed):
  return grain.MapDataset.range(number).shuffle(seed=seed)


@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5, 2**32 - 1])
@pytest.mark.parametrize(
  # Blocks of 16 bits, and on both sides of 2**16 those of 16 and of 18.
  "number", [1, 2, 3, 100, 60_000, 65_536, 65_537, 65_538, 1_281_167]
)  # fmt: skip
def test_indices_are_grains(number, seed):
  some = np.linspace(0, number - 1, min(number, 40), dtype=np.int64)
  np.testing.assert_array_equal(
    permutation.permuted(some, number, seed),
    [shuffled(number, seed)[i] for i in some.tolist()],
  )


def test_every_example_has_one_place():
  found = permutation.permuted(np.arange(60_000), 60_000, 3)
  np.testing.assert_array_equal(np.sort(found), np.arange(60_000))


def test_seeds_are_the_standards():
  """What std::seed_seq generates with g++ 12.2's libstdc++."""
  wanted = {
    0: [2963817213, 69796629, 1973464570, 532167439],
    7: [3058802511, 457619115, 2864960031, 537765756],
    2**32 - 1: [3258260622, 2976084991, 227751652, 537413182],
  }
  assert {s: permutation.seed_sequence(s, 4) for s in wanted} == wanted


@pytest.mark.parametrize("fault", ["no seed", "another cipher"])
def test_another_grain_is_followed(monkeypatch, fault):
  rows = order.Order(50, seed=3, repeats=2)
  wanted = rows.between(7, 230)
  np.testing.assert_array_equal(wanted, [rows.at(p)[1] for p in range(7, 230)])
  if fault == "no seed":
    rows._seed = None
  else:
    monkeypatch.setattr(permutation, "_ROUNDS", 6)
  np.testing.assert_array_equal(rows.between(7, 230), wanted)
