"""Tests of the losses of logits that `test_losses.py` does not hold.

`test_golden_logits.py` compares them with their authors' code.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import jitted
import numpy as np
import pytest

from vitkd_jax.distill import losses as as_published

losses = jitted.Module(as_published)

B, C = 4, 7
LABEL = np.array([2, 0, 6, 3])


def normal(seed, *shape):
  """Normal float64 that are float32 numbers."""
  x = np.random.default_rng(seed).standard_normal(shape)
  return x.astype(np.float32).astype(np.float64)


def logits():
  return 2 * normal(0, B, C), 3 * normal(1, B, C)


def softmax(x):
  """One row, float64."""
  powers = np.exp(np.asarray(x, np.float64) - np.max(x))
  return powers / powers.sum()


def divergence(q, p):
  return np.sum(q * np.log(q / p))


def labels(count):
  """Int [count], some class of three or more."""
  return jnp.arange(count) % 3


def mixed(num_classes):
  """Two labels in each row but the first, which has one; float32 [B, C]."""
  one_hot, share = np.eye(num_classes), np.array([[1.0], [0.6], [0.9], [0.3]])
  other = (LABEL + 1) % num_classes
  return np.float32(share * one_hot[LABEL] + (1 - share) * one_hot[other])


# Of two logits -> [B], with a gradient to the first and none to the second:
# student and teacher, or student and weak in either order.
LOSSES = {
  "kl_standardised": functools.partial(losses.kl, standardise=True),
  "deit_soft": functools.partial(losses.deit_soft, temperature=3.0),
  "ttm": losses.ttm,
  "wttm": losses.wttm,
  "wttm_gamma_tenth": functools.partial(losses.wttm, gamma=0.1),
  "dkd": lambda s, t: losses.dkd(s, t, labels(len(s))),
  "dkd_standardised": lambda s, t: losses.dkd(
    s, t, labels(len(s)), beta=8.0, temperature=2.0, standardise=True
  ),
  "wsld": lambda s, t: losses.wsld(s, t, labels(len(s))),
  "dist": losses.dist,
  "dist_inter": functools.partial(losses.dist, gamma=0.0, temperature=4.0),
  "uskd_target": lambda s, w: losses.uskd(s, w, labels(len(s)))["target"],
  "uskd_non_target": lambda s, w: losses.uskd(s, w, labels(len(s)))[
    "non_target"
  ],
  "uskd_weak": lambda w, s: losses.uskd(s, w, labels(len(s)))["weak"],
}


@functools.partial(jax.jit, static_argnums=0)
def run(loss, student, teacher):
  """Values [B], and the gradients of their sum to both logits."""

  def total(student, teacher):
    value = loss(student, teacher)
    return value.sum(), value

  gradients, value = jax.grad(total, (0, 1), has_aux=True)(student, teacher)
  return value, *gradients


# By hand, in float64.


def test_standardise_by_hand():
  student, _ = logits()
  expected = [(z - z.mean()) / z.std(ddof=1) for z in student]
  got = losses.standardise(student)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  # Any scale and offset give the same; a constant row becomes zeros.
  moved = losses.standardise(10 * student - 3)
  np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(losses.standardise(np.full((2, 4), 0.5)), 0)


def test_standardised_kl_by_hand():
  student, teacher = logits()
  expected = []
  for s, t in zip(student, teacher, strict=True):
    s, t = ((z - z.mean()) / z.std(ddof=1) for z in (s, t))
    expected.append(4 * divergence(softmax(t / 2), softmax(s / 2)))
  options = dict(temperature=2.0, standardise=True)
  got = losses.kl(student, teacher, **options)
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  np.testing.assert_allclose(
    losses.kl(5 * student + 1, teacher, **options), got, rtol=1e-5
  )


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_deit_soft_by_hand(tau):
  student, teacher = logits()
  expected = sum(
    tau**2 * divergence(softmax(t / tau), softmax(s / tau)) / (B * C)
    for s, t in zip(student, teacher, strict=True)
  )
  got = losses.deit_soft(student, teacher, temperature=tau)
  np.testing.assert_allclose(np.mean(got), expected, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.1, 0.8, 1.0, 2.0])
def test_ttm_and_wttm_by_hand(gamma):
  student, teacher = logits()
  expected, weights = [], []
  for s, t in zip(student, teacher, strict=True):
    power = softmax(t) ** gamma
    expected.append(divergence(power / power.sum(), softmax(s)))
    weights.append(power.sum())
  got = losses.ttm(student, teacher, gamma=gamma)
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  got = losses.wttm(student, teacher, gamma=gamma)
  np.testing.assert_allclose(got, np.multiply(expected, weights), rtol=1e-5)


def test_the_weight_of_wttm_is_what_the_docstring_says():
  student = normal(0, 2, C)
  certain, knows_nothing = 100 * np.eye(C)[[1, 1]], np.zeros((2, C))
  for teacher, weight in (certain, 1.0), (knows_nothing, C**0.2):
    np.testing.assert_allclose(
      losses.wttm(student, teacher, gamma=0.8),
      weight * losses.ttm(student, teacher, gamma=0.8),
      rtol=1e-5,
    )


def test_ttm_at_gamma_one_is_kl():
  expected = losses.kl(*logits())
  np.testing.assert_allclose(losses.ttm(*logits(), gamma=1.0), expected, 1e-6)
  np.testing.assert_allclose(losses.wttm(*logits(), gamma=1.0), expected, 1e-6)


@pytest.mark.parametrize("alpha, beta, tau", [(1, 0, 1), (0, 1, 2), (2, 8, 4)])
def test_dkd_by_hand(alpha, beta, tau):
  student, teacher = logits()
  expected = []
  for s, t, y in zip(student / tau, teacher / tau, LABEL, strict=True):
    p, q = softmax(s), softmax(t)
    shares = [np.array([x[y], 1 - x[y]]) for x in (q, p)]
    others = [softmax(np.delete(z, y)) for z in (t, s)]
    expected.append(alpha * divergence(*shares) + beta * divergence(*others))
  options = dict(alpha=alpha, beta=beta, temperature=tau)
  got = losses.dkd(student, teacher, LABEL, **options)
  np.testing.assert_allclose(got, np.multiply(tau**2, expected), rtol=1e-5)
  distribution = np.float32(0.7 * np.eye(C)[LABEL] + 0.3 / C)
  np.testing.assert_array_equal(
    losses.dkd(student, teacher, distribution, **options), got
  )


def test_kl_is_made_of_the_parts_of_dkd():
  student, teacher = logits()
  options = dict(temperature=2.0)
  parts = [
    losses.dkd(student, teacher, LABEL, alpha=a, beta=1 - a, **options)
    for a in (1.0, 0.0)
  ]
  share = [softmax(t / 2)[y] for t, y in zip(teacher, LABEL, strict=True)]
  np.testing.assert_allclose(
    parts[0] + np.subtract(1, share) * parts[1],
    losses.kl(student, teacher, **options),
    rtol=1e-5,
  )


def test_the_target_part_of_dkd_stays_precise_where_it_is_tiny():
  """A target of probability e^-20: 1 - p rounds to 1 in float32."""
  student = np.array([[-20.0, 1.0, 1.0, 1.0]])
  teacher = np.array([[-19.0, 1.0, 1.0, 1.0]])
  p, q = softmax(student[0])[0], softmax(teacher[0])[0]
  expected = q * np.log(q / p) + (1 - q) * (np.log1p(-q) - np.log1p(-p))
  got = losses.dkd(student, teacher, np.zeros(1, int), beta=0.0)
  np.testing.assert_allclose(got, [expected], rtol=1e-5)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_wsld_by_hand(tau):
  student, teacher = logits()
  expected, weights = [], []
  for s, t, y in zip(student, teacher, LABEL, strict=True):
    ratio = np.log(softmax(s)[y]) / (np.log(softmax(t)[y]) - 1e-7)
    weights.append(1 - np.exp(-ratio))
    soft = -np.dot(softmax(t / tau), np.log(softmax(s / tau)))
    expected.append(tau**2 * weights[-1] * soft)
  loss = functools.partial(losses.wsld, temperature=tau)
  got, gradient, _ = run(lambda s, t: loss(s, t, LABEL), student, teacher)
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  # The weight itself sends no gradient.
  p, q = (np.stack([softmax(z / tau) for z in x]) for x in (student, teacher))
  by_hand = tau * np.array(weights)[:, None] * (p - q)
  np.testing.assert_allclose(gradient, by_hand, rtol=1e-4, atol=1e-6)
  distribution = np.float32(0.7 * np.eye(C)[LABEL] + 0.3 / C)
  np.testing.assert_array_equal(loss(student, teacher, distribution), got)


@pytest.mark.parametrize("beta, gamma, tau", [(1, 0, 1), (0, 1, 1), (2, 3, 4)])
def test_dist_by_hand(beta, gamma, tau):
  student, teacher = logits()
  p, q = (np.stack([softmax(z / tau) for z in x]) for x in (student, teacher))

  def distances(a, b):
    return [1 - np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]

  intra = np.mean(distances(p.T, q.T))
  expected = tau**2 * (beta * np.array(distances(p, q)) + gamma * intra)
  got = losses.dist(student, teacher, beta=beta, gamma=gamma, temperature=tau)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_dist_is_zero_between_equals():
  student, _ = logits()
  np.testing.assert_allclose(losses.dist(student, student), 0, atol=1e-5)


def test_dist_where_a_correlation_is_not_defined():
  student, teacher = logits()
  inter = losses.dist(student, teacher, gamma=0.0)
  # One example: all columns are constant, of correlation 0.
  np.testing.assert_array_equal(
    losses.dist(student, teacher, beta=0.0, temperature=2.0, group=1), 4.0
  )
  np.testing.assert_allclose(
    losses.dist(student, teacher, group=1), inter + 1.0, rtol=1e-6
  )
  constant = losses.dist(np.zeros((B, C)), teacher, gamma=0.0)
  np.testing.assert_allclose(constant, 1.0, rtol=1e-5)


def uskd_by_hand(student, weak, rows):
  """The three terms [B] each, from each row's [(value, class), ...]."""
  num_classes = student.shape[1]
  p = np.stack([softmax(z) for z in student])
  # An example without a second label counts as 0 in that column's mean.
  means = [
    sum(x[r[k][1]] ** 2 for x, r in zip(p, rows, strict=True) if k < len(r))
    / len(rows)
    for k in range(2)
  ]
  out = {"target": [], "non_target": [], "weak": []}
  for x, z, w, row in zip(p, student, weak, rows, strict=True):
    w, classes = softmax(w), [label for _, label in row]
    out["target"].append(
      -sum(
        (x[label] ** 2 + value - means[k]) * np.log(x[label])
        for k, (value, label) in enumerate(row)
      )
    )
    score = w / (1 - w[classes].sum() + 1e-6)
    score += np.log(x) / (1 - np.log(x[classes]).sum() + 1e-6)
    rank = np.array([1 + np.sum(score > value) for value in score])
    others = [i for i in range(num_classes) if i not in classes]
    soft = 1 / rank[others]
    out["non_target"].append(
      -np.dot(soft / soft.sum(), np.log(softmax(z[others])))
    )
    target = np.full(num_classes, 0.1 / num_classes)
    for value, label in row:
      target[label] += 0.9 * value
    out["weak"].append(-np.dot(target, np.log(w)))
  return out


@pytest.mark.parametrize("kind", ["hard", "mixed"])
def test_uskd_by_hand(kind):
  student, weak = logits()
  target = LABEL if kind == "hard" else mixed(C)
  rows = [
    sorted(((float(v), i) for i, v in enumerate(row) if v), reverse=True)
    for row in (np.eye(C)[LABEL] if kind == "hard" else mixed(C))
  ]
  got = losses.uskd(student, weak, target)
  expected = uskd_by_hand(student, weak, rows)
  assert got.keys() == expected.keys()
  for term, value in expected.items():
    np.testing.assert_allclose(got[term], value, rtol=1e-5, err_msg=term)


def test_uskd_takes_one_label_in_either_form():
  student, weak = logits()
  expected = losses.uskd(student, weak, LABEL)
  got = losses.uskd(student, weak, np.eye(C, dtype=np.float32)[LABEL])
  for term, value in expected.items():
    np.testing.assert_allclose(got[term], value, rtol=1e-6, err_msg=term)


# Groups.

GROUPED = {
  "dist": lambda s, t, y, **options: {"dist": losses.dist(s, t, **options)},
  "uskd": losses.uskd,
}


@pytest.mark.parametrize("name", GROUPED)
def test_groups_equal_batches_of_their_own(name):
  student, teacher = 2 * normal(0, 6, C), 3 * normal(1, 6, C)
  target = np.arange(6)
  loss = jax.jit(GROUPED[name], static_argnames="group")
  whole = loss(student, teacher, target)
  for size in (1, 3, 6):
    got = loss(student, teacher, target, group=size)
    parts = [
      loss(*(x[i : i + size] for x in (student, teacher, target)))
      for i in range(0, 6, size)
    ]
    for term in whole:
      np.testing.assert_allclose(
        got[term], np.concatenate([p[term] for p in parts]), rtol=1e-6
      )
  # The statistics are over the batch unless told otherwise.
  term = {"dist": "dist", "uskd": "target"}[name]
  pairs = loss(student, teacher, target, group=2)
  assert not np.allclose(pairs[term], whole[term])


@pytest.mark.parametrize("name", GROUPED)
def test_statistics_are_the_same_on_eight_devices(name):
  devices = jax.sharding.NamedSharding(
    jax.make_mesh((8,), ("data",)), P("data")
  )
  arrays = [
    jnp.asarray(2 * normal(0, 16, C), jnp.float32),
    jnp.asarray(3 * normal(1, 16, C), jnp.float32),
    jax.nn.one_hot(np.arange(16) % C, C),
  ]
  sharded = jax.device_put(arrays, devices)
  for group, collectives in (None, True), (2, False):
    loss = jax.jit(functools.partial(GROUPED[name], group=group))
    expected, got = loss(*arrays), loss(*sharded)
    for term in expected:
      np.testing.assert_allclose(got[term], expected[term], rtol=1e-5)
    # A device's own group needs nothing of the others.
    text = loss.lower(*sharded).compile().as_text()
    needed = any(f"{x}(" in text for x in ("all-reduce", "all-gather"))
    assert needed == collectives


# All of them.


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_reach_the_student_alone(name, dtype):
  student, teacher = (jnp.asarray(x, dtype) for x in logits())
  value, to_student, to_teacher = run(LOSSES[name], student, teacher)
  assert value.dtype == jnp.float32
  assert value.shape == (B,)
  assert to_student.dtype == student.dtype
  to_student = np.asarray(to_student, np.float32)
  assert np.isfinite(to_student).all()
  assert np.any(to_student != 0, axis=-1).all()
  np.testing.assert_array_equal(np.asarray(to_teacher, np.float32), 0)
  # bfloat16 is widened before anything is computed.
  wide = LOSSES[name](student.astype(jnp.float32), teacher.astype(jnp.float32))
  np.testing.assert_allclose(value, wide, rtol=1e-5)


HUNDREDS = 100 * np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T
EDGES = {
  "zeros": np.zeros((3, 4)),
  # Means of 0.1 and of 3.3 round, so that little is left of a deviation.
  "constant": np.array([[0.1] * 4, [3.3] * 4, [-100.0] * 4]),
  "hundreds": HUNDREDS,
  "far": 1e4 * np.eye(4) - 3e3 * np.eye(4)[::-1],
  "normal": normal(5, 3, 4),
}
# One number of rows, so that one program does for all of them.
EDGES = {name: np.resize(rows, (16, 4)) for name, rows in EDGES.items()}
EDGES["one_example"] = normal(6, 1, 4)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", LOSSES)
def test_edges_give_finite_values_and_gradients(name, edge):
  """Each edge as the student, the teacher, and both."""
  first = np.float32(EDGES[edge])
  other = np.float32(normal(7, *first.shape))
  pairs = [(first, other), (other, first), (first, first), (first[::-1], first)]
  for student, teacher in pairs:
    value, gradient, _ = run(LOSSES[name], student, teacher)
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()
    if name != "uskd_target":  # whose soft label may be below 0
      assert (value > -1e-3).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_constant_added_to_logits_changes_nothing(name):
  student, teacher = logits()
  np.testing.assert_allclose(
    LOSSES[name](student + 3.0, teacher - 2.0),
    LOSSES[name](student, teacher),
    rtol=1e-4,
  )


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_examples_changes_nothing(name):
  student, teacher = logits()
  loss = LOSSES[name]
  # `labels` gives rows 0 and 3 one class.
  order = np.array([3, 1, 2, 0])
  np.testing.assert_allclose(
    loss(student[order], teacher[order]),
    loss(student, teacher)[order],
    rtol=1e-5,
  )


# Refusals.

TWO = [np.zeros((2, 2))] * 2
FOUR = [np.zeros((2, 4))] * 2
HARD = np.zeros(2, int)


@pytest.mark.parametrize(
  "call, match",
  [
    *[
      (
        functools.partial(loss, np.zeros((2, 4)), np.zeros((2, 5)), *target),
        r"student_logits and teacher_logits .* \(2, 4\) and \(2, 5\)",
      )
      for loss, *target in (
        [losses.deit_soft],
        [losses.ttm],
        [losses.wttm],
        [losses.dkd, HARD],
        [losses.wsld, HARD],
        [losses.dist],
      )
    ],
    *[
      (
        functools.partial(loss, *FOUR, *target, temperature=0),
        "expected temperature > 0, got 0",
      )
      for loss, *target in (
        [losses.deit_soft],
        [losses.dkd, HARD],
        [losses.wsld, HARD],
        [losses.dist],
      )
    ],
    *[
      (functools.partial(loss, *FOUR, gamma=g), f"expected gamma > 0, got {g}")
      for loss in (losses.ttm, losses.wttm)
      for g in (0, -0.5, float("nan"))
    ],
    *[
      (
        functools.partial(loss, *FOUR, target),
        match,
      )
      for loss in (losses.dkd, losses.wsld, losses.uskd)
      for target, match in (
        (np.zeros(3, int), r"target and batch .* \(3,\) and \(2,\)"),
        (np.zeros(2), r"target and student_logits .* \(2,\) and \(2, 4\)"),
      )
    ],
    (
      functools.partial(losses.dkd, *TWO, HARD),
      "at least 3 classes for dkd, got 2: .*use kl",
    ),
    (
      functools.partial(losses.dist, *TWO),
      "at least 3 classes for dist, got 2: .*use kl",
    ),
    (
      functools.partial(losses.standardise, TWO[0]),
      "at least 3 classes for standardise, got 2: ",
    ),
    (
      functools.partial(losses.kl, *TWO, standardise=True),
      "at least 3 classes for standardise, got 2: ",
    ),
    (
      functools.partial(losses.uskd, *TWO, HARD),
      "at least 3 classes for uskd, got 2: ",
    ),
    (
      functools.partial(losses.uskd, *[np.zeros((2, 3))] * 2, np.zeros((2, 3))),
      "at least 4 classes for uskd, got 3: ",
    ),
    (
      functools.partial(losses.uskd, np.zeros((2, 4)), np.zeros((2, 5)), HARD),
      r"student_logits and weak_logits .* \(2, 4\) and \(2, 5\)",
    ),
    *[
      (
        functools.partial(losses.dkd, *FOUR, HARD, **{name: -1}),
        f"expected {name} >= 0, got -1",
      )
      for name in ("alpha", "beta")
    ],
    *[
      (
        functools.partial(losses.dist, *FOUR, **{name: float("nan")}),
        f"expected {name} >= 0, got nan",
      )
      for name in ("beta", "gamma")
    ],
    *[
      (
        functools.partial(loss, *FOUR, *target, group=group),
        f"expected group to divide the batch of 2, got {group}",
      )
      for loss, *target in ([losses.dist], [losses.uskd, HARD])
      for group in (0, -1, 3)
    ],
  ],
)
def test_refusals(call, match):
  with pytest.raises(ValueError, match=match):
    call()
