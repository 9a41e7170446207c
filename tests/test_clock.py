"""Tests of vitkd_jax.training.clock, by a clock that the test turns."""

import pytest

from vitkd_jax.training import clock


@pytest.fixture
def turn(monkeypatch):
  """Turns the clock by some seconds."""
  now = [1000.0]
  monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])

  def turn(seconds):
    now[0] += seconds

  return turn


def test_speed_is_of_the_time_spent_training(turn):
  watch = clock.Clock(step=10)
  turn(6)
  with watch.waiting():
    turn(2)
  with watch.paused():  # an evaluation
    turn(100)
  # 4 steps of 32 images in 8 s, of which 2 s waited; 20 steps are left.
  assert watch.read(14, 34, 32) == {
    "images_per_second": 16.0,
    "data_wait": 0.25,
    "eta_seconds": 40.0,
  }
  turn(1)
  assert watch.read(15, 34, 32) == {
    "images_per_second": 32.0,
    "data_wait": 0.0,
    "eta_seconds": 19.0,
  }


def test_a_clock_that_stands_still_divides_by_no_zero(turn):
  del turn
  watch = clock.Clock(step=0)
  assert watch.read(1, 1, 8)["eta_seconds"] == 0
