"""Tests of vitkd_jax.distill.losses."""

import functools

import jax
import jax.numpy as jnp
import jitted
import numpy as np
import pytest

from vitkd_jax.distill import losses as as_published

losses = jitted.Module(as_published)

B, K, N, D, C = 3, 2, 6, 5, 7

# Large enough that exp overflows float32, whichever class it stands at.
EXTREME = np.array(
  [
    [1e4, 0.0, 0.0, 5.0],
    [0.0, 1e4, -1e4, 3.0],
    [-1e4, -1e4, -1e4, 1e4],
    [1e4, 1e4, -1e4, 0.0],
  ],
  np.float32,
)


def normal(seed, *shape):
  """Normal float64 that are float32 numbers."""
  x = np.random.default_rng(seed).standard_normal(shape)
  return x.astype(np.float32).astype(np.float64)


def softmax(x):
  """One row, float64."""
  powers = np.exp(np.asarray(x, np.float64) - np.max(x))
  return powers / powers.sum()


def logits(seed=0):
  return normal(seed, B, C), normal(seed + 1, B, C)


# What is compared by logits: name -> loss of (student, teacher), target fixed.
LABEL = np.array([2, 0, 6])
BY_LOGITS = {
  "kl": losses.kl,
  "kl_tau4": functools.partial(losses.kl, temperature=4.0),
  "hard": losses.hard_distillation,
  "nkd": lambda s, t: losses.nkd(s, t, jnp.arange(len(s)) % 3),
  "nkd_tau2": lambda s, t: losses.nkd(
    s, t, jnp.arange(len(s)) % 3, temperature=2.0, gamma=1.5
  ),
  "soft": lambda s, t: losses.soft_cross_entropy(
    s, jax.lax.stop_gradient(jax.nn.softmax(t.astype(jnp.float32)))
  ),
}
BY_MAPS = {
  "mimic": losses.mimic,
  "mimic_mean": functools.partial(losses.mimic, reduction="mean"),
  "generation": lambda s, t: losses.generation(
    s, t, jnp.arange(s.shape[1])[None] % 2 + jnp.zeros(s.shape[:2], int) == 0
  ),
}


# Feature terms.


def test_mimic_by_hand():
  student, teacher = normal(0, B, K, N, D), normal(1, B, K, N, D)
  expected = [
    sum(
      (student[b, k, n, d] - teacher[b, k, n, d]) ** 2
      for k in range(K)
      for n in range(N)
      for d in range(D)
    )
    for b in range(B)
  ]
  got = jax.jit(losses.mimic)(student, teacher)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  # The mean is over tokens and channels, and still a sum over blocks.
  mean = losses.mimic(student, teacher, reduction="mean")
  np.testing.assert_allclose(mean, np.divide(expected, N * D), rtol=1e-6)
  alone = sum(losses.mimic(student[:, k], teacher[:, k]) for k in range(K))
  np.testing.assert_allclose(alone, expected, rtol=1e-6)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_generation_by_hand(ratio):
  generated, teacher = normal(0, B, N, D), normal(1, B, N, D)
  mask = np.random.default_rng(2).random((B, N)) < ratio
  expected = np.zeros(B)
  for b in range(B):
    for n in np.flatnonzero(mask[b]):
      difference = generated[b, n] - teacher[b, n]
      expected[b] += difference @ difference / ratio
  got = losses.generation(generated, teacher, mask, mask_ratio=ratio)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  mean = losses.generation(
    generated, teacher, mask, mask_ratio=ratio, reduction="mean"
  )
  np.testing.assert_allclose(mean, expected / (N * D), rtol=1e-6)


def test_generation_at_its_borders():
  generated, teacher = normal(0, B, N, D), normal(1, B, N, D)
  whole = losses.mimic(generated, teacher)
  ones, none = np.ones((B, N), bool), np.zeros((B, N), bool)
  compute = functools.partial(losses.generation, generated, teacher)
  np.testing.assert_allclose(compute(ones), whole / 0.5, rtol=1e-6)
  np.testing.assert_array_equal(compute(none), 0)
  # lambda = 0: every token counts, nothing is divided, whatever the mask.
  for mask in (ones, none):
    np.testing.assert_array_equal(compute(mask, mask_ratio=0), whole)


def test_generation_reads_replaced_tokens_alone():
  generated, teacher = normal(0, B, N, D), normal(1, B, N, D)
  mask = np.arange(N)[None] < np.array([[1], [3], [6]])
  other = np.where(mask[..., None], generated, 1e10)
  np.testing.assert_array_equal(
    losses.generation(other, teacher, mask),
    losses.generation(generated, teacher, mask),
  )
  gradient = jax.grad(lambda g: losses.generation(g, teacher, mask).sum())(
    generated
  )
  np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), mask)


@pytest.mark.parametrize("name", BY_MAPS)
def test_feature_terms_ignore_order_and_keep_examples_apart(name):
  loss = BY_MAPS[name]
  student, teacher = normal(0, B, N, D), normal(1, B, N, D)
  value = loss(student, teacher)
  np.testing.assert_array_equal(loss(teacher, teacher), 0)
  order = np.array([2, 0, 1])
  np.testing.assert_array_equal(
    loss(student[order], teacher[order]), value[order]
  )
  channels = np.random.default_rng(3).permutation(D)
  np.testing.assert_allclose(
    loss(student[..., channels], teacher[..., channels]), value, rtol=1e-6
  )


def test_mimic_ignores_the_order_of_tokens():
  student, teacher = normal(0, B, K, N, D), normal(1, B, K, N, D)
  order = np.random.default_rng(3).permutation(N)
  np.testing.assert_allclose(
    losses.mimic(student[:, :, order], teacher[:, :, order]),
    losses.mimic(student, teacher),
    rtol=1e-6,
  )


# Terms of logits.


def test_soft_cross_entropy_by_hand():
  student, _ = logits()
  target = np.stack([softmax(row) for row in normal(5, B, C)])
  expected = [
    -np.dot(t, np.log(softmax(s))) for s, t in zip(student, target, strict=True)
  ]
  got = jax.jit(losses.soft_cross_entropy)(student, target)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  one_hot = losses.soft_cross_entropy(student, np.eye(C)[LABEL])
  expected = [-np.log(softmax(student[b])[LABEL[b]]) for b in range(B)]
  np.testing.assert_allclose(one_hot, expected, rtol=1e-6)
  uniform = losses.soft_cross_entropy(np.zeros((B, C)), target)
  np.testing.assert_allclose(uniform, np.log(C), rtol=1e-6)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_kl_by_hand(tau):
  student, teacher = logits()
  expected = []
  for s, t in zip(student, teacher, strict=True):
    p, q = softmax(s / tau), softmax(t / tau)
    expected.append(tau**2 * np.sum(q * np.log(q / p)))
  got = losses.kl(student, teacher, temperature=tau)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  assert (got > 0).all()
  np.testing.assert_allclose(
    losses.kl(teacher, teacher, temperature=tau), 0, atol=1e-6
  )


def test_hard_distillation_by_hand():
  student, teacher = logits()
  expected = [
    -np.log(softmax(s)[np.argmax(t)])
    for s, t in zip(student, teacher, strict=True)
  ]
  got = losses.hard_distillation(student, teacher)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("tau, gamma", [(1.0, 1.0), (1.0, 0.0), (2.0, 1.5)])
def test_nkd_by_hand(tau, gamma):
  student, teacher = logits()
  expected = []
  for b, y in enumerate(LABEL):
    value = -softmax(teacher[b])[y] * np.log(softmax(student[b])[y])
    # The softmax over the other classes: the target's logit is taken out.
    p = softmax(np.delete(student[b], y) / tau)
    q = softmax(np.delete(teacher[b], y) / tau)
    expected.append(value - gamma * tau**2 * np.sum(q * np.log(p)))
  options = dict(temperature=tau, gamma=gamma)
  got = losses.nkd(student, teacher, LABEL, **options)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  # A distribution stands for its arg max.
  mixed = 0.7 * np.eye(C)[LABEL] + 0.3 / C
  np.testing.assert_array_equal(
    losses.nkd(student, teacher, mixed.astype(np.float32), **options), got
  )


def test_nkd_with_three_classes_is_finite():
  value, gradient = jax.jit(
    jax.value_and_grad(
      lambda s: losses.nkd(s, jnp.ones((1, 3)), jnp.array([1])).sum()
    )
  )(jnp.zeros((1, 3)))
  # q_y log 3 + log 2: both softmaxes are uniform.
  np.testing.assert_allclose(value, np.log(3) / 3 + np.log(2), rtol=1e-6)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", BY_LOGITS)
def test_a_constant_added_to_logits_changes_nothing(name):
  student, teacher = logits()
  value = BY_LOGITS[name](student, teacher)
  moved = BY_LOGITS[name](student + 3.0, teacher - 2.0)
  np.testing.assert_allclose(moved, value, rtol=1e-5)


@pytest.mark.parametrize("name", ["kl_tau4", "hard", "soft"])
def test_renumbered_classes_change_nothing(name):
  student, teacher = logits()
  order = np.random.default_rng(4).permutation(C)
  np.testing.assert_allclose(
    BY_LOGITS[name](student[:, order], teacher[:, order]),
    BY_LOGITS[name](student, teacher),
    rtol=1e-5,
  )


def test_renumbered_classes_change_nothing_in_nkd():
  student, teacher = logits()
  order = np.random.default_rng(4).permutation(C)
  np.testing.assert_allclose(
    losses.nkd(student[:, order], teacher[:, order], np.argsort(order)[LABEL]),
    losses.nkd(student, teacher, LABEL),
    rtol=1e-5,
  )


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_nkd_separates_the_target_from_the_others(gamma):
  """Of its two terms the second does not see the target's own logits."""
  student, teacher = logits()
  raised = student + 2.0 * np.eye(C)[LABEL]
  options = dict(gamma=gamma)
  first = losses.nkd(raised, teacher, LABEL, gamma=0.0) - losses.nkd(
    student, teacher, LABEL, gamma=0.0
  )
  both = losses.nkd(raised, teacher, LABEL, **options) - losses.nkd(
    student, teacher, LABEL, **options
  )
  assert (first < 0).all()
  np.testing.assert_allclose(both, first, rtol=1e-5, atol=1e-6)


# All of them.

ALL = [(name, BY_LOGITS[name], (B, C)) for name in BY_LOGITS] + [
  (name, BY_MAPS[name], (B, N, D)) for name in BY_MAPS
]


@pytest.mark.parametrize(
  "loss, shape", [pytest.param(*rest, id=name) for name, *rest in ALL]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_reach_the_student_alone(loss, shape, dtype):
  student = jnp.asarray(normal(0, *shape), dtype)
  teacher = jnp.asarray(normal(1, *shape), dtype)

  @jax.jit
  def run(student, teacher):
    def total(student, teacher):
      value = loss(student, teacher)
      return value.sum(), value

    return jax.grad(total, (0, 1), has_aux=True)(student, teacher)

  (to_student, to_teacher), value = run(student, teacher)
  assert value.dtype == jnp.float32
  assert value.shape == (B,)
  assert to_student.dtype == student.dtype
  to_student = np.asarray(to_student, np.float32)
  assert np.isfinite(to_student).all()
  assert np.any(to_student != 0, axis=tuple(range(1, len(shape)))).all()
  np.testing.assert_array_equal(np.asarray(to_teacher, np.float32), 0)
  # bfloat16 is widened before anything is computed, so that the value is that
  # of the rounded inputs; sums in bfloat16 would be off by 1e-2.
  wide = loss(student.astype(jnp.float32), teacher.astype(jnp.float32))
  np.testing.assert_allclose(value, wide, rtol=1e-6)


@pytest.mark.parametrize("name", BY_LOGITS)
def test_extreme_logits_give_finite_values_and_gradients(name):
  student = jnp.repeat(EXTREME, len(EXTREME), axis=0)
  teacher = jnp.tile(EXTREME, (len(EXTREME), 1))

  @jax.jit
  def run(student):
    value, pull = jax.vjp(lambda s: BY_LOGITS[name](s, teacher), student)
    return value, pull(jnp.ones_like(value))[0]

  value, gradient = run(student)
  assert np.isfinite(value).all()
  assert (value >= 0).all()
  assert np.isfinite(gradient).all()


def test_nkd_is_finite_wherever_the_target_is():
  pairs = [(s, t, y) for s in EXTREME for t in EXTREME for y in range(4)]
  student, teacher, target = map(np.stack, zip(*pairs, strict=True))

  @jax.jit
  def run(student):
    value, pull = jax.vjp(lambda s: losses.nkd(s, teacher, target), student)
    return value, pull(jnp.ones_like(value))[0]

  value, gradient = run(student)
  assert np.isfinite(value).all()
  assert np.isfinite(gradient).all()


# Refusals.


@pytest.mark.parametrize(
  "match, call",
  [
    (
      r"student and teacher .* \(2, 3, 4\) and \(2, 3, 5\)",
      lambda: losses.mimic(np.zeros((2, 3, 4)), np.zeros((2, 3, 5))),
    ),
    (
      "reduction to be one of sum, mean, got 'max'",
      lambda: losses.mimic(*[np.zeros((2, 3, 4))] * 2, reduction="max"),
    ),
    (
      r"generated and teacher .* \(2, 3, 4\) and \(1, 3, 4\)",
      lambda: losses.generation(
        np.zeros((2, 3, 4)), np.zeros((1, 3, 4)), np.zeros((2, 3), bool)
      ),
    ),
    (
      r"mask and token grid .* \(2, 4\) and \(2, 3\)",
      lambda: losses.generation(
        *[np.zeros((2, 3, 4))] * 2, np.zeros((2, 4), bool)
      ),
    ),
    (
      "expected 0 <= mask_ratio < 1, got 1",
      lambda: losses.generation(
        *[np.zeros((2, 3, 4))] * 2, np.zeros((2, 3), bool), mask_ratio=1
      ),
    ),
    (
      "mask_ratio < 1, got -0.1",
      lambda: losses.generation(
        *[np.zeros((2, 3, 4))] * 2, np.zeros((2, 3), bool), mask_ratio=-0.1
      ),
    ),
    (
      "sum, mean, got 'none'",
      lambda: losses.generation(
        *[np.zeros((2, 3, 4))] * 2, np.zeros((2, 3), bool), reduction="none"
      ),
    ),
    (
      r"logits and target .* \(2, 4\) and \(2,\)",
      lambda: losses.soft_cross_entropy(np.zeros((2, 4)), np.zeros(2)),
    ),
    (
      r"student_logits and teacher_logits .* \(2, 4\) and \(2, 5\)",
      lambda: losses.kl(np.zeros((2, 4)), np.zeros((2, 5))),
    ),
    (
      "expected temperature > 0, got 0",
      lambda: losses.kl(*[np.zeros((2, 4))] * 2, temperature=0),
    ),
    (
      "expected temperature > 0, got nan",
      lambda: losses.kl(*[np.zeros((2, 4))] * 2, temperature=float("nan")),
    ),
    (
      r"student_logits and teacher_logits .* \(2, 4\) and \(3, 4\)",
      lambda: losses.hard_distillation(np.zeros((2, 4)), np.zeros((3, 4))),
    ),
    (
      r"student_logits and teacher_logits .* \(2, 4\) and \(2, 5\)",
      lambda: losses.nkd(np.zeros((2, 4)), np.zeros((2, 5)), np.zeros(2, int)),
    ),
    (
      "at least 3 classes for nkd, got 2.*use kl",
      lambda: losses.nkd(*[np.zeros((2, 2))] * 2, np.zeros(2, int)),
    ),
    (
      "expected temperature > 0, got -1",
      lambda: losses.nkd(
        *[np.zeros((2, 4))] * 2, np.zeros(2, int), temperature=-1
      ),
    ),
    (
      r"target and student_logits .* \(2,\) and \(2, 4\)",
      lambda: losses.nkd(*[np.zeros((2, 4))] * 2, np.zeros(2, np.float32)),
    ),
    (
      r"target and batch .* \(3,\) and \(2,\)",
      lambda: losses.nkd(*[np.zeros((2, 4))] * 2, np.zeros(3, int)),
    ),
  ],
)
def test_refusals(match, call):
  with pytest.raises(ValueError, match=match):
    call()
