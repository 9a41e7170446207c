"""The lab's statistics against SciPy's, published tables and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from vitkd_jax.labs import statistics

OURS = {0: 83.1, 1: 84.0, 2: 83.4, 3: 84.9, 4: 83.0}
THEIRS = {0: 80.9, 1: 82.7, 2: 81.1, 3: 81.0, 4: 80.2}


def test_paired_is_scipys():
  found = statistics.paired(OURS, THEIRS)
  ours, theirs = list(OURS.values()), list(THEIRS.values())
  test = stats.ttest_rel(ours, theirs)
  interval = test.confidence_interval(0.95)
  assert found.seeds == 5
  assert found.mean == pytest.approx(2.5)
  np.testing.assert_allclose(found.p, test.pvalue, rtol=1e-9)
  np.testing.assert_allclose(found.mean - found.margin, interval.low, rtol=1e-9)
  np.testing.assert_allclose(
    found.mean + found.margin, interval.high, rtol=1e-9
  )


def test_only_common_seeds_count():
  assert statistics.paired(OURS, {4: 80.2, 9: 1.0}) == statistics.Difference(
    1, pytest.approx(2.8)
  )
  none = statistics.paired(OURS, {7: 80.2})
  assert none.seeds == 0
  assert math.isnan(none.mean)


@pytest.mark.parametrize("shift, p", [(0.0, 1.0), (0.5, 0.0)])
def test_differences_without_spread(shift, p):
  found = statistics.paired({0: 1 + shift, 1: 2 + shift}, {0: 1.0, 1: 2.0})
  assert (found.margin, found.p) == (0.0, p)


# R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm"); a tie; the cap at 1.
@pytest.mark.parametrize(
  "given, adjusted",
  [
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
    ([0.6, 0.2, 0.2], [0.6, 0.6, 0.6]),
    ([0.5, 0.7], [1.0, 1.0]),
    ([0.04], [0.04]),
    ([], []),
  ],
)
def test_holm(given, adjusted):
  np.testing.assert_allclose(statistics.holm(given), adjusted, rtol=1e-12)


# G*Power 3.1, t test of matched pairs, two-sided, alpha 0.05, power 0.8.
@pytest.mark.parametrize(
  "effect, seeds", [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)]
)
def test_seeds_needed_are_gpowers(effect, seeds):
  assert statistics.seeds_needed(1.0, effect) == seeds


def test_seeds_needed_at_the_ends():
  assert statistics.seeds_needed(0.0, 0.5) == 2
  assert statistics.seeds_needed(10.0, 0.1) is None


def test_power_is_how_often_a_simulated_test_rejects():
  rng = np.random.default_rng(0)
  draws = rng.normal(0.9, 1.0, size=(4000, 8))
  rejected = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
  share, power = rejected.mean(), statistics.power(8, 1.0, 0.9)
  assert abs(share - power) < 3 * math.sqrt(power * (1 - power) / 4000)


def test_a_null_lab_finds_few_differences():
  """The same arm several times: 200 labs of 5 arms and 4 seeds."""
  rng, labs, wrong = np.random.default_rng(1), 200, 0
  for _ in range(labs):
    shared = rng.normal(80, 1.0, size=4)  # what a seed gives to all arms
    arms = [
      dict(enumerate(shared + rng.normal(0, 0.4, size=4))) for _ in range(6)
    ]
    found = [statistics.paired(arm, arms[0]) for arm in arms[1:]]
    adjusted = statistics.holm([x.p for x in found])
    said = [
      statistics.verdict(x, p) for x, p in zip(found, adjusted, strict=True)
    ]
    wrong += any(x.startswith(("gains", "loses")) for x in said)
  assert wrong / labs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / labs)


@pytest.mark.parametrize(
  "difference, p, said",
  [
    ((3, 2.9, 0.3, 0.4, 0.001), 0.01, "gains 2.90 ± 0.40"),
    ((3, -1.0, 0.3, 0.4, 0.01), 0.049, "loses 1.00 ± 0.40"),
    ((5, 0.1, 0.5, 0.6, 0.01), 0.05, "no difference that 5 seeds can show"),
    ((1, 0.1), None, "one seed shows no difference"),
    ((0, math.nan), None, "no seed has finished in both arms"),
  ],
)
def test_verdicts(difference, p, said):
  assert statistics.verdict(statistics.Difference(*difference), p) == said
