"""Tests of the probes: neighbours, ridge, logistic and few-shot."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets as sets
from sklearn import linear_model, neighbors
from test_evaluate import Source, info, model
from test_scorer import SETS, SOME, Later

from vitkd_jax.cluster import sharding
from vitkd_jax.evaluation import (
  logistic,
  neighbours,
  probes,
  ridge,
  scorer,
  sgd,
)
from vitkd_jax.reporting import evaluated

C, D = 7, 12


@pytest.fixture(params=[1, 8])
def mesh(request):
  return sharding.make_mesh(devices=jax.devices()[: request.param])


def drawn(number, seed=0):
  """Features in clusters, of which class 3 has none, and their labels."""
  random = np.random.default_rng(seed)
  label = random.choice([0, 1, 2, 4, 5, 6], number)
  centre = np.random.default_rng(9).normal(size=(C, D))
  x = centre[label] + 2 * random.normal(size=(number, D)) + 3
  return x.astype(np.float32), label.astype(np.int32)


def votes(mesh, bank, x, **options):
  placed = neighbours.place(*bank, mesh)
  function = functools.partial(
    neighbours.votes, mesh=mesh, num_classes=C, **options
  )
  return jax.jit(function)(x, placed)


def test_votes_equal_scikit_learn_s(mesh):
  bank, (x, _) = drawn(203), drawn(70, seed=1)
  found = votes(mesh, bank, x, neighbours=(1, 20, 203), temperature=0.07)
  known = [0, 1, 2, 4, 5, 6]
  for k, each in zip((1, 20, 203), found, strict=True):
    peer = neighbors.KNeighborsClassifier(
      k,
      metric="cosine",
      algorithm="brute",
      weights=lambda far: np.exp((1 - far) / 0.07),
    )
    wanted = peer.fit(*bank).predict_proba(x)
    shares = each / each.sum(1, keepdims=True)
    np.testing.assert_allclose(shares[:, known], wanted, atol=2e-5)
    np.testing.assert_array_equal(each[:, 3], 0)


def test_a_vote_by_hand_and_the_first_of_equals(mesh):
  """cos 1, 1, 1 and 0: of three equal ones the first two vote."""
  x = np.float32([[0, 2], [3, 0], [5, 0], [1, 0]])
  bank = x, np.int32([6, 1, 2, 4])
  two, four = votes(mesh, bank, x[1:2], neighbours=(2, 4), temperature=0.5)
  e = np.exp(2)
  np.testing.assert_allclose(two, [[0, e, e, 0, 0, 0, 0]], rtol=1e-6)
  np.testing.assert_allclose(four, [[0, e, e, 0, e, 0, 1]], rtol=1e-6)


@pytest.mark.parametrize("number", [9, 13, 100])
@pytest.mark.parametrize("l2", [0.5, 1024.0])
def test_ridge_equals_least_squares(number, l2, monkeypatch):
  """Of [X; sqrt(l2) I] w = [Y; 0], whitened as big_vision does."""
  monkeypatch.setattr(ridge, "_ROWS", 32)
  x, label = drawn(number)
  first = np.float64(x)
  white = (first - first.mean(0)) / (first.std(0) + 1e-5)
  white = np.hstack([white, np.full((number, 1), 100.0)])
  target = 2 * np.eye(C)[label] - 1
  left = np.vstack([white, np.sqrt(l2) * np.eye(D + 1)])
  right = np.vstack([target, np.zeros((D + 1, C))])
  weights = np.linalg.lstsq(left, right)[0]
  other, made = ridge.fit(x, label, C, [1.0, l2])
  np.testing.assert_allclose(
    x @ made.kernel + made.bias, white @ weights, atol=1e-5
  )
  assert np.abs(other.kernel - made.kernel).max() > 1e-4
  assert made.top1(x, label) == np.mean(np.argmax(white @ weights, 1) == label)


def centred(scores):
  """Scores without what is common to all classes, which is free."""
  return scores - scores.mean(1, keepdims=True)


def test_logistic_regression_equals_scikit_learn_s(mesh, monkeypatch):
  """In several blocks, the last one padded, and of some of the images."""
  monkeypatch.setattr(logistic, "_ROWS", 512)
  x, label = sets.load_digits(return_X_y=True)
  x = np.float32(x)
  white = (x - x.mean(0)) / (x.std(0) + 1e-5)
  made = logistic.Regression(x, label, 10, mesh)
  used = np.arange(len(x)) % 3 > 0
  for l2, some in ((0.1, used), (0.01, None)):
    found, number = made.minimise(l2, some)
    assert number < 100
    rows = slice(None) if some is None else some
    peer = linear_model.LogisticRegression(
      C=1 / (l2 * len(x[rows])), tol=1e-8, max_iter=1000
    ).fit(white[rows], label[rows])
    np.testing.assert_allclose(
      centred(x @ found.kernel + found.bias),
      centred(peer.decision_function(white)),
      atol=0.03,  # of scores up to 10: both stop near a flat minimum
    )
    assert found.top1(x, label) == peer.score(white, label)


def descended(x, label, steps, rate, size):
  """In NumPy, as torch.optim.SGD: v = 0.9 v + g, w = w - rate v."""
  white = np.float64((x - x.mean(0)) / (x.std(0) + 1e-5))
  batches = sgd._drawn(len(x), size)
  weights, velocity = np.zeros((2, x.shape[1] + 1, C))
  for step in range(steps):
    rows = next(batches)
    own = np.pad(white[rows], ((0, 0), (0, 1)), constant_values=1)
    scores = np.exp(own @ weights)
    wrong = scores / scores.sum(1, keepdims=True) - np.eye(C)[label[rows]]
    velocity = 0.9 * velocity + own.T @ wrong / size
    now = rate * size / 256 * (1 + np.cos(np.pi * step / steps)) / 2
    weights = weights - now * velocity
  return white @ weights[:-1] + weights[-1]


def test_descent_by_hand(mesh, monkeypatch):
  """Over two calls of the program, and from one permutation to the next."""
  monkeypatch.setattr(sgd, "_STEPS", 5)
  x, label = drawn(70)
  seen = []
  made = sgd.fit(
    x, label, C, mesh,
    steps=7, rates=(0.5, 4.0), batch_size=27, advance=seen.append,
  )  # fmt: skip
  assert seen == [5, 2]
  for found, rate in zip(made, (0.5, 4.0), strict=True):
    wanted = descended(x, label, 7, rate, 27)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(x @ found.kernel + found.bias, wanted, atol=2e-5)


def test_batches_are_permutations_one_after_the_other():
  batches = sgd._drawn(10, 4)
  rows = np.concatenate([next(batches) for _ in range(5)])
  for part in (rows[:10], rows[10:]):
    assert sorted(part) == list(range(10))
  assert rows[:10].tolist() != rows[10:].tolist()


def test_a_long_descent_ends_at_scikit_learn_s_minimum(mesh):
  """Of all images at a time, without regularisation."""
  x, _ = drawn(400)
  # Classes that overlap, as otherwise there is no minimum.
  label = np.random.default_rng(1).integers(3, size=400) * (x[:, 0] > 2)
  (made,) = sgd.fit(x, label, 3, mesh, steps=800, rates=(0.5,), batch_size=400)
  white = (x - x.mean(0)) / (x.std(0) + 1e-5)
  peer = linear_model.LogisticRegression(C=np.inf, tol=1e-10, max_iter=9999)
  wanted = centred(peer.fit(white, label).decision_function(white))
  assert np.abs(wanted).max() > 1
  found = centred(x @ made.kernel + made.bias)
  np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_the_strength_is_the_best_on_held_out_images(mesh):
  x, label = drawn(400)
  held = probes._held_out(400)
  assert held.sum() == 40
  options = probes.Options(("linear",))
  fitted = probes.fit(options, x, label, C, mesh)
  found = fitted.results({k: dict(top1=0, top5=0) for k in fitted.names})
  made = ridge.fit(x[~held], label[~held], C, probes.RIDGE)
  shares = [each.top1(x[held], label[held]) for each in made]
  assert len(set(shares)) > 1
  assert found["ridge"]["held_out_top1"] == max(shares)
  assert found["ridge"]["l2"] == probes.RIDGE[int(np.argmax(shares))]
  assert 0.3 < found["logistic"]["held_out_top1"] < 1
  assert (found["images"], found["width"]) == (400, D)
  # Fitted again on all images.
  (wanted,) = ridge.fit(x, label, C, [found["ridge"]["l2"]])
  scores = fitted.scores(jnp.array(x[:8]))
  np.testing.assert_allclose(
    scores["ridge"], x[:8] @ wanted.kernel + wanted.bias, atol=1e-5
  )


def test_few_shots_are_big_vision_s(mesh):
  """Its draws: of each seed a permutation of each class, one by one."""
  x, label = drawn(60)
  most = int(np.bincount(label).max())
  options = probes.Options(("fewshot",), shots=(1, most), seeds=2)
  fitted = probes.fit(options, x, label, C, mesh)
  names = [f"fewshot/{shots}/{seed}" for seed in (0, 1) for shots in (1, most)]
  assert list(fitted.names) == names
  rng = np.random.default_rng(1)
  rows = [rng.permutation(np.where(label == c)[0])[:1] for c in range(C)]
  rows = np.concatenate(rows)
  assert len(rows) == 6  # none of class 3
  (wanted,) = ridge.fit(x[rows], label[rows], C, [2.0**10])
  scores = fitted.scores(jnp.array(x[:8]))["fewshot/1/1"]
  np.testing.assert_allclose(
    scores, x[:8] @ wanted.kernel + wanted.bias, atol=1e-5
  )
  top1 = dict(zip(names, (0.5, 0.7, 0.7, 0.7), strict=True))
  found = fitted.results({k: {"top1": v, "top5": 1} for k, v in top1.items()})
  one, whole = found["fewshot"]
  assert one["top1"] == pytest.approx(0.6)
  assert one["top1_std"] == pytest.approx(0.2 / 2**0.5)
  assert one["top1_of_seeds"] == [0.5, 0.7]
  assert (whole["shots"], whole["top1_std"]) == (most, 0)
  more = dataclasses.replace(options, shots=(1, most + 1))
  with pytest.raises(ValueError, match=f"at most {most} shots, .* {most + 1};"):
    probes.fit(more, x, label, C, mesh)


def compiled(batch_size=16):
  return scorer.Scorer(model(0), batch_size=batch_size, with_features=True)


def split(source, of):
  return scorer.Split(source, of, model(0).images)


def test_features_are_what_the_head_reads():
  counts = []
  x, label = compiled().features(split(Source(), info()), counts.append)
  assert sum(counts) == len(x) == 37
  np.testing.assert_array_equal(
    label, [Source()[i]["label"] for i in range(37)]
  )
  student = model(0)
  images = np.float32([Source()[i]["image"] for i in range(37)])
  apply = jax.jit(student.model.apply)
  out = apply({"params": student.params}, (images / 255 - 0.5) / 0.5)[1]
  np.testing.assert_allclose(x, out["head_input"], atol=1e-5)


def test_a_probe_with_the_model_s_head_has_its_results():
  """On every dataset, whatever its rule."""
  head = model(0).params["head"]
  same = ridge.Linear(head["kernel"], head["bias"])
  made = compiled()
  options = probes.Options(("ridge",))
  about = {"ridge": {"l2": 1.0}}
  fitted = probes.Fitted(
    {"ridge": same}, None, options, 10, made.mesh, about, {}
  )
  for source, of in ((Source(), info()), (Later(), SETS), (Source(), SOME)):
    found = made.score(split(source, of), fitted=fitted)
    probe = found["probes"]["ridge"]
    assert (probe["top1"], probe["top5"]) == (found["top1"], found["top5"])
  assert made._forward["student"]._cache_size() == 1


def everything():
  """All probes on the images that they were fitted on."""
  made, options = compiled(), probes.Options(
    ("knn", "linear", "sgd", "fewshot"), (1, 5), shots=(1, 2), seeds=2,
    sgd_steps=60,
  )  # fmt: skip
  x, label = made.features(split(Source(), info()))
  fitted = probes.fit(options, x, label, 10, made.mesh)
  return made.score(split(Source(), info()), fitted=fitted)


def test_any_number_of_devices(capsys):
  found = everything()
  assert found["probes"]["knn"][0]["top1"] == 1  # each is its own nearest
  code = (
    "import jax, json, sys; sys.path.insert(0, 'tests'); "
    "import test_probes as t; assert jax.device_count() == 1; "
    "print(json.dumps(t.everything()['probes']))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  alone = json.loads(done.stdout.splitlines()[-1])
  for each in (alone, found["probes"]):
    del each["logistic"]["iterations"]
  assert alone == found["probes"]
  evaluated.show(found, "title")
  text = capsys.readouterr().out
  for row in (
    "top-1, kNN, k = 5 ",
    "top-1, linear probe, ridge, l2 = ",
    "top-1, linear probe, sgd, learning rate = ",
    "top-1, few-shot, 2 images a class ",
  ):
    assert row in text


def test_wrong_options_are_refused():
  for options, sentence in (
    (dict(which=("kn",)), "expected probe to be one of 'knn', .* is 'knn'"),
    (dict(which=("knn",), neighbours=(0,)), "integer neighbours >= 1, got 0"),
    (dict(which=("knn",), temperature=0.0), "expected temperature > 0, got 0"),
    (dict(which=("fewshot",), seeds=0), "integer seeds >= 1, got 0"),
    (dict(which=("sgd",), sgd_steps=0), "integer sgd_steps >= 1, got 0"),
  ):
    with pytest.raises(ValueError, match=sentence):
      probes.Options(**options)
  with pytest.raises(ValueError, match="at least 10 training images"):
    probes.Options(("ridge",)).check_size(9)
  probes.Options(("ridge",)).check_size(10)
  with pytest.raises(ValueError, match="at most 199 neighbours, the training"):
    probes.Options(("knn",)).check_size(199)
