"""The inspection of two models: one pass, its page, and its advice."""

import json
import os
import pathlib
import subprocess
import sys

import drawn
import numpy as np
import pytest

from vitkd_jax.data import datasets, preprocess
from vitkd_jax.diagnostics import running
from vitkd_jax.evaluation import scoring
from vitkd_jax.models import vit

ROOT = pathlib.Path(__file__).parents[1]
FIELDS = dict(width=16, depth=2, mlp_dim=32, num_heads=2, patch_size=(7, 7))
IMAGES = preprocess.Preprocess(
  size=(28, 28),
  short_side=None,
  interpolation="bicubic",
  mean=(0.5,) * 3,
  std=(0.5,) * 3,
)


def scored(seed, **changes):
  fields = {**FIELDS, **changes}
  params = drawn.params(10, seed, deviation=0.2, **fields)
  return scoring.Scored(vit.Model(10, **fields), params, IMAGES)


@pytest.fixture(scope="module")
def data():
  return (
    datasets.load("fashion_mini", "test"),
    datasets.info("fashion_mini"),
  )


def inspect(student, data, **options):
  return running.inspect(student, *data, images=48, batch_size=16, **options)


def test_a_model_is_like_itself(data):
  one = scored(0)
  found = inspect(one, data, teacher=one)
  np.testing.assert_allclose(np.diag(found["cka"]), 1, atol=1e-3)
  assert found["agreement"] == 1
  assert found["kl"] == pytest.approx(0, abs=1e-6)
  assert all(pair["explained"] > 0.999 for pair in found["pairs"])
  assert found["advice"]["pairs"] == []
  assert sum(each["images"] for each in found["by_class"]) == 48
  assert found["models"]["student"] == found["models"]["teacher"]
  looked = found["gallery"]["attention"]
  np.testing.assert_array_equal(looked["student"], looked["teacher"])


def test_the_advice_names_the_block_that_is_not_the_teachers(data):
  """The first block is the teacher's, the second another's."""
  student, teacher = scored(0), scored(0)
  other = scored(5).params["Transformer"]["encoderblock_1"]
  transformer = dict(student.params["Transformer"], encoderblock_1=other)
  params = dict(student.params, Transformer=transformer)
  found = inspect(
    scoring.Scored(student.model, params, IMAGES), data, teacher=teacher
  )
  assert found["pairs"][0]["explained"] > 0.999
  chosen = found["advice"]["pairs"]
  assert [(x["student"], x["teacher"]) for x in chosen] == [(1, 1)]


def test_what_is_lacking_in_images_adds_up_to_what_is_not_explained(data):
  one, other = scored(0), scored(3, width=24, num_heads=3, depth=3)
  found = running.inspect(one, *data, teacher=other, images=6, batch_size=6)
  gallery = found["gallery"]
  most = max(found["pairs"], key=lambda pair: pair["missing"])
  assert gallery["teacher"] == most["teacher"]
  assert gallery["lacking"].shape == (6, 4, 4)
  assert gallery["lacking"].mean() == pytest.approx(
    1 - most["explained"], abs=1e-4
  )
  for looked in gallery["attention"].values():
    np.testing.assert_allclose(looked.max(axis=(1, 2)), 1, rtol=1e-6)


def test_records_that_cannot_be_read_do_not_count():
  weights = [1, 1, 0, 1], [0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]
  batches = [
    dict(image=4 * i + np.arange(4), label=4 * i + np.arange(4), weight=each)
    for i, each in enumerate(weights)
  ]
  found = [
    batch["label"].tolist() for batch in running._without_bad(batches, 4)
  ]
  assert found == [[0, 1, 3, 5], [6, 8, 9, 10], [12, 13, 14, 15]]


def test_results_do_not_depend_on_the_batch_size(data):
  """But for the alignment, whose expectation does not."""
  one, other = scored(0), scored(3, width=24, num_heads=3, depth=3)
  found = inspect(one, data, teacher=other)
  again = running.inspect(one, *data, teacher=other, images=48, batch_size=48)
  for a, b in zip(found["pairs"], again["pairs"], strict=True):
    assert a["explained"] == pytest.approx(b["explained"], abs=1e-4)
    assert a["possible"] == pytest.approx(b["possible"], abs=1e-4)
  for name in ("student", "teacher"):
    for a, b in zip(
      found["models"][name]["blocks"],
      again["models"][name]["blocks"],
      strict=True,
    ):
      assert a["dimensions"] == b["dimensions"]
      np.testing.assert_allclose(a["frequencies"], b["frequencies"], atol=2e-4)
      assert a["norm"] == pytest.approx(b["norm"], rel=1e-4)
  np.testing.assert_allclose(found["cka"], again["cka"], atol=0.1)


def test_what_is_measured_is_within_its_bounds(data):
  found = inspect(scored(0, pool_type="tok"), data, kernel="rbf")
  model = found["models"]["student"]
  assert set(found) == {"images", "models", "gallery"}
  assert "lacking" not in found.pop("gallery")
  for block in model["blocks"]:
    assert 1 <= block["rank"] <= 16
    assert block["dimensions"] == sorted(block["dimensions"])
    assert sum(block["frequencies"]) == pytest.approx(1, abs=1e-3)
    assert 1 / 16 <= block["outlier"] <= 1
  for block in model["attention"]:
    assert all(0 < x < 28 * 2**0.5 for x in block["distance"])
    assert all(0 < x <= np.log(17) + 1e-3 for x in block["entropy"])
  json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(images=0), "expected an integer images >= 1, got 0"),
    (dict(images=3), "expected at least 4 images, got 3"),
    (dict(batch_size=2), "expected an integer batch_size >= 4, got 2"),
    (dict(kernel="rbff"), "the nearest is 'rbf'"),
  ],
)
def test_wrong_options(data, options, message):
  with pytest.raises(ValueError, match=message):
    running.inspect(scored(0), *data, **options)


def test_the_command_writes_a_page(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "vitkd_jax.inspect",
      "--weights=shipped:fashion_teacher",
      "--teacher=shipped:fashion_teacher",
      "--images=32",
      "--batch-size=16",
      f"--out={tmp_path}",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, "COLUMNS": "80"},
  )
  assert done.returncode == 0, done.stderr
  assert "agreement with the teacher 100.00%" in done.stdout
  assert "The student lacks nothing" in done.stdout
  page = (tmp_path / "index.html").read_text()
  for text in ("Which blocks are alike", "Where the heads look", "<svg"):
    assert text in page
  assert json.loads((tmp_path / "inspect.json").read_text())["images"] == 32
  for name in (
    "cka",
    "missing",
    "spectra",
    "attention",
    "reliability",
    "samples",
  ):
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
