"""Tests of vitkd_jax.data.mixing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitkd_jax.data import augment, mixing


@functools.cache
def compiled(**options):
  return jax.jit(augment.make_augment(num_classes=10, **options))


def test_mix_pairs_neighbours_by_hand():
  image = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
  image = np.broadcast_to(image, (4, 2, 2, 3))
  weight = np.array([[0.0, 1.0], [0.25, 0.25]], np.float32)
  out, target = mixing.mix(jnp.array(image), jnp.eye(4), weight)
  np.testing.assert_allclose(
    np.asarray(out)[:, :, :, 0],
    [
      [[0.0, 1.0], [0.25, 0.25]],
      [[1.0, 0.0], [0.75, 0.75]],
      [[2.0, 3.0], [2.25, 2.25]],
      [[3.0, 2.0], [2.75, 2.75]],
    ],
  )
  share = 1.5 / 4
  np.testing.assert_allclose(target[2], [0, 0, 1 - share, share], rtol=1e-6)
  np.testing.assert_allclose(target[1], [share, 1 - share, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("key", range(6))
def test_cutmix_label_mass_is_the_pixel_area(key):
  # Even images are black and of class 0, odd ones white and of class 1.
  image = np.zeros((6, 9, 14, 3), np.uint8)
  image[1::2] = 255
  label = np.arange(6) % 2
  function = compiled(cutmix_alpha=1.0)
  out, target = map(np.asarray, function(jax.random.key(key), image, label))
  assert set(np.unique(out)) <= {0.0, 1.0}  # pasted, never blended
  pasted = (out[0, :, :, 0] == 1).sum()
  np.testing.assert_allclose(target[0, 1] * 9 * 14, pasted, rtol=1e-6)
  assert (target[::2] == target[0]).all()
  assert (target[1::2, [1, 0]] == target[0, :2]).all()


def test_cutmix_box_is_a_clipped_rectangle_of_the_right_size():
  keys = jax.random.split(jax.random.key(0), 60)
  box = jax.vmap(lambda key: mixing.cutmix_box(key, (20, 30), 0.25))
  boxes = np.asarray(box(keys))
  # floor(20 * 0.5) = 10 rows and floor(30 * 0.5) = 15 columns, of which
  # 2 * (15 // 2) = 14 remain, as in mmcls; less where the border cuts.
  height, width = boxes.any(2).sum(1), boxes.any(1).sum(1)
  assert height.max() == 10
  assert width.max() == 14
  assert height.min() >= 5
  assert (height < 10).any()
  np.testing.assert_array_equal(boxes.sum((1, 2)), height * width)
  assert not np.asarray(
    mixing.cutmix_box(jax.random.key(0), (20, 30), 0.0)
  ).any()


def test_mixup_blends_the_whole_image_by_the_share_of_the_label():
  image = np.zeros((4, 5, 5, 3), np.uint8)
  image[1::2] = 255
  function = compiled(mixup_alpha=0.8)
  shares = []
  for key in range(40):
    out, target = function(jax.random.key(key), image, np.arange(4) % 2)
    np.testing.assert_allclose(target[0, 1], out[0], rtol=1e-5)
    np.testing.assert_allclose(1 - target[0, 1], out[1], atol=1e-6)
    shares.append(float(target[0, 1]))
  # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 * 2.6); 4 standard errors.
  assert abs(np.mean(shares) - 0.5) < 4 * np.sqrt(1 / 10.4 / 40)
  assert 0.15 < np.std(shares) < 0.45


@functools.cache
def weigher(mixup_alpha, cutmix_alpha):
  """Maps keys and both probabilities to float32 [keys, 64] of weights."""

  def weigh(key, mix_prob, switch_prob):
    return mixing.mix_weight(
      key,
      (8, 8),
      mixup_alpha=mixup_alpha,
      cutmix_alpha=cutmix_alpha,
      mix_prob=mix_prob,
      switch_prob=switch_prob,
    ).ravel()

  return jax.jit(jax.vmap(weigh, (0, None, None)))


@pytest.mark.parametrize(
  "alphas, mix_prob, switch_prob, expected",
  [
    ((0.8, 1.0), 1.0, 0.5, (0.5, 0.5)),  # the recipe
    ((0.8, 1.0), 0.5, 0.25, (0.375, 0.125)),
    ((0.8, 1.0), 1.0, 0.0, (1.0, 0.0)),
    ((0.8, 1.0), 1.0, 1.0, (0.0, 1.0)),
    ((0.8, 1.0), 0.0, 0.5, (0.0, 0.0)),
    ((0.8, 0.0), 1.0, 0.5, (1.0, 0.0)),
    ((0.0, 1.0), 1.0, 0.5, (0.0, 1.0)),
  ],
)
def test_one_choice_for_a_batch(alphas, mix_prob, switch_prob, expected):
  keys = jax.random.split(jax.random.key(0), 400)
  weight = np.asarray(weigher(*alphas)(keys, mix_prob, switch_prob))
  blended = ((weight > 0) & (weight < 1)).all(1).mean()
  pasted = ((weight == 0) | (weight == 1)).all(1) & (weight == 1).any(1)
  # 4 standard deviations; a small box may be empty, so CutMix may be none.
  assert abs(blended - expected[0]) <= 0.1
  assert -0.3 * expected[1] - 0.1 <= pasted.mean() - expected[1] <= 0.1
  assert (blended == 0) == (expected[0] == 0)
  assert (pasted.mean() == 0) == (expected[1] == 0)


# One choice for each image.


def test_each_image_has_a_weight_of_its_own_with_the_mass_of_its_pixels():
  # Even images are black and of class 0, odd ones white and of class 1.
  image = np.zeros((256, 9, 14, 3), np.uint8)
  image[1::2] = 255
  label = np.arange(256) % 2
  options = dict(mixup_alpha=0.8, cutmix_alpha=1.0, mix_mode="image")
  out, target = compiled(**options)(jax.random.key(0), image, label)
  out, target = np.asarray(out)[..., 0], np.asarray(target)
  white = out.mean((1, 2), dtype=np.float64)
  np.testing.assert_allclose(target[:, 1], white, atol=1e-6)
  pasted = ((out == 0) | (out == 1)).all((1, 2))
  # Half are CutMix; 4 standard deviations.
  assert abs(pasted.mean() - 0.5) < 0.125
  assert len(np.unique(target[::2, 1])) > 90
  assert np.abs(target[::2, 1] - target[1::2, 0]).max() > 0.5


def test_weights_per_image_follow_the_recipe():
  weigh = functools.partial(
    mixing.mix_weights,
    mode="image",
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    mix_prob=0.8,
    switch_prob=0.25,
  )
  weight = np.asarray(
    jax.jit(weigh, static_argnums=1)(jax.random.key(0), (2000, 8, 8))
  )
  share = weight.mean((1, 2))
  blended = ((weight > 0) & (weight < 1)).all((1, 2))
  assert abs(blended.mean() - 0.6) < 0.045  # 4 standard deviations
  # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 * 2.6); 4 standard errors.
  error = 4 * np.sqrt(1 / 10.4 / blended.sum())
  assert abs(share[blended].mean() - 0.5) < error
  assert abs(share[blended].var() - 1 / 10.4) < 0.012
  untouched = (weight == 0).all((1, 2)).mean()
  assert 0.2 - 0.04 < untouched < 0.2 + 0.2 * 0.3 + 0.04  # or an empty box


def test_mixing_refuses_an_odd_batch():
  image = np.zeros((3, 4, 4, 3), np.uint8)
  with pytest.raises(ValueError, match="neighbours, got 3 images"):
    compiled(mixup_alpha=1.0)(jax.random.key(0), image, np.zeros(3, int))
