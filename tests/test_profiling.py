"""A trace of a few steps; that of a whole run is in test_train."""

import tempfile

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
      if profile.begins(step):
        profile.start()
      with jax.profiler.StepTraceAnnotation("train", step_num=step):
        x = jax.block_until_ready(x + 1)
      if profile.ends(step):
        profile.stop()


def traced(folder):
  """Numbers of the steps in the trace that a folder holds."""
  (file,) = folder.glob("*.xplane.pb")
  profile = jax.profiler.ProfileData.from_file(str(file))
  return {
    dict(event.stats)["step_num"]
    for plane in profile.planes
    for line in plane.lines
    for event in line.events
    if event.name == "train"
  }


@pytest.mark.parametrize("last, found", [(9, {3, 4, 5, 6, 7}), (4, {3, 4})])
def test_five_steps_are_traced_or_what_the_run_has(tmp_path, said, last, found):
  profile = profiling.Profile(str(tmp_path), 3, said.append)
  steps(profile, range(1, last + 1))
  (folder,) = (tmp_path / "plugins" / "profile").iterdir()
  assert said == [f"trace from step 3: {folder}"]
  assert traced(folder) == found


@pytest.mark.parametrize("first", [0, 3])
def test_none_is_made(tmp_path, said, first):
  profile = profiling.Profile(str(tmp_path), first, said.append)
  steps(profile, range(4, 9))
  assert not said
  assert not list(tmp_path.iterdir())


def test_somebody_elses_trace_is_left_alone(tmp_path, said):
  with jax.profiler.trace(str(tmp_path / "other")):
    steps(profiling.Profile(str(tmp_path), 3, said.append), range(1, 9))
  (line,) = said
  assert line.startswith("no trace: ")
  assert list((tmp_path / "other").glob("plugins/profile/*/*.xplane.pb"))


def test_a_trace_that_cannot_be_made_harms_nothing(tmp_path, said, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
  steps(profiling.Profile(str(tmp_path), 1, said.append), range(1, 9))
  (line,) = said
  assert line.startswith("no trace: ")


class HttpError(Exception):
  """As a bucket's client has it: no OSError."""


@pytest.mark.parametrize("error", [HttpError, OSError])
def test_a_trace_that_cannot_be_written_harms_nothing(
  tmp_path, said, monkeypatch, error
):
  def copy(source, target):
    raise error("503")

  monkeypatch.setattr(profiling, "_copy", copy)
  steps(profiling.Profile(str(tmp_path), 1, said.append), range(1, 9))
  assert said == ["no trace: 503"]
