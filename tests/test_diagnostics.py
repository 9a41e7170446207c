"""Diagnostics against their definitions in NumPy, and cases by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitkd_jax.diagnostics import (
  advice,
  attention,
  calibration,
  fit,
  similarity,
  spectra,
)

RNG = np.random.default_rng(0)


def rotation(size, seed=1):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def hsic_by_definition(k, l):  # noqa: E741
  """Song et al., 2012, equation 4: the mean over all disjoint quadruples."""
  n, total, count = len(k), 0.0, 0
  for i in range(n):
    for j in range(n):
      for q in range(n):
        for r in range(n):
          if len({i, j, q, r}) == 4:
            total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
            count += 1
  return total / count


def kernels(*features):
  return jnp.stack([similarity.kernel(x) for x in features])


def cka(first, second, kind="linear"):
  k, m = (similarity.kernel(x, kind)[None] for x in (first, second))
  found = similarity.cka(
    np.asarray(similarity.hsic(k, m)),
    np.asarray(similarity.own_hsic(k)),
    np.asarray(similarity.own_hsic(m)),
  )
  return float(found[0, 0])


def test_hsic_is_the_mean_over_quadruples():
  k, m = kernels(RNG.normal(size=(7, 3)), RNG.normal(size=(7, 5)))
  np.testing.assert_allclose(
    float(similarity.hsic(k[None], m[None])[0, 0]),
    hsic_by_definition(np.asarray(k), np.asarray(m)),
    rtol=1e-4,
    atol=1e-5,
  )


@pytest.mark.parametrize("kind", similarity.KERNELS)
def test_cka_of_equal_maps_is_one_up_to_rotation_and_scale(kind):
  x = RNG.normal(size=(24, 10))
  assert cka(x, x, kind) == pytest.approx(1, abs=1e-5)
  assert cka(x, 3 * x @ rotation(10) + 7, kind) == pytest.approx(1, abs=1e-4)


def test_cka_of_independent_maps_is_near_zero_with_more_channels_than_images():
  """Where the biased one is near 1."""
  found = [
    cka(RNG.normal(size=(32, 2000)), RNG.normal(size=(32, 2000)))
    for _ in range(20)
  ]
  assert abs(np.mean(found)) < 0.03
  x, y = (RNG.normal(size=(32, 2000)) for _ in range(2))
  k, m = ((z - z.mean(0)) @ (z - z.mean(0)).T for z in (x, y))
  assert (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()) > 0.9


def test_hsic_of_minibatches_is_that_of_all_images_on_average():
  x = RNG.normal(size=(4096, 6))
  y = x @ RNG.normal(size=(6, 4)) + RNG.normal(size=(4096, 4))

  def over(size):
    parts = [
      similarity.hsic(
        similarity.kernel(a)[None], similarity.kernel(b)[None]
      ).item()
      for a, b in zip(
        np.split(x, 4096 // size), np.split(y, 4096 // size), strict=True
      )
    ]
    return np.mean(parts), np.std(parts) / math.sqrt(len(parts))

  small, error = over(16)
  large, _ = over(1024)
  assert abs(small - large) < 4 * error
  assert error < 0.05 * large


def test_dimensions_by_hand():
  assert spectra.dimensions([1, 8, 1], (0.8, 0.81, 0.9, 1.0)) == [1, 2, 2, 3]
  assert spectra.dimensions([0, 0]) == [0, 0, 0]
  assert spectra.within([1, 8, 1], 1) == pytest.approx(0.8)
  assert spectra.effective_rank(np.ones(7)) == pytest.approx(7)
  assert spectra.effective_rank([5, 0, 0]) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(3, 20, 8), (3, 6, 16)])
def test_image_dimensions_are_those_of_the_singular_values(shape):
  x = RNG.normal(size=shape) * np.geomspace(1, 0.01, shape[2])
  found = spectra.image_dimensions(np.asarray(spectra.grams(jnp.asarray(x))))
  for image, dims in zip(x, found, strict=True):
    singular = np.linalg.svd(image - image.mean(0), compute_uv=False)
    share = np.cumsum(singular**2) / np.sum(singular**2)
    assert dims.tolist() == [int((share < s).sum()) + 1 for s in spectra.SHARES]


@pytest.mark.parametrize("grid", [(8, 8), (5, 7)])
def test_frequencies_of_a_wave_are_one(grid):
  rows = np.arange(grid[0])[:, None] * np.ones(grid)
  wave = np.cos(2 * np.pi * 2 * rows / grid[0])
  maps = np.stack([wave, 5 + 3 * wave], -1).reshape(1, -1, 2)
  (found,) = spectra.frequencies(jnp.asarray(maps, jnp.float32), grid)
  assert len(found) == max(grid) // 2
  np.testing.assert_allclose(found, np.eye(len(found))[1], atol=1e-5)
  flat = spectra.frequencies(jnp.ones((1, math.prod(grid), 2)), grid)
  np.testing.assert_allclose(flat, 0, atol=1e-5)


def test_frequencies_are_those_of_numpys_transform():
  x = RNG.normal(size=(2, 30, 3)).astype(np.float32)
  power = np.abs(np.fft.fft2(x.reshape(2, 5, 6, 3), axes=(1, 2))) ** 2
  power = power.sum(3)
  row = np.minimum(np.arange(5), 5 - np.arange(5))
  column = np.minimum(np.arange(6), 6 - np.arange(6))
  radius = np.rint(np.hypot(row[:, None], column))
  want = np.stack(
    [power[:, at].sum(1) for at in (radius == 1, radius == 2, radius >= 3)], 1
  )
  np.testing.assert_allclose(
    spectra.frequencies(jnp.asarray(x), (5, 6)),
    want / want.sum(1, keepdims=True),
    rtol=1e-4,
  )


def test_attention_is_the_models_own():
  """Of a model's own q and k: what it multiplies its values with."""
  q, k, v = (RNG.normal(size=(2, 5, 3, 4)).astype(np.float32) for _ in "qkv")
  found = attention.weights(q, k)
  want = jax.nn.dot_product_attention(q, k, v)
  got = jnp.einsum("bhqk,bkhe->bqhe", found, v)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_distances_and_entropies_by_hand():
  # Three patches in a row, 4 pixels apart, behind one prefix token.
  far = np.zeros((1, 2, 4, 4), np.float32)
  far[0, 0] = 0.25  # looks everywhere
  far[0, 1, 0] = far[0, 1, 2] = far[0, 1, 3] = [0.5, 0.5, 0, 0]
  far[0, 1, 1] = [0, 0, 0, 1]
  found = attention.distances(jnp.asarray(far), (1, 3), (4, 4), 1)
  even = np.mean([(0 + 4 + 8) / 3, (4 + 0 + 4) / 3, (8 + 4 + 0) / 3])
  np.testing.assert_allclose(found, [even, (8 + 4 + 8) / 3], rtol=1e-6)
  np.testing.assert_allclose(
    attention.entropies(jnp.asarray(far)),
    [math.log(4), 3 * math.log(2) / 4],
    rtol=1e-6,
  )


def test_rollout_of_blocks_that_look_at_themselves_is_the_identity():
  same = jnp.broadcast_to(jnp.eye(4), (3, 2, 2, 4, 4))
  np.testing.assert_allclose(
    attention.rollout(same), np.broadcast_to(np.eye(4), (2, 4, 4)), atol=1e-6
  )
  swap = jnp.eye(2)[::-1]
  found = attention.rollout(jnp.broadcast_to(swap, (2, 1, 1, 2, 2)))
  np.testing.assert_allclose(found[0], [[0.5, 0.5], [0.5, 0.5]], atol=1e-6)


def test_calibration_by_hand():
  # Confidences 0.9, 0.9, 0.6, 0.6 of two classes; right, wrong, right, right.
  def logits(p):
    return [math.log(p), math.log(1 - p)]

  total = calibration.sums(
    jnp.asarray([logits(p) for p in (0.9, 0.9, 0.6, 0.6, 0.99)]),
    jnp.asarray([0, 1, 0, 0, 1]),
    jnp.asarray([1.0, 1.0, 1.0, 1.0, 0.0]),  # the last is padding
    bins=10,
  )
  found = calibration.of(np.asarray(total))
  assert found.counts.sum() == 4
  assert found.error == pytest.approx(0.5 * 0.4 + 0.5 * 0.4, abs=1e-5)
  assert found.accuracy[8] == pytest.approx(0.5)  # (0.8, 0.9]
  assert np.isnan(found.accuracy[0])


def test_a_linear_layer_explains_what_it_made():
  s = RNG.normal(size=(4, 50, 6))
  t = s @ RNG.normal(size=(6, 9)) + 3
  noisy = t + RNG.normal(size=t.shape) * t.std((0, 1))

  def share(teacher):
    first, second = s.sum((0, 1)), teacher.sum((0, 1))
    of = lambda a, b, x, y: fit.covariance(fit.product(a, b), x, y, 200)  # noqa: E731
    return fit.explained(
      of(s, s, first, first),
      of(s, teacher, first, second),
      of(teacher, teacher, second, second),
    )

  assert share(t) == pytest.approx(1, abs=1e-3)
  # Half of the variance is noise, of which six of 200 directions fit by chance.
  assert share(noisy) == pytest.approx(0.5, abs=0.06)
  assert share(RNG.normal(size=t.shape)) < 0.1


@pytest.mark.parametrize(
  "depth, teacher, found",
  [
    (4, 4, [(0, 0), (1, 1), (2, 2), (3, 3)]),
    (2, 4, [(0, 0), (0, 1), (1, 2), (1, 3)]),
    (3, 2, [(1, 0), (2, 1)]),
    (1, 2, [(0, 0), (0, 1)]),
  ],
)
def test_blocks_are_matched_by_relative_depth(depth, teacher, found):
  assert similarity.pairs(depth, teacher) == found


def pair(student, teacher, missing):
  return dict(
    student=student,
    teacher=teacher,
    explained=0.9 - missing,
    possible=0.9,
    missing=missing,
  )


def test_advice_is_of_what_is_missing_once_for_each_block():
  found = advice.of(
    [pair(0, 0, 0.01), pair(1, 1, 0.3), pair(1, 2, 0.4), pair(2, 3, 0.1)]
  )
  assert [(x["student"], x["teacher"]) for x in found["pairs"]] == [
    (1, 2),
    (2, 3),
  ]
  assert found["options"] == [
    '--config.methods.regress.blocks="(1, 2)"',
    '--config.methods.regress.teacher_blocks="(2, 3)"',
  ]
  assert "makes 50% of its variance" in found["because"][0]
  assert advice.of([pair(0, 0, 0.01)])["options"] == []
