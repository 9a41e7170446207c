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
