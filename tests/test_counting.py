"""Tests of vitkd_jax.evaluation's evaluators on ImageNet's test sets."""

import dataclasses
import hashlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_imagenet import small_imagenet
from trees import picture, tar

from vitkd_jax.data import datasets, decode, preprocess, subsets
from vitkd_jax.data.builders import imagenet, records, shards, synsets
from vitkd_jax.evaluation import agreement, classification, running, scoring
from vitkd_jax.reporting import evaluated

B, C = 64, 7


def counted(batch, logits, taught=None, classes=None):
  """Results of one batch whose images are its logits."""
  names = [str(i) for i in range(logits.shape[-1])]
  evaluators = {
    "student": classification.Classification(classes, names, "labels" in batch)
  }
  if taught is not None:
    evaluators["teacher"] = agreement.Agreement(classes)
  params = {"student": logits, "teacher": taught}
  models = dict.fromkeys(evaluators, lambda params, image: params)
  step = jax.jit(running.make_step(models, evaluators))
  batch = {"image": np.zeros((len(logits), 1)), **batch}
  sums = step(running.zero_sums(evaluators), params, batch)
  found = {}
  for name, evaluator in evaluators.items():
    found |= evaluator.compute(sums[name])
  return found


def log_softmax(x):
  x = np.float64(x)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.fixture
def batch():
  rng = np.random.default_rng(3)
  labels = rng.random((B, C)) < 0.25
  labels[:5] = False
  logits = rng.normal(size=(B, C)).astype(np.float32)
  weight = (rng.random(B) < 0.8).astype(np.float32)
  label = rng.integers(0, C, B).astype(np.int32)
  return {"label": label, "labels": labels, "weight": weight}, logits


def test_any_label_of_an_image_is_right(batch):
  given, logits = batch
  found = counted(given, logits, taught=logits[::-1])
  labels = given["labels"]
  use = (given["weight"] > 0) & labels.any(-1)
  order = np.argsort(-logits, -1)
  hit = np.take_along_axis(labels, order, -1)
  assert found["count"] == use.sum() == np.sum(found["confusion"])
  assert found["unlabelled"] == np.sum((given["weight"] > 0) & ~labels.any(-1))
  assert 0 < found["unlabelled"] < found["count"]
  assert found["top1"] == hit[use, 0].mean()
  assert found["top5"] == hit[use, :5].any(-1).mean()
  p = np.exp(log_softmax(logits))
  nll = -np.log((p * labels).sum(-1)[use]).mean()
  assert found["loss"] == pytest.approx(nll, rel=1e-6)
  taught = np.argsort(-logits[::-1], -1)[:, :1]
  hit = np.take_along_axis(labels, taught, -1)[use]
  assert found["teacher_top1"] == hit.mean()
  # An image counts for its label, where that is one of them, else the first.
  right = np.take_along_axis(labels, order[:, :1], -1)[:, 0]
  kept = np.take_along_axis(labels, given["label"][:, None], -1)[:, 0]
  true = np.where(kept, given["label"], labels.argmax(-1))
  for i, each in enumerate(found["classes"]):
    of = use & (true == i)
    assert each["count"] == of.sum()
    assert each["accuracy"] == right[of].mean()


def test_a_label_that_is_not_finite_is_wrong(batch):
  given, logits = batch
  spoiled = np.where(given["labels"], np.nan, logits)
  assert counted(given, spoiled)["top1"] == 0
  assert counted(given, np.full_like(logits, -np.inf))["count"] > 0


def test_some_classes_are_scored(batch):
  given, logits = batch
  classes = (1, 2, 4, 6)
  label = np.array(classes, np.int32)[given["label"] % 4]
  given = {"label": label, "weight": given["weight"]}
  found = counted(given, logits, taught=logits[::-1], classes=classes)
  use = given["weight"] > 0
  some = logits[:, classes]
  place = np.searchsorted(classes, label)
  guess = some.argmax(-1)
  assert found["top1"] == np.mean(guess[use] == place[use])
  assert found["top5"] == 1  # of four
  assert found["top1_all"] == np.mean(logits.argmax(-1)[use] == label[use])
  assert found["top1_all"] < found["top1"]
  rank = (logits > logits[np.arange(B), label][:, None]).sum(-1)
  assert found["top5_all"] == np.mean(rank[use] < 5)
  p, q = log_softmax(some), log_softmax(some[::-1])
  nll = -p[np.arange(B), place][use].mean()
  assert found["loss"] == pytest.approx(nll, rel=1e-6)
  kl = (np.exp(q) * (q - p)).sum(-1)[use].mean()
  assert found["kl"] == pytest.approx(kl, rel=1e-5)
  assert found["agreement"] == np.mean(guess[use] == guess[::-1][use])
  columns = np.sum(found["confusion"], 0)
  assert set(np.flatnonzero(columns)) <= set(classes)


def test_the_subsets_have_200_classes():
  for name, first in (("imagenet_a", 6), ("imagenet_r", 1)):
    found = subsets.scored_classes(name, 1000)
    assert len(found) == 200
    assert found[0] == first
    assert subsets.scored_classes(name, 200) is None
  assert subsets.scored_classes("imagenet_v2", 1000) is None


# From archives to numbers.


_WHOLE = preprocess.Preprocess((8, 9), None, (0.5,) * 3, (0.5,) * 3)


@dataclasses.dataclass(frozen=True)
class Oracle:
  """Knows every image, and what to answer to it."""

  params: dict
  images: preprocess.Preprocess = _WHOLE

  def logits(self, params, image):
    image = jnp.float32(image.reshape(len(image), 1, -1))
    far = jnp.abs(image - params["images"]).sum(-1)
    return params["answers"][jnp.argmin(far, -1)]


def oracle(answers):
  """Answers {bytes of an image: its logits}."""
  images = [decode.to_rgb(decode.decode(data)) for data in answers]
  return Oracle(
    {
      "images": np.float32(images).reshape(len(images), -1),
      "answers": np.float32(list(answers.values())),
    }
  )


def scored(name, folder, split, answers):
  info = datasets.info(name, str(folder))
  source = datasets.load(
    name, split, data_dir=str(folder), label_sets=info.label_sets
  )
  return scoring.evaluate(oracle(answers), source, info, batch_size=4)


def one_hot(label):
  return np.eye(1000)[label]


def test_a_model_that_answers_real_labels_has_all_right(tmp_path, capsys):
  _, val = small_imagenet(tmp_path)
  real = [[1, 2], [], [3], [4], [999], [6, 7, 8]]
  text = json.dumps(real).encode()
  (tmp_path / "real.json").write_bytes(text)
  digest = hashlib.sha256(text).hexdigest()
  labels = dataclasses.replace(imagenet.REAL, size=len(text), sha256=digest)
  made = imagenet.imagenet2012_real(str(tmp_path), (val, labels))
  shards.write(records.plan(made), tmp_path / "out")
  answers = {
    picture(90001 + i): one_hot(each[-1] if each else 0)
    for i, each in enumerate(real)
  }
  args = "imagenet2012_real", tmp_path / "out", "validation"
  found = scored(*args, answers)
  assert found["top1"] == found["top5"] == 1
  assert (found["count"], found["unlabelled"]) == (5, 1)
  evaluated.show(found, "title")
  shown = capsys.readouterr().out
  assert re.search(r"top-1, any label of the image +100.00%", shown)
  assert re.search(r"images without a label, not counted +1\b", shown)
  answers[picture(90006)] = one_hot(9)
  assert scored(*args, answers)["top1"] == 4 / 5
  # Whoever does not ask gets images and labels, as of any other set.
  plain = datasets.load(args[0], args[2], data_dir=str(args[1]))
  assert set(plain[0]) == {"image", "label"}


def test_test_sets_of_200_classes_are_scored_over_them(tmp_path, capsys):
  classes = synsets.names()
  first, second = subsets.scored_classes("imagenet_a", 1000)[:2]
  files = {
    f"imagenet-a/{classes[c]}/{i}.jpg": picture(10 * c + i)
    for c in (first, second)
    for i in range(2)
  }
  data = tar(files)
  archive = imagenet.TESTS["imagenet_a"][1]
  (tmp_path / archive.file).write_bytes(data)
  archive = dataclasses.replace(archive, size=len(data), count=4)
  made = imagenet.evaluation_set("imagenet_a", str(tmp_path), archive)
  shards.write(records.plan(made), tmp_path / "out")
  # Each image's own class comes second, after class 0, which is not one of
  # the 200; of one image another of the 200 comes before it.
  answers = {
    picture(10 * c + i): 2 * one_hot(0) + one_hot(c)
    for c in (first, second)
    for i in range(2)
  }
  answers[picture(10 * second)] += 3 * one_hot(first)
  found = scored("imagenet_a", tmp_path / "out", "test", answers)
  assert found["scored_classes"] == 200
  assert (found["top1"], found["top5"]) == (3 / 4, 1)
  assert (found["top1_all"], found["top5_all"]) == (0, 1)
  evaluated.show(found, "title")
  shown = capsys.readouterr().out
  assert re.search(r"top-1 of the 200 classes that occur +75.00%", shown)
  assert re.search(r"top-1 of all 1,000 classes +0.00%", shown)


def test_a_real_label_out_of_range_is_a_bad_record(tmp_path):
  _, val = small_imagenet(tmp_path)
  text = json.dumps([[1], [], [3], [4], [5], [6]]).encode()
  (tmp_path / "real.json").write_bytes(text)
  digest = hashlib.sha256(text).hexdigest()
  labels = dataclasses.replace(imagenet.REAL, size=len(text), sha256=digest)
  made = imagenet.imagenet2012_real(str(tmp_path), (val, labels))
  folder = shards.write(records.plan(made), tmp_path / "out")
  path = folder / "features.json"
  features = json.loads(path.read_text())
  path.write_text(json.dumps(features).replace('"1000"', '"5"'))
  for name in ("label", "original_label", "real_label"):
    names = folder / f"{name}.labels.txt"
    if names.exists():
      names.write_text("\n".join("abcde"))
  source = datasets.load(
    "imagenet2012_real",
    "validation",
    data_dir=str(tmp_path / "out"),
    label_sets=True,
  )
  with pytest.raises(decode.BadRecordError, match="expected a label from 0"):
    [source[i] for i in range(6)]
