"""Tests of vitkd_jax.training.loop: when it saves, and when it gives up."""

import jax
import numpy as np
import pytest
from saved import last_states

from vitkd_jax import errors, train
from vitkd_jax.training import clock


def test_divergence_stops_the_run_and_keeps_good_checkpoints(
  student_alone, tmp_path, capsys, drawn_state
):
  student_alone.schedule.peak = 1e36
  student_alone.schedule.warmup_start = 1e-3
  student_alone.run.checkpoint_every = 1
  student_alone.run.max_bad_steps = 3
  with pytest.raises(
    errors.FailedError, match="3 consecutive updates skipped"
  ) as stop:
    train.train(student_alone, str(tmp_path))
  assert "gradient became NaN or infinite" in str(stop.value)
  assert "config.schedule.peak" in str(stop.value)
  assert capsys.readouterr().out.count("skipped the update") == 3
  (state,) = last_states(student_alone, tmp_path)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.opt_state))
  total, row = state.skipped
  assert total == row
  assert 1 <= total <= 4


def test_checkpoints_come_by_the_clock_too(
  student_alone, tmp_path, capsys, drawn_state
):
  student_alone.run.checkpoint_every = 0
  student_alone.run.checkpoint_minutes = 1e-6  # at every log
  student_alone.run.keep = 9
  train.train(student_alone, str(tmp_path))
  found = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
  assert found == {2, 4, 6, 8, 10, 12}
  out = capsys.readouterr().out
  told = [line for line in out.splitlines() if line.startswith("saved the")]
  assert told == [f"saved the checkpoint of step {i}" for i in sorted(found)]


@pytest.mark.parametrize(
  "step, every, total, due",
  [
    (624, 156, 625, False),  # the end is next
    (468, 156, 625, True),
    (625, 156, 625, True),
    (625, 0, 625, True),
    (624, 0, 625, False),
    (140, 140, 154, False),  # a tenth of the interval
    (140, 140, 155, True),
    (5, 5, 6, True),  # a shorter interval has no tenth
    (7, 5, 60, False),
  ],
)
def test_what_is_due_just_before_the_end_is_left_to_it(step, every, total, due):
  assert clock.due(step, every, total) == due
