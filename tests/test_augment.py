"""Tests of vitkd_jax.data.augment."""

import functools
import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from vitkd_jax.data import augment, color, randaugment

ALL = {
  "flip": 0.5,
  "pad": 2,
  "erase": 0.25,
  "mixup_alpha": 0.8,
  "cutmix_alpha": 1.0,
  "label_smoothing": 0.1,
}
# The options that came later, off by default.
LATER = {"randaugment_ops": 2, "color_jitter": 0.3, "mix_mode": "image"}


def batch(size=16, height=12, width=10, seed=0):
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 256, (size, height, width, 3), dtype=np.uint8)
  return image, rng.integers(0, 10, size).astype(np.int32)


@functools.cache
def compiled(**options):
  return jax.jit(augment.make_augment(num_classes=10, **options))


def run(key=0, size=16, **options):
  image, label = batch(size)
  out, target = compiled(**options)(jax.random.key(key), image, label)
  return image, label, np.asarray(out), np.asarray(target)


# As parts of a step: each operation alone would be compiled alone.
erase_boxes = jax.jit(augment.erase_boxes, static_argnums=(1, 2))
random_erase = jax.jit(
  augment.random_erase, static_argnums=2, static_argnames=("mean", "std")
)


def test_without_options_only_the_form_changes():
  image, label, out, target = run()
  assert out.dtype == target.dtype == np.float32
  np.testing.assert_allclose(out, image / 255.0, rtol=1e-6)
  np.testing.assert_array_equal(target, np.eye(10)[label])


def test_normalize_is_affine_per_channel():
  image = np.array([[[[0.5, 0.25, 1.0]]]], np.float32)
  out = augment.normalize(image, (0.5, 0.5, 0.0), (0.5, 0.25, 2.0))
  np.testing.assert_allclose(out, [[[[0.0, -1.0, 0.5]]]], atol=1e-7)


# Flip, pad and crop: every result must be one of those worked out in NumPy.


def test_flip_mirrors_about_half_of_the_images():
  image, _ = batch(400)
  out = np.asarray(augment.random_flip(jax.random.key(0), image, 0.5))
  same = (out == image).all((1, 2, 3))
  mirrored = (out == image[:, :, ::-1]).all((1, 2, 3))
  assert (same ^ mirrored).all()
  assert 160 <= mirrored.sum() <= 240  # 4 standard deviations
  for probability, expected in ((0.0, image), (1.0, image[:, :, ::-1])):
    out = augment.random_flip(jax.random.key(0), image, probability)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
  "mode, by_numpy", [("zeros", "constant"), ("reflect", "reflect")]
)
def test_pad_and_crop_takes_every_place(mode, by_numpy):
  image, _ = batch(500, 6, 5)
  image = np.maximum(image, 1)  # so that 0 is only what moved in
  out = augment.pad_and_crop(jax.random.key(1), image, 2, mode=mode)
  assert out.dtype == np.uint8
  out = np.asarray(out)
  padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)), mode=by_numpy)
  counts = np.zeros((5, 5), int)
  for example, wide in zip(out, padded, strict=True):
    found = [
      (y, x)
      for y in range(5)
      for x in range(5)
      if (example == wide[y : y + 6, x : x + 5]).all()
    ]
    assert len(found) == 1
    counts[found[0]] += 1
  assert counts.min() >= 5  # of 20 expected
  assert counts.max() <= 40


def test_shift_is_the_older_name_of_pad():
  for one, other in zip(run(shift=3), run(pad=3), strict=True):
    np.testing.assert_array_equal(one, other)
  zeros, mirrored = (run(pad=3, pad_mode=m)[2] for m in ("zeros", "reflect"))
  moved_in = (zeros != mirrored).any((1, 2, 3))
  assert moved_in.any()
  np.testing.assert_array_equal(
    np.where(zeros > 0, mirrored, 0), np.where(zeros > 0, zeros, 0)
  )


def test_an_image_cannot_be_reflected_beyond_itself():
  image, _ = batch(2, 6, 5)
  augment.pad_and_crop(jax.random.key(0), image, 4, mode="reflect")
  with pytest.raises(ValueError, match="pad <= 4 to reflect images of 6x5"):
    augment.pad_and_crop(jax.random.key(0), image, 5, mode="reflect")


# Random erasing.


def test_erased_boxes_follow_the_recipe():
  shape = (4000, 56, 56)
  boxes = np.asarray(erase_boxes(jax.random.key(2), shape, 1.0))
  rows, columns = boxes.any(2), boxes.any(1)
  height, width = rows.sum(1), columns.sum(1)
  # A rectangle: the product of its sides is its area, and it has no gap.
  np.testing.assert_array_equal(height * width, boxes.sum((1, 2)))
  assert (np.abs(np.diff(rows, axis=1)).sum(1) <= 2).all()
  assert (np.abs(np.diff(columns, axis=1)).sum(1) <= 2).all()
  area = height * width / 56**2
  assert area.min() > 0.02 * 0.85  # sides are rounded
  assert area.max() < 1 / 3 * 1.04
  # Uniform: mean (0.02 + 1/3) / 2, standard error 0.0014.
  assert abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.006
  aspect = height / width
  assert aspect.min() > 0.3 * 0.85
  assert aspect.max() < 10 / 3 * 1.18
  assert abs(np.log(aspect).mean()) < 0.05  # symmetric in logarithms
  # Every place is reached, the corners too.
  assert boxes.any(0).all()
  centre = (rows * np.arange(56)).sum(1) / height
  assert abs(centre.mean() - 27.5) < 0.6


def test_erase_probability_counts_images():
  boxes = erase_boxes(jax.random.key(3), (2000, 8, 8), 0.25)
  share = np.asarray(boxes).any((1, 2)).mean()
  assert abs(share - 0.25) < 0.04  # 4 standard deviations


def test_erased_pixels_are_noise_and_the_others_untouched():
  image = np.full((300, 20, 20, 3), 0.125, np.float32)
  key = jax.random.key(4)
  mean, std = (0.3, 0.5, 0.7), (0.05, 0.1, 0.02)
  out = random_erase(key, image, 0.5, mean=mean, std=std)
  box = erase_boxes(jax.random.split(key)[0], image.shape[:3], 0.5)
  out, box = np.asarray(out), np.asarray(box)
  np.testing.assert_array_equal(out[~box], 0.125)
  noise = out[box]
  assert len(noise) > 10_000
  np.testing.assert_allclose(noise.mean(0), mean, atol=0.005)
  np.testing.assert_allclose(noise.std(0), std, rtol=0.03)
  assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.05
  neighbours = out[:, :-1][box[:, :-1] & box[:, 1:]]
  below = out[:, 1:][box[:, :-1] & box[:, 1:]]
  correlation = np.corrcoef(neighbours[:, 0], below[:, 0])[0, 1]
  assert abs(correlation) < 0.05


def test_erased_pixels_stay_in_the_range_of_images():
  image = np.zeros((50, 20, 20, 3), np.float32)
  out = random_erase(
    jax.random.key(5), image, 1.0, mean=(0.5,) * 3, std=(2.0,) * 3
  )
  assert float(out.min()) == 0.0
  assert float(out.max()) == 1.0


def test_normal_numbers_have_the_normal_moments():
  word = jax.random.bits(jax.random.key(6), (64, 40, 40))
  draw = np.asarray(augment._normal(word), np.float64)
  assert abs(draw.mean()) < 0.01
  assert abs(draw.std() - 1) < 0.01
  assert abs((draw**4).mean() - 3) < 0.1
  assert abs((draw < -1.0).mean() - 0.158655) < 0.002


# The whole.


def test_label_smoothing_by_hand():
  _, label, _, target = run(label_smoothing=0.1)
  expected = np.eye(10)[label] * 0.9 + 0.01
  np.testing.assert_allclose(target, expected, rtol=1e-6)


@pytest.mark.parametrize("key", range(4))
def test_everything_together_keeps_ranges_and_masses(key):
  _, _, out, target = run(key, **ALL)
  assert out.shape == (16, 12, 10, 3)
  assert out.min() >= 0.0
  assert out.max() <= 1.0
  np.testing.assert_allclose(target.sum(1), 1, rtol=1e-5)
  assert target.min() >= 0.01 - 1e-7


def test_key_decides_everything():
  one, again, other = (run(key, **ALL)[2] for key in (0, 0, 1))
  np.testing.assert_array_equal(one, again)
  assert (one != other).any()


def test_an_option_does_not_change_the_draws_of_another():
  flipped = run(flip=0.5)[2]
  both = run(flip=0.5, cutmix_alpha=1.0)[2]
  # CutMix moves whole pixels, so each comes from one of the two partners.
  partner = flipped.reshape(8, 2, *flipped.shape[1:])[:, ::-1]
  partner = partner.reshape(flipped.shape)
  assert ((both == flipped) | (both == partner)).all()


def test_later_options_do_not_change_the_draws_of_the_earlier():
  image, label = batch(16)
  erased = erase_boxes(
    jax.random.split(jax.random.split(jax.random.key(0), 4)[2])[0],
    image.shape[:3],
    0.25,
  )
  options = {"flip": 0.5, "erase": 0.25}
  before = compiled(**options)(jax.random.key(0), image, label)[0]
  # A round of RandAugment in which nothing is carried out.
  idle = {"randaugment_ops": 1, "randaugment_prob": 0.0}
  after = compiled(**options, **idle)(jax.random.key(0), image, label)[0]
  np.testing.assert_array_equal(before, after)
  assert np.asarray(erased).any()
  flipped = compiled(flip=0.5)(jax.random.key(0), image, label)[0]
  same = (np.asarray(before) == flipped)[~np.asarray(erased)]
  assert same.all()


def test_randaugment_and_jitter_are_what_their_modules_say():
  image, label = batch(16)
  key = jax.random.key(5)
  out, _ = compiled(randaugment_ops=2, color_jitter=0.3)(key, image, label)
  mean = (0.485, 0.456, 0.406)
  settings = dict(ops=2, magnitude=9.0, std=0.5, prob=0.5, fill=mean)

  @jax.jit
  def expected(image):
    image = randaugment.randaugment(
      jax.random.fold_in(key, 4), image, **settings
    )
    return color.color_jitter(jax.random.fold_in(key, 5), image, 0.3)

  np.testing.assert_allclose(out, expected(image) / 255.0, rtol=1e-6)


def test_one_trace_serves_all_steps():
  run(0, **ALL)
  run(1, **ALL)
  assert compiled(**ALL)._cache_size() == 1


@pytest.mark.parametrize("options", [ALL, {**LATER, "mixup_alpha": 0.8}])
def test_eight_devices_equal_one_and_exchange_no_image(options):
  image, label = batch(16)
  one = compiled(**options)(jax.random.key(0), image, label)
  assert jax.device_count() == 8
  rows = NamedSharding(Mesh(np.array(jax.devices()), "data"), P("data"))
  put = jax.device_put((image, label), rows)
  function = augment.make_augment(num_classes=10, **options)
  step = jax.jit(function, out_shardings=rows)
  eight = step.lower(jax.random.key(0), *put).compile()
  for a, b in zip(one, eight(jax.random.key(0), *put), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  text = eight.as_text()
  assert not re.findall("all-gather|collective-permute|all-to-all", text)
  # What is added up is one number or flag, never a row of the batch.
  for kind in re.findall(r"= (.*) all-reduce\(", text):
    assert not re.search(r"\[\d", kind), kind


@pytest.mark.parametrize(
  "options, words",
  [
    ({"flip": -0.1}, r"flip .*got -0.1"),
    ({"flip": float("nan")}, r"flip .*got nan"),
    ({"erase": 1.5}, r"erase .*got 1.5"),
    ({"mix_prob": 2}, r"mix_prob .*got 2"),
    ({"switch_prob": -1}, r"switch_prob .*got -1"),
    ({"label_smoothing": 1.1}, r"label_smoothing .*got 1.1"),
    ({"mixup_alpha": -0.8}, r"mixup_alpha .*got -0.8"),
    ({"cutmix_alpha": float("inf")}, r"cutmix_alpha .*got inf"),
    ({"pad": -1}, r"pad .*got -1"),
    ({"pad": 4, "pad_mode": "edge"}, r"pad_mode .*got 'edge'"),
    ({"pad": 4, "shift": 4}, "shift=4 is the older name of pad"),
    ({"shift": 4, "pad_mode": "reflect"}, "set pad alone"),
    ({"shift": -1}, r"shift .*got -1"),
    ({"shift": 1.5}, r"shift .*got 1.5"),
    ({"num_classes": 0}, r"num_classes .*got 0"),
    ({"erase_mean": (0.5, 2.0, 0.5)}, "erase_mean"),
    ({"erase_std": (0.5, 0.5)}, "erase_std"),
    ({"flip": "half"}, r"flip .*got 'half'"),
    ({"randaugment_ops": -1}, r"randaugment_ops .*got -1"),
    ({"randaugment_magnitude": 10.5}, r"randaugment_magnitude .*got 10.5"),
    ({"randaugment_std": -0.5}, r"randaugment_std .*got -0.5"),
    ({"randaugment_prob": 1.5}, r"randaugment_prob .*got 1.5"),
    ({"fill": (124, 116, 104)}, r"fill .*got 124"),
    ({"color_jitter": -0.3}, r"color_jitter .*got -0.3"),
    ({"mix_mode": "pair"}, r"mix_mode .*got 'pair'"),
  ],
)
def test_make_augment_refuses(options, words):
  with pytest.raises(ValueError, match=words):
    augment.make_augment(**{"num_classes": 10, **options})
