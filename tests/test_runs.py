"""A workdir belongs to one run."""

import ml_collections
import pytest

from vitkd_jax.training import runs


def make(**run):
  return ml_collections.ConfigDict(
    {"run": {"seed": 0, "log_every": 10, **run}, "blocks": (0, 1)}
  )


def test_the_same_run_may_start_again_and_log_more_often(tmp_path):
  workdir = tmp_path / "deep" / "run"
  runs.claim(workdir, make(), "abc")
  runs.claim(workdir, make(log_every=5, fsdp=2), "abc")
  assert runs.read_config(workdir).run.log_every == 5


@pytest.mark.parametrize(
  "config, sha, said",
  [
    (make(seed=1), "abc", "config.run.seed was 0 and is 1"),
    (make(), "def", "teacher_sha256 was 'abc' and is 'def'"),
    (make(accumulate=2), "abc", "config.run.accumulate was None and is 2"),
  ],
)
def test_another_run_is_refused_and_nothing_is_lost(
  tmp_path, config, sha, said
):
  runs.claim(tmp_path, make(), "abc")
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(ValueError, match="holds a different run") as refusal:
    runs.claim(tmp_path, config, sha)
  assert said in str(refusal.value)
  assert "it holds no results yet" in str(refusal.value)
  assert (tmp_path / "config.json").read_bytes() == before
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  with pytest.raises(ValueError, match=r"it was started with$"):
    runs.claim(tmp_path, config, sha)


def with_rate(epochs, end, **more):
  config = make(epochs=epochs, **more)
  config.schedule = {"peak": 0.1, "end": end}
  return config


def test_a_run_at_a_constant_rate_may_grow(tmp_path):
  runs.claim(tmp_path, with_rate(2.0, end=0.1))
  student = tmp_path / "student.safetensors"
  student.touch()
  runs.claim(tmp_path, with_rate(2.0, end=0.1))
  assert student.exists()
  runs.claim(tmp_path, with_rate(3.0, end=0.1), write=False)
  assert runs.read_config(tmp_path).run.epochs == 2
  runs.claim(tmp_path, with_rate(3.0, end=0.1))
  assert runs.read_config(tmp_path).run.epochs == 3
  assert not student.exists()  # else a launcher would take the run for done


@pytest.mark.parametrize(
  "config, said",
  [
    (with_rate(3.0, end=0.0), "learning rate falls over its 2.0 epochs"),
    (with_rate(1.0, end=0.0), "config.run.epochs was 2.0 and is 1.0"),
    (with_rate(3.0, end=0.0, seed=1), "config.run.seed was 0 and is 1"),
  ],
)
def test_any_other_run_may_not(tmp_path, config, said):
  runs.claim(tmp_path, with_rate(2.0, end=0.0))
  with pytest.raises(ValueError, match=said):
    runs.claim(tmp_path, config)


def test_a_run_at_a_constant_rate_does_not_shrink(tmp_path):
  runs.claim(tmp_path, with_rate(2.0, end=0.1))
  with pytest.raises(ValueError, match="holds a different run"):
    runs.claim(tmp_path, with_rate(1.0, end=0.1))


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl"])
def test_files_without_a_config_are_refused(tmp_path, name):
  (tmp_path / name).mkdir()
  with pytest.raises(ValueError, match=r"no config\.json"):
    runs.claim(tmp_path, make())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": 3}'])
def test_a_damaged_config_is_said(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match="is damaged"):
    runs.claim(tmp_path, make())


def test_a_file_is_no_workdir(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match="is a file"):
    runs.claim(tmp_path / "file", make())
