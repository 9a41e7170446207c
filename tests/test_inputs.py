"""Tests of vitkd_jax.training.inputs with a set of several image sizes."""

import contextlib
import itertools
import multiprocessing
import os
import pathlib
import sys

import numpy as np
from PIL import Image
import pytest

from vitkd_jax import prepare
from vitkd_jax.data import crop, datasets
from vitkd_jax.training import inputs, sections

SIZES = [(40, 60), (60, 40), (33, 50)]  # (H, W)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A prepared set `made`: 12 train and 6 validation images of 3 classes."""
  root = tmp_path_factory.mktemp("tree")
  rng = np.random.default_rng(0)
  for split, number in (("train", 12), ("validation", 6)):
    for i in range(number):
      place = root / split / f"class{i % 3}"
      place.mkdir(parents=True, exist_ok=True)
      pixels = rng.integers(0, 256, (*SIZES[i % 3], 3), dtype=np.uint8)
      Image.fromarray(pixels).save(place / f"{i:02d}.jpg")
  data_dir = root.parent / "sets"
  prepare.prepare("made", source=str(root), data_dir=str(data_dir))
  return str(data_dir)


def make(folder, batch_size=8, **values):
  values = dict(
    name="made",
    train_split="train",
    eval_split="validation",
    data_dir=folder,
    **values,
  )
  data = sections.make(sections.Data, "data", values)
  return inputs.Inputs(data, batch_size=batch_size, seed=0)


def test_images_of_several_sizes_are_cropped(folder):
  images = make(folder, image_size=32)
  assert images.image_size == (32, 32)
  assert images.num_train == 12
  with contextlib.closing(images.train(0)) as batches:
    batch = next(batches)
  assert batch["image"].shape == (8, 32, 32, 3)
  with contextlib.closing(images.evaluation()) as batches:
    (batch,) = batches
  np.testing.assert_array_equal(batch["weight"], [1] * 6 + [0] * 2)
  source = datasets.load("made", "validation", data_dir=folder)
  middle = crop.CentreCrop(32, 36)  # 32 / 0.875 = 36.6, cut as timm does
  for i in range(6):
    wanted = source.read(i, middle)
    np.testing.assert_array_equal(batch["image"][i], wanted["image"])
    assert batch["label"][i] == wanted["label"]


def test_options_reach_the_crops(folder):
  images = make(
    folder,
    image_size=16,
    crop_area=[1.0, 1.0],
    crop_ratio=[1.5, 1.5],
    repeats=2,
  )
  with contextlib.closing(images.train(0)) as batches:
    batch = next(batches)
  labels = batch["label"].reshape(-1, 2)
  np.testing.assert_array_equal(labels[:, 0], labels[:, 1])
  # The whole image, which has the only ratio that is allowed.
  source = datasets.load("made", "train", data_dir=folder)
  whole = [source[i]["image"] for i in range(12)]
  whole = [
    crop.resize(image, 16) for image in whole if image.shape == (40, 60, 3)
  ]
  rows = [image for image in batch["image"] for other in whole
          if (image == other).all()]  # fmt: skip
  assert len(rows) == (batch["label"] == 0).sum()
  images = make(folder, image_size=32, eval_resize=32)
  with contextlib.closing(images.evaluation()) as batches:
    (batch,) = batches
  source = datasets.load("made", "validation", data_dir=folder)
  wanted = source.read(0, crop.CentreCrop(32, 32))["image"]
  np.testing.assert_array_equal(batch["image"][0], wanted)


@pytest.mark.parametrize("size", [32, 8])
def test_cached_batches_are_those_of_the_files(folder, size):
  kept, read = (
    make(folder, image_size=size, cache=cache, num_workers=2 * cache)
    for cache in (True, False)
  )
  for ways in ("train", "evaluation"):
    arguments = [3] if ways == "train" else []
    with (
      contextlib.closing(getattr(kept, ways)(*arguments)) as ours,
      contextlib.closing(getattr(read, ways)(*arguments)) as theirs,
    ):
      assert not multiprocessing.active_children()  # threads share the cache
      for one, other in itertools.islice(zip(ours, theirs, strict=True), 3):
        for name in other:
          np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("exif", [False, True])
def test_images_are_turned_where_exif_is_asked_for(tmp_path, exif, cache):
  exif_of_six = Image.Exif()
  exif_of_six[0x0112] = 6
  pixels = np.zeros((32, 32, 3), np.uint8)
  pixels[:16] = 255  # the upper half, which is then the right one
  for split in ("train", "validation"):
    for name in "ab":
      place = tmp_path / "tree" / split / name
      place.mkdir(parents=True)
      Image.fromarray(pixels).save(place / "0.png", exif=exif_of_six)
  sets = str(tmp_path / "sets")
  prepare.prepare("made", source=str(tmp_path / "tree"), data_dir=sets)
  images = make(sets, 2, image_size=32, eval_resize=32, exif=exif, cache=cache)
  with contextlib.closing(images.evaluation()) as batches:
    (batch,) = batches
  wanted = np.rot90(pixels, -1) if exif else pixels
  np.testing.assert_array_equal(batch["image"], [wanted, wanted])


@pytest.mark.parametrize(
  "values, words",
  [
    ({}, "config.data.image_size"),
    ({"image_size": -1}, "config.data.image_size >= 0, got -1"),
    ({"image_size": 32, "repeats": 0}, "config.data.repeats >= 1, got 0"),
    ({"image_size": 32, "crop_area": (0.0, 1.0)}, "in (0, 1], got (0.0, 1.0)"),
    ({"image_size": 32, "crop_area": (0.5, 0.1)}, "in (0, 1], got (0.5, 0.1)"),
    ({"image_size": 32, "crop_area": (0.5, 1.5)}, "in (0, 1], got (0.5, 1.5)"),
    (
      {"image_size": 32, "crop_area": (0.5,)},
      "crop_area to be a sequence of 2 finite numbers",
    ),
    ({"image_size": 10**5}, "image_size <= 5792"),
    ({"image_size": 32, "num_workers": 10**5}, "num_workers <= 1000"),
    ({"image_size": 32, "crop_ratio": (2.0, 1.0)}, "both > 0, got (2.0, 1.0)"),
    ({"image_size": 32, "eval_resize": 31}, "eval_resize >= image_size=32"),
    ({"image_size": 32, "eval_resize": 25_600}, "resize to at most 512"),
    ({"eval_resize": 31}, "eval_resize=31 needs config.data.image_size"),
    ({"crop_area": (0.5, 1.0)}, "crop_area=(0.5, 1.0) needs"),
    ({"crop_ratio": (1.0, 1.0)}, "crop_ratio=(1.0, 1.0) needs"),
    ({"image_size": 32, "max_bad_share": 2.0}, "max_bad_share <= 1, got 2.0"),
    ({"image_size": "32"}, "to be an integer, got '32'"),
  ],
)
def test_what_does_not_fit_is_refused(folder, values, words):
  with pytest.raises(ValueError, match=r".") as refusal:
    make(folder, **values)
  assert words in str(refusal.value)
  assert "\n" not in str(refusal.value)


def resident():
  """Bytes that this process and its workers hold."""
  pids = [os.getpid(), *(c.pid for c in multiprocessing.active_children())]
  pages = sum(
    int(pathlib.Path("/proc", str(pid), "statm").read_text().split()[1])
    for pid in pids
  )
  return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_memory_stays_flat_over_50_000_examples(folder, num_workers):
  images = make(folder, 250, image_size=32, num_workers=num_workers)
  held = []
  with contextlib.closing(images.train(0)) as batches:
    for number, _ in enumerate(batches, 1):
      if number % 20 == 0:  # 5,000 examples
        held.append(resident())
      if number == 200:
        break
  assert len(held) == 10
  print(f"{num_workers} workers: MB", [round(x / 2**20) for x in held])
  assert max(held[2:]) <= 1.05 * held[1]
