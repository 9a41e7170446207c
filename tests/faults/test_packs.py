"""Students side by side that are stopped and killed (faults 1, 4)."""

import functools
import signal

import pytest
import runner

from vitkd_jax.runs import workdir as workdirs

pytestmark = pytest.mark.slow


def test_packs_resume_as_trainings_do(shared, unbroken, tmp_path):
  whole = unbroken(1, 2)
  both, alone = tmp_path / "both", tmp_path / "alone"
  other = runner.options(shared["teacher"], alone)
  start = functools.partial(
    *(runner.Pack, both, "--", *other),
    *("--config.methods={}", "--config.teachers={}"),
    **shared,
  )

  with start() as pack:
    pack.until_step(7)
    pack.process.send_signal(signal.SIGTERM)
    output = pack.end()
  assert "stopped, and the states are saved" in output
  assert runner.saved_steps(both)[-1] == runner.saved_steps(alone)[-1]

  with start() as pack:
    pack.until_step(21)
    pack.kill()
  with start() as pack:
    pack.end()
  assert workdirs.is_finished(str(both))
  assert workdirs.is_finished(str(alone))
  ours, theirs = runner.metrics(both), runner.metrics(whole)
  assert ours.keys() == theirs.keys()
  for step, values in theirs.items():
    assert ours[step] == pytest.approx(values, rel=1e-3), step
