"""Tests of vitkd_jax.evaluation.scorer: several splits and teachers at once."""

import dataclasses

import numpy as np
import pytest
from test_evaluate import Source, agree, info, model, random_params

from vitkd_jax import weights
from vitkd_jax.commandline import split_flags
from vitkd_jax.data import datasets
from vitkd_jax.evaluation import cost, scorer, scoring
from vitkd_jax.models import vit
from vitkd_jax.reporting import evaluated


class Later(Source):
  """11 other images, with any number of right labels."""

  def __len__(self):
    return 11

  def __getitem__(self, index):
    labels = np.random.default_rng(index).random(10) < 0.2
    return {**super().__getitem__(100 + index), "labels": labels}


SETS = dataclasses.replace(info(), label_sets=True)
SOME = dataclasses.replace(info(), scored_classes=(0, 2, 3, 5, 8))


def test_splits_in_one_pass_equal_single_runs():
  """Whatever each one's rule, with one compiled forward pass of the model."""
  student, teacher = model(0), model(5)
  compiled = scorer.Scorer(student, {"teacher": teacher}, batch_size=16)
  for source, of in ((Source(), info()), (Later(), SETS), (Source(), SOME)):
    found = compiled.score(scorer.Split(source, of, student.images))
    single = scoring.evaluate(
      student, source, of, batch_size=37, teacher=teacher
    )
    agree(found, single)
    assert list(found) == list(single)
  sizes = [forward._cache_size() for forward in compiled._forward.values()]
  assert sizes == [1, 1]


def test_several_teachers_each_agree_as_alone(capsys):
  student, teachers = model(0), {"student": model(5), "b": model(6)}  # paths
  compiled = scorer.Scorer(student, teachers, batch_size=16)
  found = compiled.score(scorer.Split(Source(), info(), student.images))
  names = ("agreement", "kl", "teacher_top1")
  assert [each["name"] for each in found["teachers"]] == ["student", "b"]
  for each in found["teachers"]:
    single = scoring.evaluate(
      student, Source(), info(), teacher=teachers[each["name"]]
    )
    agree({name: each[name] for name in names}, single)
  assert found["teachers"][0]["kl"] != found["teachers"][1]["kl"]
  evaluated.show(found, "title")
  assert "agreement with b" in capsys.readouterr().out


def test_the_cost_of_an_image():
  """Of the model in test_evaluate: width 16, one block, 2 x 2 patches of 14."""
  found = cost.of_image(model(0))
  patch = 14 * 14 * 3
  embedding = patch * 16 + 16 + 4 * 16
  attention = 4 * (16 * 16 + 16)
  block = attention + 2 * (16 * 16 + 16) + 2 * 2 * 16
  head = 2 * 16 + 16 * 10 + 10
  assert found["parameters"] == embedding + block + head
  tokens = 4
  products = tokens * (patch * 16 + 6 * 16 * 16 + 2 * tokens * 16) + 16 * 10
  assert found["flops"] == 2 * products


def test_the_speed_names_the_batch_and_the_devices():
  compiled = scorer.Scorer(model(0), batch_size=13)
  found = compiled.speed()
  assert found.pop("images_per_second") > 0
  assert found == {"batch_size": 16, "devices": 8, "device": "cpu"}


def test_datasets_that_do_not_go_together_are_refused(tmp_path):
  def refused(data, split, sentence):
    given = {"weights": "w", "data": data, "split": split, "data-dir": None}
    with pytest.raises(ValueError, match=sentence):
      split_flags.asked_each(given)

  refused("fashion_mini,fashion_mini", None, "each dataset once")
  refused("a,b,c", "test,train", "one for each of 3 datasets, got --split=test")
  refused("fashion_mini,nothing", None, "dataset 'nothing' is not prepared")
  variant = "deit_pico_patch4_28"
  path = str(tmp_path / "student.safetensors")
  params = random_params(vit.Model(10, variant=variant), 0)
  weights.save(path, params, variant=variant, format="flat")
  student = scoring.load(path, info())
  other = dataclasses.replace(info(), name="other", image_size=None)
  assert scoring.images_of(student, path, other).short_side == 28
  small = dataclasses.replace(other, image_size=(16, 16))
  with pytest.raises(ValueError, match="28x28 pixels and, of other, 16x16; gi"):
    scoring.images_of(student, path, small)
  with pytest.raises(ValueError, match=r"has 10 classes, made has 3; choose"):
    scoring.images_of(student, path, info(num_classes=3))


def test_the_split_is_the_one_for_evaluation(monkeypatch):
  given = {"weights": "w", "data": "fashion_mini", "split": None}
  given["data-dir"] = None
  assert split_flags.asked(given).split == "test"
  for name in ("validation", "val"):  # TFDS's, and of a folder val/
    of = dataclasses.replace(info(), num_examples={"train": 5, name: 5})
    monkeypatch.setattr(datasets, "info", lambda *_, of=of: of)
    assert split_flags.asked(given).split == name
