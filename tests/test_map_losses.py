"""Tests of the losses of projected features: maps, regression, teachers."""

import functools

import degenerate
import jax
import jax.numpy as jnp
import jitted
import numpy as np
import pytest

from vitkd_jax.distill import losses as as_published

losses = jitted.Module(as_published)

normal = degenerate.normal
B, N, D = 3, 6, 5


def features(*shape):
  return normal(0, *shape) + 0.5, normal(1, *shape) - 0.5


# The published points of `regression`.
POINTS = {
  "fitnets": dict(
    metric="mse", student_norm="batch_norm", teacher_norm="batch_norm"
  ),
  "scalekd_spatial": dict(
    metric="mse", student_norm="l2", teacher_norm="l2", reduction="sum"
  ),
  "scalekd_frequency": dict(
    metric="mse",
    student_norm="mean_removed_l2",
    teacher_norm="mean_removed_l2",
    reduction="sum",
  ),
  "proteus": dict(metric="mse"),
  "unic": dict(metric="cosine_smooth_l1"),
  "vkd": dict(metric="smooth_l1", teacher_norm="layer_norm"),
  "cosine": dict(metric="cosine"),
  "cosine_sum": dict(metric="cosine", reduction="sum"),
}


def spectral(student, teacher):
  return losses.spectral(student, teacher, grid=(1, student.shape[1]))


BY_MAPS = {
  name: functools.partial(losses.regression, **point)
  for name, point in POINTS.items()
} | {"mgd": losses.mgd, "spectral": spectral}


# Regression, by hand in float64.

NORMS = {
  "none": lambda x: x,
  "l2": lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True),
  "mean_removed_l2": lambda x: NORMS["l2"](x - x.mean(1, keepdims=True)),
  "layer_norm": lambda x: (
    (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  ),
  "batch_norm": lambda x: (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5),
}


def cosine(s, t):
  return 1 - s @ t / (np.linalg.norm(s) * np.linalg.norm(t))


def smooth_l1(s, t):
  return np.mean(
    [0.5 * e**2 if e < 1 else e - 0.5 for e in np.abs(s - t).tolist()]
  )


METRICS = {
  "mse": lambda s, t: np.mean((s - t) ** 2),
  "cosine": cosine,
  "smooth_l1": smooth_l1,
  "cosine_smooth_l1": lambda s, t: (cosine(s, t) + smooth_l1(s, t)) / 2,
}


def regression_by_hand(student, teacher, metric, student_norm, teacher_norm):
  """[B]: the mean over tokens."""
  student, teacher = NORMS[student_norm](student), NORMS[teacher_norm](teacher)
  return np.array(
    [
      np.mean([METRICS[metric](*pair) for pair in zip(s, t, strict=True)])
      for s, t in zip(student, teacher, strict=True)
    ]
  )


def test_every_option_is_tried():
  assert METRICS.keys() == losses.METRICS.keys()
  assert NORMS.keys() == losses.NORMS.keys()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
  "norms",
  [*((norm, norm) for norm in NORMS), ("none", "layer_norm"), ("l2", "none")],
)
def test_regression_by_hand(metric, norms):
  student, teacher = features(B, N, D)
  got = losses.regression(
    student,
    teacher,
    metric=metric,
    student_norm=norms[0],
    teacher_norm=norms[1],
  )
  assert got.dtype == jnp.float32
  expected = regression_by_hand(student, teacher, metric, *norms)
  np.testing.assert_allclose(got, expected, rtol=3e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("norm", [n for n in NORMS if n != "mean_removed_l2"])
def test_a_feature_is_a_map_of_one_token(metric, norm):
  student, teacher = features(B, D)
  options = dict(metric=metric, student_norm=norm, teacher_norm=norm)
  np.testing.assert_allclose(
    losses.regression(student, teacher, **options),
    losses.regression(student[:, None], teacher[:, None], **options),
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  "metric, times", [("mse", N * D), ("smooth_l1", N * D), ("cosine", 2 * N)]
)
def test_sums_are_means_times_what_they_are_over(metric, times):
  student, teacher = features(B, N, D)
  mean, total = (
    losses.regression(student, teacher, metric=metric, reduction=reduction)
    for reduction in ("mean", "sum")
  )
  np.testing.assert_allclose(total, times * mean, rtol=1e-6)


def test_a_sum_of_cosines_is_the_distance_of_unit_vectors():
  student, teacher = features(B, N, D)
  np.testing.assert_allclose(
    losses.regression(student, teacher, metric="cosine", reduction="sum"),
    losses.regression(student, teacher, **POINTS["scalekd_spatial"]),
    rtol=1e-6,
  )


def test_the_mean_of_equal_tokens_leaves_nothing():
  # 0.1 has no exact sums in float32: a mean that is off by rounding would be
  # blown up to length 1.
  constant = np.full((1, 196, 8), 0.1)
  normed = losses.NORMS["mean_removed_l2"](jnp.asarray(constant, jnp.float32))
  np.testing.assert_array_equal(normed, 0)


# The other functions, by hand in float64.


def spectral_by_fft(student, teacher, grid):
  """The authors' way, in NumPy."""
  batch, _, width = student.shape
  channels = teacher.shape[-1]
  pooled = np.stack(
    [
      np.mean(
        teacher[
          ..., i * channels // width : int(np.ceil((i + 1) * channels / width))
        ],
        axis=-1,
      )
      for i in range(width)
    ],
    axis=-1,
  )
  spectra = [
    np.fft.rfft2(x.reshape(batch, *grid, width), axes=(1, 2), norm="ortho")
    for x in (student, pooled)
  ]
  squared = np.abs(spectra[0] - spectra[1]) ** 2
  return np.mean(squared, axis=(1, 2, 3)) / 2  # real and imaginary


@pytest.mark.parametrize(
  "grid", [(4, 4), (5, 5), (4, 6), (3, 7), (7, 4), (4, 7), (1, 6), (6, 1)]
)
@pytest.mark.parametrize("widths", [(5, 8), (4, 8), (6, 6)])
def test_spectral_equals_the_fft(grid, widths):
  tokens = grid[0] * grid[1]
  student = normal(0, B, tokens, widths[0]) + 0.5
  teacher = normal(1, B, tokens, widths[1])
  got = losses.spectral(student, teacher, grid=grid)
  assert got.dtype == jnp.float32
  expected = spectral_by_fft(student, teacher, grid)
  np.testing.assert_allclose(got, expected, rtol=3e-6)


def test_spectral_of_a_square_grid_is_mostly_mse():
  # The weights of the closed form at 14 x 14: 7 / 16 of each of three means.
  student, teacher = features(B, 196, 8)
  d = (student - teacher).reshape(B, 14, 14, 8)
  sign = (-1.0) ** np.arange(14)[:, None]
  parts = (
    np.mean(d**2, axis=(1, 2, 3)),
    np.mean(np.mean(d, axis=2) ** 2, axis=(1, 2)),
    np.mean(np.mean(sign * d, axis=2) ** 2, axis=(1, 2)),
  )
  got = losses.spectral(student, teacher, grid=(14, 14))
  np.testing.assert_allclose(got, 7 / 16 * sum(parts), rtol=1e-6)


def test_mgd_by_hand():
  generated, teacher = features(B, N, D)
  expected = np.sum((generated - teacher) ** 2, axis=(1, 2))
  np.testing.assert_allclose(
    losses.mgd(generated, teacher), expected, rtol=1e-6
  )
  np.testing.assert_allclose(
    losses.mgd(generated, teacher, reduction="mean"),
    expected / (N * D),
    rtol=1e-6,
  )


def test_channel_mask_is_drawn_by_channel_and_image():
  draw = jax.jit(as_published.channel_mask, static_argnums=(1, 2, 3))
  mask = np.asarray(draw(jax.random.key(0), 200, 100, 0.15))
  assert mask.shape == (200, 100)
  assert mask.dtype == bool
  # 20,000 draws: five standard errors are 0.013.
  np.testing.assert_allclose(mask.mean(), 0.15, atol=0.013)
  # Of 100 (200) draws each: five standard deviations.
  np.testing.assert_allclose(mask.mean(axis=1), 0.15, atol=0.18)
  np.testing.assert_allclose(mask.mean(axis=0), 0.15, atol=0.13)
  np.testing.assert_array_equal(draw(jax.random.key(0), 200, 100, 0.15), mask)
  assert (draw(jax.random.key(1), 200, 100, 0.15) != mask).any()
  assert not draw(jax.random.key(0), 200, 100, 0.0).any()


@pytest.mark.parametrize("shape", [(5, 8), (6, 6), (8, 5), (1, 4), (4, 1)])
def test_orthogonal_is_the_q_of_a_qr_decomposition(shape):
  kernel = normal(0, *shape)
  q = np.asarray(jax.jit(losses.orthogonal)(kernel))
  assert q.dtype == np.float32
  assert q.shape == shape
  wide = shape[0] <= shape[1]
  tall, kernel = (q.T, kernel.T) if wide else (q, kernel)
  np.testing.assert_allclose(tall.T @ tall, np.eye(min(shape)), atol=1e-6)
  # What is left over is R: upper triangular, with a positive diagonal.
  r = tall.T @ kernel
  np.testing.assert_allclose(np.tril(r, -1), 0, atol=3e-6)
  assert (np.diag(r) > 0).all()
  np.testing.assert_allclose(tall @ r, kernel, atol=3e-6)


def test_orthogonal_keeps_lengths():
  x = normal(1, B, 5)
  mapped = x @ np.asarray(losses.orthogonal(normal(0, 5, 8)))
  np.testing.assert_allclose(
    np.linalg.norm(mapped, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6
  )


@pytest.mark.parametrize("shape", [(5, 8), (6, 6), (8, 5)])
def test_orthogonal_has_the_gradient_of_its_values(shape):
  kernel, weights, step = (
    normal(0, *shape),
    normal(1, *shape),
    normal(2, *shape),
  )

  def q(kernel):
    """In float64, by Gram and Schmidt."""
    kernel = kernel.T if shape[0] <= shape[1] else kernel
    columns = []
    for column in kernel.T:
      for done in columns:
        column = column - (done @ column) * done
      columns.append(column / np.linalg.norm(column))
    q = np.stack(columns, axis=1)
    return q.T if shape[0] <= shape[1] else q

  gradient = jax.grad(lambda k: jnp.sum(losses.orthogonal(k) * weights))(
    jnp.asarray(kernel, jnp.float32)
  )
  h = 1e-5
  slope = np.sum((q(kernel + h * step) - q(kernel - h * step)) * weights)
  np.testing.assert_allclose(
    np.sum(gradient * step), slope / (2 * h), rtol=1e-3
  )


CLASSES = 7
HEAD = normal(3, D, CLASSES), normal(4, CLASSES)


def test_srrl_by_hand():
  connected, pooled = features(B, D)
  logits = normal(2, B, CLASSES)
  feature, logit = losses.srrl(connected, pooled, logits, HEAD)
  assert feature.dtype == logit.dtype == jnp.float32
  np.testing.assert_allclose(
    feature, np.mean((connected - pooled) ** 2, axis=-1), rtol=1e-6
  )
  kernel, bias = HEAD
  expected = np.mean((connected @ kernel + bias - logits) ** 2, axis=-1)
  np.testing.assert_allclose(logit, expected, rtol=3e-6)


def test_srrl_trains_the_student_alone():
  connected, pooled = features(B, D)
  logits = normal(2, B, CLASSES)

  def total(*arrays):
    return sum(term.sum() for term in losses.srrl(*arrays))

  gradients = jax.grad(total, argnums=(0, 1, 2, 3))(
    connected, pooled, logits, HEAD
  )
  for gradient in jax.tree.leaves(gradients[1:]):
    np.testing.assert_array_equal(gradient, 0)
  # The head's term reaches the student through the teacher's kernel.
  kernel, bias = HEAD
  error = connected @ kernel + bias - logits
  expected = 2 / D * (connected - pooled) + 2 / CLASSES * error @ kernel.T
  np.testing.assert_allclose(gradients[0], expected, rtol=1e-5, atol=1e-5)


def test_phi_s_by_hand():
  x = (normal(0, 40, D) @ normal(1, D, D)) + 100 * normal(2, D)
  mean, scale = jax.jit(losses.phi_s)(x)
  np.testing.assert_allclose(mean, x.mean(0), rtol=1e-6)
  eigenvalues = np.linalg.eigvalsh(np.cov(x.T))
  np.testing.assert_allclose(scale, np.mean(eigenvalues) ** -0.5, rtol=1e-5)
  # What it is for: features of mean 0 and mean variance 1.
  scaled = scale * (x - mean)
  np.testing.assert_allclose(scaled.var(0, ddof=1).mean(), 1, rtol=1e-5)


def test_phi_s_leaves_equal_features_as_they_are():
  mean, scale = losses.phi_s(np.full((7, D), 0.1))
  np.testing.assert_allclose(mean, 0.1, rtol=1e-6)
  assert scale == 1


VALUES = np.array(
  [[0.1, 0.9, 0.5, 2.0], [0.4, 0.2, 0.5, 1.0], [0.2, 0.3, 0.1, 3.0]]
)
KEEP = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]], bool)


def test_teacher_coefficients_by_hand():
  # The largest loss always stays: teachers 1, 0, 0 (the first of two) and 2.
  kept = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1]])
  per_image = losses.teacher_coefficients(VALUES, KEEP)
  np.testing.assert_allclose(per_image, kept / kept.sum(0), rtol=1e-6)
  unic = losses.teacher_coefficients(VALUES, KEEP, normalisation="unic")
  np.testing.assert_allclose(unic, kept * 4 / kept.sum(), rtol=1e-6)
  for name, coefficients in {"per_image": per_image, "unic": unic}.items():
    np.testing.assert_allclose(
      losses.teacher_drop(VALUES, KEEP, normalisation=name),
      np.sum(coefficients * VALUES, axis=0),
      rtol=1e-6,
    )
  np.testing.assert_allclose(
    losses.teacher_drop(VALUES, np.ones_like(KEEP)), VALUES.mean(0), rtol=1e-6
  )


def test_teacher_drop_sends_each_teacher_its_coefficient():
  gradient = jax.grad(lambda v: losses.teacher_drop(v, KEEP).sum())(VALUES)
  np.testing.assert_array_equal(
    gradient, losses.teacher_coefficients(VALUES, KEEP)
  )


@pytest.mark.parametrize("group", [1, 2])
def test_teachers_of_a_group_are_those_of_a_batch_of_its_own(group):
  drop = functools.partial(losses.teacher_drop, normalisation="unic")
  separate = [
    drop(VALUES[:, i : i + group], KEEP[:, i : i + group])
    for i in range(0, 4, group)
  ]
  np.testing.assert_allclose(
    drop(VALUES, KEEP, group=group), np.concatenate(separate), rtol=1e-6
  )


# What all of maps keep.


@pytest.mark.parametrize("name", BY_MAPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_reach_the_student_alone(name, dtype):
  degenerate.check_gradients(BY_MAPS[name], *features(B, N, D), dtype)


@pytest.mark.parametrize("name", BY_MAPS)
def test_degenerate_maps_give_finite_values_and_gradients(name):
  degenerate.check_finite(BY_MAPS[name], degenerate.maps(D, D))


@pytest.mark.parametrize("name", [n for n in BY_MAPS if n != "vkd"])
def test_equal_maps_are_at_distance_0(name):
  student, _ = features(B, N, D)
  # A cosine of 1 is off by up to an ulp a token; a sum counts each twice.
  np.testing.assert_allclose(BY_MAPS[name](student, student), 0, atol=5e-6)


@pytest.mark.parametrize("name", [n for n in BY_MAPS if n != "fitnets"])
def test_examples_are_kept_apart(name):
  student, teacher = features(B, N, D)
  np.testing.assert_allclose(
    BY_MAPS[name](student[2:], teacher[2:])[0],
    BY_MAPS[name](student, teacher)[2],
    rtol=1e-6,
  )


# Refusals.

X = np.zeros((2, 6, 4), np.float32)


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: losses.regression(X, X[:, 1:]),
      r"expected student and teacher to have the same shape, got \(2, 6, 4\) "
      r"and \(2, 5, 4\)",
    ),
    (
      lambda: losses.regression(X[None], X[None]),
      r"expected features \[B, N, D\] or \[B, D\], got shape \(1, 2, 6, 4\)",
    ),
    (
      lambda: losses.regression(X, X, metric="l1"),
      "expected metric to be one of mse, cosine, smooth_l1, cosine_smooth_l1, "
      "got 'l1'",
    ),
    (
      lambda: losses.regression(X, X, student_norm="l1"),
      "expected student_norm to be one of none, l2, .*, got 'l1'",
    ),
    (
      lambda: losses.regression(X, X, teacher_norm="l1"),
      "expected teacher_norm to be one of none, l2, .*, got 'l1'",
    ),
    (
      lambda: losses.regression(X, X, reduction="max"),
      "expected reduction to be one of sum, mean, got 'max'",
    ),
    (
      lambda: losses.regression(
        X[:, 0], X[:, 0], teacher_norm="mean_removed_l2"
      ),
      r"expected token maps \[B, N, D\] with teacher_norm 'mean_removed_l2', "
      r"got shape \(2, 4\)",
    ),
    (
      lambda: losses.regression(
        X, X, metric="cosine_smooth_l1", reduction="sum"
      ),
      "expected reduction 'mean' with metric 'cosine_smooth_l1', got 'sum'",
    ),
    (
      lambda: losses.spectral(X, X[:, 1:], grid=(2, 3)),
      r"of the same B and N, got \(2, 6, 4\) and \(2, 5, 4\)",
    ),
    (
      lambda: losses.spectral(X, X, grid=(2, 2)),
      r"expected grid \(H, W\) with H W = 6 tokens, got \(2, 2\)",
    ),
    (
      lambda: losses.spectral(X, X[..., 1:], grid=(2, 3)),
      "expected a student no wider than the teacher's 3 channels, .*, got 4",
    ),
    (
      lambda: losses.mgd(X, X[:1]),
      "expected generated and teacher to have the same shape",
    ),
    (
      lambda: losses.mgd(X, X, reduction="max"),
      "expected reduction to be one of sum, mean, got 'max'",
    ),
    (
      lambda: as_published.channel_mask(jax.random.key(0), 2, 4, 1.0),
      r"expected 0 <= ratio < 1, got 1\.0",
    ),
    (
      lambda: losses.orthogonal(X),
      r"expected kernel \[D_s, D_t\], got shape \(2, 6, 4\)",
    ),
    (
      lambda: losses.srrl(X[0], X[0, 1:], X[0], (X[0, :4], X[0, 0])),
      "expected connected and teacher_pooled to have the same shape",
    ),
    (
      lambda: losses.srrl(X[0], X[0], X[0], (X[0], X[0, 0])),
      r"expected head of kernel \(4, 4\) and bias \(4,\), got \(6, 4\) and "
      r"\(4,\)",
    ),
    (
      lambda: losses.srrl(X[0], X[0], X[0, 1:], (X[0, :4], X[0, 0])),
      "expected head's logits and teacher_logits to have the same shape",
    ),
    (
      lambda: losses.phi_s(X),
      r"expected features \[M, D\] with M >= 2, got shape \(2, 6, 4\)",
    ),
    (
      lambda: losses.phi_s(X[0, :1]),
      r"expected features \[M, D\] with M >= 2, got shape \(1, 4\)",
    ),
    (
      lambda: losses.teacher_drop(VALUES, KEEP[1:]),
      "expected values and keep to have the same shape",
    ),
    (
      lambda: losses.teacher_drop(VALUES[0], KEEP[0]),
      r"expected values \[T, B\], got shape \(4,\)",
    ),
    (
      lambda: losses.teacher_drop(VALUES, KEEP, normalisation="sum"),
      "expected normalisation to be one of per_image, unic, got 'sum'",
    ),
    (
      lambda: losses.teacher_drop(VALUES, KEEP, group=3),
      "expected group to divide the batch of 4, got 3",
    ),
  ],
)
def test_bad_input_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
