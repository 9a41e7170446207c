"""Tests of vitkd_jax.evaluation.resuming: a killed pass goes on, to the bit."""

import contextlib
import dataclasses
import shutil

import numpy as np
import pytest
from test_evaluate import Source, info, model
from test_scorer import SETS, Later

from vitkd_jax import errors
from vitkd_jax.cluster import preemption
from vitkd_jax.data import loader
from vitkd_jax.evaluation import classification, probes, resuming, scorer


class Killed(BaseException):
  """The end of a process, as far as its files can tell."""


@pytest.fixture
def take(monkeypatch):
  """Ends an evaluation before some batch; lists the batches that were read."""
  read, whole = [], loader.eval_batches

  @contextlib.contextmanager
  def until(last):
    def batches(*args, start=0, **options):
      with contextlib.closing(whole(*args, start=start, **options)) as every:
        for number, batch in enumerate(every, start):
          if number == last:
            raise Killed
          read.append(number)
          yield batch

    read.clear()
    with monkeypatch.context() as patch:
      patch.setattr(loader, "eval_batches", batches)
      yield read

  monkeypatch.setattr(resuming, "_SECONDS", -1.0)  # saves every batch
  return until


TRAINING = scorer.Split(Source(), info(), model(0).images)
SPLITS = (TRAINING, scorer.Split(Later(), SETS, model(0).images))


def made(batch_size=8, seed=0):
  return scorer.Scorer(model(seed), {"t": model(5)}, batch_size, True)


@pytest.fixture(scope="module")
def compiled():
  return made()


def evaluate(compiled, folder, options=("ridge", "knn")):
  """What the command does with --out and --probe, of two datasets."""
  kept = compiled.resume_features(TRAINING, f"{folder}/features", {})
  x, label = compiled.features(TRAINING, kept=kept)
  asked = probes.Options(options, neighbours=(3,))
  fitted = probes.fit(asked, x, label, 10, compiled.mesh)
  found = []
  for number, split in enumerate(SPLITS):
    kept = compiled.resume(split, f"{folder}/{number}", {}, fitted)
    found.append(compiled.score(split, fitted=fitted, kept=kept))
  return found


@pytest.fixture(scope="module")
def unbroken(compiled, tmp_path_factory):
  """The results, and the files as they are when a kill hits the writing."""
  folder = tmp_path_factory.mktemp("unbroken")
  return evaluate(compiled, folder), folder


# Of 5 + 5 + 2 batches: training images, then the first and the second dataset.
@pytest.mark.parametrize("kills", [(3,), (1, 2, 4)])
def test_results_are_those_of_an_unbroken_one(
  kills, take, compiled, unbroken, tmp_path
):
  for last in kills:
    with take(last), pytest.raises(Killed):
      evaluate(compiled, tmp_path)
  with take(None) as read:
    assert evaluate(compiled, tmp_path) == unbroken[0]
  assert read == [*range(kills[-1], 5), *range(5), *range(2)]


def test_in_the_second_dataset(take, compiled, unbroken, tmp_path):
  shutil.copytree(unbroken[1], tmp_path, dirs_exist_ok=True)
  (tmp_path / "1").unlink()
  with take(1) as read, pytest.raises(Killed):
    evaluate(compiled, tmp_path)
  assert read == [0]
  with take(None) as read:
    assert evaluate(compiled, tmp_path) == unbroken[0]
  assert read == [1]


def test_pairs_of_many_classes(take, compiled, tmp_path, monkeypatch):
  monkeypatch.setattr(classification, "DENSE", 5)
  wanted = compiled.score(TRAINING)
  assert wanted["confusions"]
  for last in (2, None):
    with take(last), contextlib.suppress(Killed):
      kept = compiled.resume(TRAINING, str(tmp_path / "0"), {})
      found = compiled.score(TRAINING, kept=kept)
  assert found == wanted


def test_told_to_stop(take, compiled, unbroken, tmp_path, monkeypatch):
  monkeypatch.setattr(resuming, "_SECONDS", 1e9)
  answers = iter([False] * 8 + [True])
  with monkeypatch.context() as patch:
    patch.setattr(preemption, "noticed", lambda: next(answers))
    with pytest.raises(errors.PreemptedError) as ended:
      evaluate(compiled, tmp_path)
  assert ended.value.status == 0
  assert str(ended.value) == (
    "preempted: the evaluation on made is saved; start the same command again "
    "to resume"
  )
  with take(None) as read:
    assert evaluate(compiled, tmp_path) == unbroken[0]
  assert read == [4, 0, 1]


def test_another_evaluation_starts_anew(unbroken, tmp_path, capsys):
  """Each is refused by the name of what differs, and nothing else is."""
  shutil.copytree(unbroken[1], tmp_path, dirs_exist_ok=True)
  path, first = str(tmp_path / "1"), SPLITS[1]

  def differing(split=first, settings=None, **options):
    kept = made(**options).resume(split, path, settings or {})
    assert kept.done == 0
    said = capsys.readouterr().err
    assert said.endswith(": starting the evaluation on made at batch 0\n")
    return said.partition("that differs in ")[2].partition(":")[0]

  none = "fitted probes, measures"  # here without probes
  assert differing() == none
  assert differing(seed=1) == f"{none}, parameters"
  assert differing(batch_size=16) == f"batch size, {none}"
  assert differing(settings={"split": "a"}) == f"{none}, split"
  images = dataclasses.replace(first.images, short_side=40)
  other = dataclasses.replace(first, images=images)
  assert differing(other) == f"dataset, {none}"


def test_other_probes_of_the_same_features(take, compiled, unbroken, tmp_path):
  shutil.copytree(unbroken[1], tmp_path, dirs_exist_ok=True)
  with take(None) as read:
    found = evaluate(compiled, tmp_path, options=("ridge",))
  assert read == [*range(5), *range(2)]
  wanted = unbroken[0][0]["probes"]["ridge"]
  assert found[0]["probes"]["ridge"] == wanted


@pytest.mark.parametrize("at", [0, 40, 200, -1, None])
def test_a_damaged_file(at, take, compiled, unbroken, tmp_path, capsys):
  shutil.copytree(unbroken[1], tmp_path, dirs_exist_ok=True)
  for path in (tmp_path / "features.0", tmp_path / "1"):
    content = bytearray(path.read_bytes())
    if at is None:
      del content[len(content) // 2 :]
    else:
      content[at] ^= 1
    path.write_bytes(content)
  with take(None) as read:
    assert evaluate(compiled, tmp_path) == unbroken[0]
  assert read == [*range(5), *range(2)]
  assert capsys.readouterr().err.count("is damaged: starting the ") == 2


def test_parts_that_do_not_follow(tmp_path):
  """Parts of an older start lie behind a newer, shorter one."""
  path, rows = str(tmp_path / "rows"), {"x": np.arange(3.0)}
  older = resuming.Pass(path, "it", {}, grows=True)
  older.save(2, rows)
  older.save(4, rows)
  newer = resuming.Pass(path, "it", {}, grows=True)
  assert (newer.done, len(newer.found)) == (4, 2)
  np.testing.assert_array_equal(newer.found[1]["x"], rows["x"])
  shutil.move(f"{path}.1", f"{path}.2")
  shutil.copy(f"{path}.0", f"{path}.1")
  assert resuming.Pass(path, "it", {}, grows=True).done == 2


def test_a_full_disk(compiled, tmp_path):
  kept = compiled.resume(TRAINING, str(tmp_path / "0"), {})
  kept.save(2, {})
  (tmp_path / "0").rename(tmp_path / "1")
  (tmp_path / "0").mkdir()  # cannot be replaced
  with pytest.raises(errors.FailedError, match="was saved after 2 batches"):
    kept.save(3, {})
