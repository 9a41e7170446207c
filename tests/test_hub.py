"""Weights of the Hugging Face hub, which is never asked here."""

import json
import os
import pathlib
import shutil
import sys

import drawn
import numpy as np
import pytest

from vitkd_jax import convert, weights
from vitkd_jax.data import datasets
from vitkd_jax.evaluation import scoring
from vitkd_jax.runs import students
from vitkd_jax.training import experiment
from vitkd_jax.weights import hub, resolve

library = pytest.importorskip(
  "huggingface_hub", reason="not installed: pip install '.[hub]'"
)
from huggingface_hub import constants, errors  # noqa: E402

VARIANT = "deit3_pico_patch4_28"
REPOSITORY = "someone/deit3.x_y"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


@pytest.fixture(autouse=True)
def asks_anew():
  """No test sees what another one has downloaded."""
  hub._download.cache_clear()
  yield
  hub._download.cache_clear()


def export(folder, format="timm", seed=0):
  params = drawn.params(10, seed, variant=VARIANT)
  weights.save(folder, params, variant=VARIANT, format=format)
  return params


class Hub:
  """Stands for `hf_hub_download`; `repositories` are {(name, revision): path}.

  It keeps a cache of snapshots by commit, and fails as the real one does.
  """

  def __init__(self, folder):
    self.cache, self.repositories = folder / "cache", {}
    self.away, self.asked = False, []

  def __call__(self, repository, file, revision=None, local_files_only=False):
    self.asked.append(file)
    commit = {None: COMMIT, "main": COMMIT, "v2": OTHER}.get(revision, revision)
    found = self.cache / repository.replace("/", "--") / "snapshots" / commit
    target = found / file
    if self.away or local_files_only:
      if not target.exists():
        raise errors.LocalEntryNotFoundError("no connection")
      return str(target)
    source = self.repositories.get((repository, commit))
    if source is None:
      known = {name for name, _ in self.repositories}
      kind = errors.RepositoryNotFoundError
      if repository in known:
        kind = errors.RevisionNotFoundError
      raise kind.__new__(kind)  # they want the answer of an HTTP client
    if not (source / file).exists():
      raise errors.EntryNotFoundError("404")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / file, target)
    return str(target)


@pytest.fixture
def fake(tmp_path, monkeypatch):
  made = Hub(tmp_path)
  monkeypatch.setattr(library, "hf_hub_download", made)
  return made


@pytest.fixture
def repository(tmp_path, fake):
  """A repository in timm's form; its folder and parameters."""
  folder = tmp_path / "remote"
  params = export(folder)
  fake.repositories[REPOSITORY, COMMIT] = folder
  return folder, params


def assert_same(one, other):
  import jax

  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_repository_is_read_and_states_its_model(fake, repository):
  folder, params = repository
  path = f"hf:{REPOSITORY}"
  got = weights.load(path, variant=VARIANT, num_classes=10)
  assert_same(got, params)
  assert students.stated(path) == students.stated(folder)
  loaded = students.load(path, variant=VARIANT, num_classes="file")
  assert loaded.format == "timm"
  assert loaded.sha256() == weights.sha256(folder / "model.safetensors")
  # A process asks once, and for nothing that is not of a model.
  assert sorted(fake.asked) == [
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
  ]


def test_a_revision_has_weights_of_its_own(tmp_path, fake, repository):
  other = export(tmp_path / "other", seed=1)
  fake.repositories[REPOSITORY, OTHER] = tmp_path / "other"
  for revision, want in (("", repository[1]), ("@v2", other), ("@main", None)):
    path = f"hf:{REPOSITORY}{revision}"
    got = weights.load(path, variant=VARIANT, num_classes=10)
    assert_same(got, want or repository[1])


def test_a_model_in_shards(tmp_path, fake):
  folder = tmp_path / "remote"
  params = export(folder)
  whole = folder / "model.safetensors"
  import safetensors.numpy

  leaves = safetensors.numpy.load_file(whole)
  names = sorted(leaves)
  whole.unlink()
  index = {}
  for i, part in enumerate((names[::2], names[1::2])):
    file = f"model-{i + 1:05d}-of-00002.safetensors"
    safetensors.numpy.save_file({n: leaves[n] for n in part}, folder / file)
    index |= dict.fromkeys(part, file)
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"weight_map": index})
  )
  fake.repositories[REPOSITORY, COMMIT] = folder
  got = weights.load(f"hf:{REPOSITORY}", variant=VARIANT, num_classes=10)
  assert_same(got, params)


def test_what_the_cache_has_needs_no_network(fake, repository):
  first = hub.local(f"hf:{REPOSITORY}")
  hub._download.cache_clear()
  fake.away = True
  assert hub.local(f"hf:{REPOSITORY}") == first
  assert resolve.find(f"hf:{REPOSITORY}").endswith("/model.safetensors")


def test_the_real_library_reads_its_cache_offline(tmp_path, monkeypatch):
  """Its layout: refs name commits, snapshots link to blobs."""
  root = tmp_path / f"models--{REPOSITORY.replace('/', '--')}"
  params = export(root / "snapshots" / COMMIT)
  (root / "refs").mkdir()
  (root / "refs" / "main").write_text(COMMIT)
  (root / "blobs").mkdir()
  for file in list((root / "snapshots" / COMMIT).iterdir()):
    shutil.move(file, root / "blobs" / file.name)
    file.symlink_to(root / "blobs" / file.name)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  for revision in ("", f"@{COMMIT}"):
    path = f"hf:{REPOSITORY}{revision}"
    got = weights.load(path, variant=VARIANT, num_classes=10)
    assert_same(got, params)
  with pytest.raises(ValueError, match="and it is not in the cache; download"):
    hub.local("hf:someone/else")


def test_a_command_without_a_network_ends_in_a_sentence(tmp_path, forks):
  env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
  done = forks.run("evaluate", "--weights=hf:someone/else", env=env)
  assert done.returncode == 2
  assert done.stderr.startswith("error: cannot reach the hub for hf:someone/")


@pytest.mark.parametrize(
  "path, said",
  [
    ("hf:deit", "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, got 'hf:de"),
    ("hf:a/b/c", "expected hf:OWNER/NAME"),
    ("hf:a/b@", "expected hf:OWNER/NAME"),
    ("hf:no/body", "the hub does not show hf:no/body; log in with `hf auth"),
    (f"hf:{REPOSITORY}@v2", "@v2: the hub has no such revision"),
    ("hf:emp/ty", "expected one of model.safetensors, student.safetensors, "),
  ],
)
def test_one_sentence_says_what_is_wrong(
  tmp_path, fake, repository, path, said
):
  (tmp_path / "empty").mkdir()
  fake.repositories["emp/ty", COMMIT] = tmp_path / "empty"
  with pytest.raises(ValueError, match=r".") as refusal:
    weights.load(path, variant=VARIANT, num_classes=10)
  assert said in str(refusal.value)
  assert "\n" not in str(refusal.value)


def test_without_a_network_it_says_which_file_to_fetch(fake, repository):
  fake.away = True
  name = "timm/deit3_small_patch16_224.fb_in22k_ft_in1k"
  with pytest.raises(ValueError, match=r".") as refusal:
    hub.local(f"hf:{name}@v2")
  assert str(refusal.value) == (
    f"cannot reach the hub for hf:{name}@v2, and it is not in the cache; "
    "download model.safetensors and config.json of https://huggingface.co/"
    f"{name}/tree/v2 into a folder and give its path"
  )


def test_without_the_library_it_says_how_to_get_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ValueError, match=r".") as refusal:
    hub.local(f"hf:{REPOSITORY}")
  assert str(refusal.value).startswith(
    f"hf:{REPOSITORY} needs huggingface_hub: pip install 'vitkd-jax[hub]', or "
    "download model.safetensors and config.json of https://huggingface.co/"
  )


def test_a_missing_file_of_a_published_name_says_where_it_is():
  name = "deit3_small_patch16_224.fb_in22k_ft_in1k"
  with pytest.raises(
    ValueError, match=rf"; they are published: give hf:timm/{name} to download"
  ):
    resolve.find(f"weights/{name}.safetensors")
  for name in ("deit3_small_patch16_224.mine", "mine"):
    with pytest.raises(ValueError, match=r"no such file or folder$"):
      resolve.find(f"weights/{name}.safetensors")


def test_a_training_learns_and_starts_from_it(
  tiny_config, fake, repository, untraced, one_device
):
  path, sha = (
    f"hf:{REPOSITORY}",
    weights.sha256(repository[0] / "model.safetensors"),
  )
  tiny_config.teachers.teacher.weights = path
  tiny_config.student = dict(variant=VARIANT, init=path)
  parts = experiment.build(tiny_config)
  assert parts.teacher_pins["teacher"].sha256 == sha
  assert parts.start.pin.sha256 == sha


def test_evaluate_and_convert_take_it(tmp_path, fake, repository, capsys):
  info = datasets.info("fashion_mini", None)
  scored = scoring.load(f"hf:{REPOSITORY}", info)
  assert scored.images.size == (28, 28)
  convert.convert(
    convert.Options(
      input=f"hf:{REPOSITORY}",
      output=str(tmp_path / "a.safetensors"),
      to="flat",
    )
  )
  said = capsys.readouterr().out
  assert f"read  hf:{REPOSITORY} (timm)" in said
  assert weights.sha256(repository[0] / "model.safetensors") in said


class Api:
  """Stands for `HfApi`, and remembers what it was asked."""

  calls: tuple = ()

  def create_repo(self, repository, **options):
    Api.calls += (("create", repository, options),)

  def upload_folder(self, *, repo_id, folder_path, commit_message):
    files = sorted(p.name for p in pathlib.Path(folder_path).iterdir())
    Api.calls += (("upload", repo_id, files),)

    class Done:
      commit_url = "https://hub/commit/1"

    return Done


def test_push_uploads_the_folder_that_was_written(
  tmp_path, repository, monkeypatch, capsys
):
  monkeypatch.setattr(library, "HfApi", Api)
  monkeypatch.setattr(Api, "calls", ())
  options = convert.Options(
    input=str(repository[0]),
    output=str(tmp_path / "out"),
    to="timm",
    push="me/student",
    check=False,
  )
  convert.convert(options)
  assert Api.calls == (
    ("create", "me/student", dict(private=True, exist_ok=True)),
    ("upload", "me/student", ["README.md", "config.json", "model.safetensors"]),
  )
  assert "pushed https://hub/commit/1" in capsys.readouterr().out


@pytest.mark.parametrize(
  "options, said",
  [
    (dict(push="student"), "expected --push=OWNER/NAME, got 'student'"),
    (
      dict(to="flat", output="a.safetensors"),
      "--push uploads a folder: expected --to timm, huggingface, stablehlo",
    ),
    (dict(output="gs://b/out"), "expected --output to be a local folder"),
  ],
)
def test_what_cannot_be_pushed_is_not_converted(tmp_path, options, said):
  options = dict(to="timm", output="out", push="me/student") | options
  options["input"] = str(tmp_path / "nowhere")
  with pytest.raises(ValueError, match=said):
    convert.convert(convert.Options(**options))


def test_a_hub_that_refuses_is_one_sentence(repository, monkeypatch):
  def refuse(*args, **options):
    raise RuntimeError("403: no\nand more")

  monkeypatch.setattr(library, "HfApi", Api)
  monkeypatch.setattr(Api, "create_repo", refuse)
  with pytest.raises(
    ValueError, match=r"^cannot use me/student: RuntimeError: 403: no$"
  ):
    hub.push(str(repository[0]), "me/student")
