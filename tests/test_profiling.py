"""A trace of a few steps; that of a whole run is in test_train."""

import jax
import jax.numpy as jnp
import pytest

from vitkd_jax.training import profiling


@pytest.fixture
def said():
  return []


def steps(profile, numbers):
  x = jnp.zeros(())
  with profile:
    for step in numbers:
      profile.before(step, x)
      profile.after(x + 1)


def test_the_end_of_a_run_ends_the_trace(tmp_path, said):
  steps(profiling.Profile(str(tmp_path), 3, said.append), range(1, 5))
  (folder,) = (tmp_path / "plugins" / "profile").iterdir()
  assert said == [f"traced steps 3 to 4: {folder}"]
  assert list(folder.glob("*.xplane.pb"))


def test_zero_traces_nothing(tmp_path, said):
  steps(profiling.Profile(str(tmp_path), 0, said.append), range(1, 9))
  assert not said
  assert not list(tmp_path.iterdir())


def test_a_step_that_is_done_is_told_once(tmp_path, said):
  steps(profiling.Profile(str(tmp_path), 3, said.append), range(4, 9))
  assert said == ["no trace: step 3 is done; name one after 4"]


def test_somebody_elses_trace_is_left_alone(tmp_path, said):
  with jax.profiler.trace(str(tmp_path / "other")):
    steps(profiling.Profile(str(tmp_path), 3, said.append), range(1, 9))
  (line,) = said
  assert line.startswith("no trace: ")
  assert list((tmp_path / "other").glob("plugins/profile/*/*.xplane.pb"))


def test_a_workdir_that_cannot_be_written_harms_nothing(tmp_path, said):
  (tmp_path / "plugins").write_text("")
  steps(profiling.Profile(str(tmp_path), 1, said.append), range(1, 9))
  (line,) = said
  assert line.startswith("no trace: ")
