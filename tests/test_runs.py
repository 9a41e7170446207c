"""A workdir belongs to one run."""

import json

import ml_collections
import pytest

from vitkd_jax.runs import reading
from vitkd_jax.runs import workdir as workdirs
from vitkd_jax.training import defaults


def claim(*args, **options):
  workdirs.claim(*args, default=defaults.default, **options)


def read_config(workdir):
  return ml_collections.ConfigDict(reading.record(workdir)["config"])


def pin(sha256):
  """A teacher of that hash."""
  return {"teacher": {"sha256": sha256, "step": None}}


def make(**run):
  return ml_collections.ConfigDict(
    {
      "run": {"seed": 0, "log_every": 10, **run},
      "student": {"patch_size": (4, 4)},
    }
  )


def test_the_same_run_may_start_again_and_log_more_often(tmp_path):
  workdir = tmp_path / "deep" / "run"
  claim(workdir, make(), pin("abc"))
  claim(workdir, make(log_every=5, fsdp=2), pin("abc"))
  assert read_config(workdir).run.log_every == 5


@pytest.mark.parametrize(
  "config, sha, said",
  [
    (make(seed=1), "abc", "config.run.seed was 0 and is 1"),
    (make(), "def", "teachers.teacher.sha256 was 'abc' and is 'def'"),
    (make(accumulate=2), "abc", "config.run.accumulate was 1 and is 2"),
  ],
)
def test_another_run_is_refused_and_nothing_is_lost(
  tmp_path, config, sha, said
):
  claim(tmp_path, make(), pin("abc"))
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(ValueError, match="holds a different run") as refusal:
    claim(tmp_path, config, pin(sha))
  assert said in str(refusal.value)
  assert "it holds no results yet" in str(refusal.value)
  assert (tmp_path / "config.json").read_bytes() == before
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  with pytest.raises(ValueError, match=r"it was started with$"):
    claim(tmp_path, config, pin(sha))


def with_rate(epochs, end, **more):
  config = make(epochs=epochs, **more)
  config.schedule = {"peak": 0.1, "end": end}
  return config


def test_a_run_at_a_constant_rate_may_grow(tmp_path):
  claim(tmp_path, with_rate(2.0, end=0.1))
  student = tmp_path / "student.safetensors"
  student.touch()
  claim(tmp_path, with_rate(2.0, end=0.1))
  assert student.exists()
  claim(tmp_path, with_rate(3.0, end=0.1), write=False)
  assert read_config(tmp_path).run.epochs == 2
  claim(tmp_path, with_rate(3.0, end=0.1))
  assert read_config(tmp_path).run.epochs == 3
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
  claim(tmp_path, with_rate(2.0, end=0.0))
  with pytest.raises(ValueError, match=said):
    claim(tmp_path, config)


def test_a_run_at_a_constant_rate_does_not_shrink(tmp_path):
  claim(tmp_path, with_rate(2.0, end=0.1))
  with pytest.raises(ValueError, match="holds a different run"):
    claim(tmp_path, with_rate(1.0, end=0.1))


def written(folder, **sections):
  """A workdir of an older version: its config.json has these keys alone."""
  config = {name: dict(keys) for name, keys in sections.items()}
  record = {"config": config, "teacher_sha256": None, "teacher_step": None}
  (folder / "config.json").write_text(json.dumps(record))
  return ml_collections.ConfigDict(config)


def test_keys_that_came_later_are_as_their_defaults(tmp_path):
  config = written(tmp_path, run={"seed": 0}, augment={"shift": 1})
  config.run.accumulate = 1
  config.augment.fill = (0.485, 0.456, 0.406)
  claim(tmp_path, config)
  config.augment.erase = 0.5
  with pytest.raises(ValueError, match=r"augment.erase was 0\.0 and is 0\.5"):
    claim(tmp_path, config)


def test_a_run_that_turned_images_goes_on_so(tmp_path):
  # Before there was config.data.exif, every image was turned.
  given = written(tmp_path, data={"name": "birds"})
  given.data.exif = False
  given.lock()
  assert read_config(tmp_path).data.exif is True
  with pytest.raises(ValueError, match="exif was True and is False"):
    claim(tmp_path, given)
  config, notes = reading.carried_on(tmp_path, given)
  assert config.data.exif is True
  assert given.data.exif is False
  assert len(notes) == 1
  assert "using config.data.exif=True, as this run was started" in notes[0]
  claim(tmp_path, config)
  # From then on config.json has the key, and another value is another run.
  assert reading.carried_on(tmp_path, given) == (given, [])
  with pytest.raises(ValueError, match="exif was True and is False"):
    claim(tmp_path, given)


@pytest.mark.parametrize("sections", [{"data": {"name": "birds"}}, {"run": {}}])
def test_a_new_run_does_not_pass_for_an_older_one(tmp_path, sections):
  config = ml_collections.ConfigDict(sections)  # that names no exif
  assert reading.carried_on(tmp_path, config) == (config, [])
  claim(tmp_path, config)
  assert not read_config(tmp_path).get("data", {}).get("exif", False)
  assert reading.carried_on(tmp_path, config) == (config, [])
  claim(tmp_path, config)


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl"])
def test_files_without_a_config_are_refused(tmp_path, name):
  (tmp_path / name).mkdir()
  with pytest.raises(ValueError, match=r"no config\.json"):
    claim(tmp_path, make())


@pytest.mark.parametrize(
  "text",
  [
    "",
    "{",
    "[]",
    '{"config": 3}',
    '{"config": {"weights": 3}}',
    '{"config": {"methods": {"nkd": 3}}}',
    '{"config": {}, "teachers": {"teacher": 3}}',
    '{"config": {}, "teachers": 3}',
  ],
)
def test_a_damaged_config_is_said(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match="is damaged"):
    claim(tmp_path, make())


def test_a_file_is_no_workdir(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match="to be a folder, got a file"):
    claim(tmp_path / "file", make())
