"""Tests of vitkd_jax.commandline.progress, where there is no terminal."""

import pytest

from vitkd_jax.commandline import progress


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass only when a test says so."""
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


def lines(capsys):
  return capsys.readouterr().err.splitlines()


def test_each_tenth_says_how_long_it_will_take(clock, capsys):
  with progress.show("images", 1000) as advance:
    advance(99)
    assert not lines(capsys)
    clock[0] += 12
    advance(1)
    assert lines(capsys) == ["100 of 1,000 images, 0:01:48 left"]
    clock[0] += 12
    advance(850)
    assert lines(capsys) == ["950 of 1,000 images, 0:00:01 left"]
    advance(50)
    assert lines(capsys) == ["1,000 of 1,000 images"]


def test_what_takes_long_says_so_in_between(clock, capsys):
  with progress.show("files checked") as advance:
    advance(1)
    assert not lines(capsys)
    clock[0] += 31
    advance(1)
    assert lines(capsys) == ["2 files checked"]
