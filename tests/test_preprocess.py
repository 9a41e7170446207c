"""The one owner of preprocessing, and other libraries' words for it."""

import json
import math

import numpy as np
from PIL import Image
import pytest

from vitkd_jax.data import crop, preprocess
from vitkd_jax.models import variants
from vitkd_jax.weights import processors

STATS = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def made(size=224, short_side=256, **more):
  return preprocess.Preprocess((size, size), short_side, *STATS, **more)


def test_a_short_side_is_cut_as_timm_cuts_it():
  # timm/data/transforms_factory.py: math.floor(img_size / crop_pct)
  assert preprocess.resized(224) == 256
  assert preprocess.resized(224, 0.9) == 248
  assert preprocess.resized(32) == 36
  assert preprocess.short_side(0) is None
  assert preprocess.short_side(224) == 256
  assert preprocess.short_side(224, 240) == 240


def test_every_short_side_comes_back_from_its_crop_pct():
  for side in (*range(1, 66), 96, 128, 192, 224, 256, 384, 448, 518):
    for short in range(side, min(16 * side, 2 * side + 40) + 1):
      share = made(side, short).crop_pct
      again = json.loads(json.dumps(share))
      assert math.floor(side / again) == short
      assert 0 < share <= 1
  assert made(224, 248).crop_pct == 0.9  # what timm itself states
  assert made(32, None).crop_pct == made(32, 32).crop_pct == 1.0


def test_published_models_keep_their_crop():
  for name, variant in variants.NAMED.items():
    images = processors.published(variant)
    side = variant.image_size
    assert images.short_side == math.floor(side / variant.crop_pct), name
    assert (images.mean, images.std) == (variant.mean, variant.std)


@pytest.mark.parametrize(
  "images",
  [
    made(224, 248),
    made(28, 30, interpolation="bilinear"),
    made(224, 224, squash=True),
    made(224, 256, squash=True, interpolation="lanczos"),
  ],
)
def test_both_libraries_give_a_crop_back(images):
  default = made(64, 80)
  said = json.loads(json.dumps(processors.to_timm(images)))
  assert processors.from_timm(said, default) == images
  said = json.loads(json.dumps(processors.to_huggingface(images)))
  assert processors.from_huggingface(said) == images


def test_whole_images_are_whole_in_both_libraries():
  for size in ((32, 32), (28, 40)):
    images = preprocess.Preprocess(size, None, *STATS)
    said = processors.to_timm(images)
    assert (said["crop_pct"], said["crop_mode"]) == (1.0, "center")
    assert said["input_size"] == [3, *size]
    said = processors.to_huggingface(images)
    assert said["size"] == {"shortest_edge": min(size)}
    assert said["crop_size"] == {"height": size[0], "width": size[1]}


def test_another_size_shows_the_same_part():
  assert made(224, 248).at((384, 384)).short_side == 426  # 384 / 0.9
  assert made(32, None).at((48, 48)).short_side == 48
  assert made(32, None).at((32, 32)).whole


# The files on the hub: google/vit-base-patch16-224, facebook/deit-base-patch16-
# 224 and facebook/dinov2-base, their preprocessor_config.json.
VIT = {
  "do_normalize": True,
  "do_resize": True,
  "image_mean": [0.5, 0.5, 0.5],
  "image_std": [0.5, 0.5, 0.5],
  "size": 224,
}
DEIT = {
  "crop_size": 224,
  "do_center_crop": True,
  "do_normalize": True,
  "do_resize": True,
  "feature_extractor_type": "DeiTFeatureExtractor",
  "image_mean": [0.485, 0.456, 0.406],
  "image_std": [0.229, 0.224, 0.225],
  "resample": 3,
  "size": 256,
}


def test_what_hugging_face_s_older_files_mean():
  images = processors.from_huggingface(VIT)
  half = (0.5, 0.5, 0.5)
  assert images == preprocess.Preprocess(
    (224, 224), 224, half, half, "bilinear", squash=True
  )
  images = processors.from_huggingface(DEIT)
  assert images == preprocess.Preprocess(
    (224, 224), 256, *variants.IMAGENET_MEAN_STD, "bicubic", squash=True
  )
  plain = processors.from_huggingface({**VIT, "do_normalize": False})
  assert (plain.mean, plain.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"image_processor_type": "SamImageProcessor"}, "'SamImageProcessor'"),
    ({"rescale_factor": 1 / 127.5}, "rescale_factor=1/255"),
    ({"size": {"height": 224, "width": 192}}, "or equal height and width"),
    ({"size": {"longest_edge": 224}}, "to be shortest_edge"),
    ({"size": {"shortest_edge": 224}}, "do_center_crop=True with a resize"),
    ({"size": [224]}, "to be shortest_edge"),
    ({"resample": 9}, "resample in .*, got 9"),
    ({"resample": [3]}, r"resample in .*, got \[3\]"),
    (
      {"do_center_crop": True, "crop_size": "224"},
      "crop_size to be .*, got '224'",
    ),
    ({"do_center_crop": True, "do_resize": False, "crop_size": 9}, "do_resize"),
    (
      {"do_center_crop": True, "crop_size": 300},
      "short side >= 300",
    ),
    ({"image_mean": [0.5]}, "three channels"),
    ({"image_std": [0.0, 1, 1]}, "std > 0"),
    ({"image_std": "abc"}, "std='abc'"),
  ],
)
def test_a_processor_that_cannot_be_followed_is_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    processors.from_huggingface({**VIT, **changes})


@pytest.mark.parametrize(
  "config, words",
  [
    ({"crop_pct": 1.2}, "crop_pct in .*, got 1.2"),
    ({"crop_pct": "0.9"}, "crop_pct in .*, got '0.9'"),
    ({"crop_mode": "border"}, "crop_mode to be one of .*, got 'border'"),
    ({"input_size": [224]}, "channels, rows, columns"),
    ({"input_size": [3, -1, 224]}, "to be channels, rows, columns, got"),
    ({"interpolation": "random"}, "interpolation='random'"),
    ({"interpolation": ["bicubic"]}, "interpolation="),
    ({"mean": [0.5, float("nan"), 0.5]}, "mean="),
    ({"crop_pct": 0.01}, "expected a short side <="),
  ],
)
def test_a_pretrained_cfg_that_cannot_be_followed_is_refused(config, words):
  with pytest.raises(ValueError, match=words):
    processors.from_timm(config, made())


@pytest.mark.parametrize("fields", [{}, {"size": 3}, [], {"depth": 3}])
def test_what_is_no_preprocessing_is_refused(fields):
  with pytest.raises(ValueError, match=r"preprocess=|size="):
    preprocess.from_dict(fields)


def picture(tmp_path):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
  path = tmp_path / "a.png"
  Image.fromarray(pixels).save(path)
  return Image.fromarray(pixels), path.read_bytes()


def test_the_crop_follows_interpolation_and_squash(tmp_path):
  image, data = picture(tmp_path)
  images = made(28, 32, interpolation="bilinear", squash=True)
  wanted = image.resize((32, 32), Image.Resampling.BILINEAR)
  wanted = np.asarray(wanted.crop((2, 2, 30, 30)))
  np.testing.assert_array_equal(crop.centre(images)(data), wanted)
  plain = crop.centre(made(28, 32, interpolation="bilinear"))(data)
  assert np.abs(np.int32(plain) - wanted).mean() > 10


def test_whole_images_have_no_crop_and_others_are_square():
  assert crop.centre(made(32, None)) is None
  with pytest.raises(ValueError, match="a square crop, got 28x40 pixels"):
    crop.centre(preprocess.Preprocess((28, 40), 32, *STATS))
