"""Tests of vitkd_jax.distill.losses.relations."""

import functools
import itertools

import degenerate
import jax
import jax.numpy as jnp
import jitted
import numpy as np
import pytest

from vitkd_jax.cluster import sharding
from vitkd_jax.distill import losses as as_published

losses = jitted.Module(as_published)

normal = degenerate.normal
B, N, S, T = 4, 6, 5, 8  # images, tokens, widths of student and teacher


def maps(batch=B, tokens=N, student_width=S, teacher_width=T):
  return (
    normal(0, batch, tokens, student_width) + 0.5,
    normal(1, batch, tokens, teacher_width) - 0.5,
  )


SCORES = np.random.default_rng(7).random((B, N))


def rand(student, teacher, **options):
  scores = jnp.asarray(SCORES)[: student.shape[0], : student.shape[1]]
  return losses.manifold_rand(
    student, teacher, scores, **{"num_tokens": 7, **options}
  )


def as_qkv(x):
  """q, k, v [B, N, 1, D] that differ, of one map."""
  return tuple(scale * x[:, :, None] for scale in (1.0, 2.0, -0.5))


def relation(student, teacher):
  return losses.qkv_relation(
    as_qkv(student), as_qkv(teacher), pairs=("qq", "kv")
  )


BY_MAPS = {
  "manifold_patch": losses.manifold_patch,
  "manifold_sample": losses.manifold_sample,
  "manifold_rand": rand,
  "token_similarity": losses.token_similarity,
  "qkv_relation": relation,
  "cka": losses.cka,
  "unbiased_cka": losses.unbiased_cka,
}


def without(*names):
  return [name for name in BY_MAPS if name not in names]


def cosine(a, b):
  return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def softmax(x):
  powers = np.exp(x - np.max(x))
  return powers / powers.sum()


def divergence(q, p):
  return np.sum(q * np.log(q / p))


# Each by hand, in float64.


@pytest.mark.parametrize("widths", [(5, 8), (6, 6), (8, 5)])
def test_manifold_patch_by_hand(widths):
  student, teacher = maps(2, 6, *widths)
  expected = [
    np.mean(
      [
        (cosine(s[n], s[m]) - cosine(t[n], t[m])) ** 2
        for n in range(N)
        for m in range(N)
      ]
    )
    for s, t in zip(student, teacher, strict=True)
  ]
  got = jax.jit(losses.manifold_patch)(student, teacher)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_manifold_sample_by_hand():
  student, teacher = maps()
  expected = [
    np.mean(
      [
        (
          cosine(student[b, n], student[c, n])
          - cosine(teacher[b, n], teacher[c, n])
        )
        ** 2
        for c in range(B)
        for n in range(N)
      ]
    )
    for b in range(B)
  ]
  got = losses.manifold_sample(student, teacher)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 7, 23, 24, 192])
def test_manifold_rand_by_hand(num_tokens):
  student, teacher = maps()
  chosen = np.argsort(-SCORES.reshape(-1))[:num_tokens]
  s, t = student.reshape(-1, S)[chosen], teacher.reshape(-1, T)[chosen]
  pairs = list(itertools.product(range(len(chosen)), repeat=2))
  expected = np.mean(
    [(cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 for i, j in pairs]
  )
  got = rand(student, teacher, num_tokens=num_tokens)
  np.testing.assert_allclose(got, np.full(B, expected), rtol=1e-5, atol=1e-12)


def test_manifold_rand_compares_the_tokens_of_the_largest_scores():
  student, teacher = maps()
  gradient = jax.grad(lambda s: rand(s, teacher, num_tokens=7).sum())(student)
  chosen = np.any(gradient != 0, axis=-1)
  seventh = np.sort(SCORES, axis=None)[-7]
  np.testing.assert_array_equal(chosen, seventh <= SCORES)


@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_token_similarity_by_hand(tau):
  student, teacher = maps()
  expected = []
  for s, t in zip(student, teacher, strict=True):
    rows = []
    for n in range(N):
      q = softmax(np.array([cosine(t[n], t[m]) for m in range(N)]) / tau)
      p = softmax(np.array([cosine(s[n], s[m]) for m in range(N)]) / tau)
      rows.append(divergence(q, p))
    expected.append(np.mean(rows))
  got = losses.token_similarity(student, teacher, temperature=tau)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def qkv(seed, heads, width):
  return tuple(normal(seed + i, 2, N, heads, width // heads) for i in range(3))


@pytest.mark.parametrize(
  "pairs, heads",
  [(("qq", "kk", "vv"), None), (("qk",), 1), (("vq", "kk"), 6)],
)
def test_qkv_relation_by_hand(pairs, heads):
  # 12 channels in 3 heads, and 24 in 4.
  student, teacher = qkv(0, 3, 12), qkv(5, 4, 24)
  number = heads or 3
  expected = np.zeros(2)
  for b, pair, head in itertools.product(range(2), pairs, range(number)):
    logits = []
    for values, width in ((student, 12), (teacher, 24)):
      size = width // number
      first, second = (
        values["qkv".index(name)][b].reshape(N, width)[
          :, head * size : (head + 1) * size
        ]
        for name in pair
      )
      logits.append(first @ second.T / np.sqrt(size))
    expected[b] += np.mean(
      [divergence(softmax(t), softmax(s)) for s, t in zip(*logits, strict=True)]
    ) / (number * len(pairs))
  got = losses.qkv_relation(student, teacher, pairs=pairs, relation_heads=heads)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_qkv_relation_compares_queries_keys_and_values_by_default():
  student, teacher = qkv(0, 3, 12), qkv(5, 4, 24)
  each = [
    losses.qkv_relation(student, teacher, pairs=(pair,))
    for pair in ("qq", "kk", "vv")
  ]
  np.testing.assert_allclose(
    losses.qkv_relation(student, teacher), np.mean(each, axis=0), rtol=1e-6
  )


def test_cka_by_hand():
  student, teacher = maps()
  expected = []
  for s, t in zip(student, teacher, strict=True):
    s, t = s - s.mean(0), t - t.mean(0)
    cross, own_s, own_t = (
      np.linalg.norm(x) for x in (s.T @ t, s.T @ s, t.T @ t)
    )
    expected.append(1 - cross**2 / (own_s * own_t))
  got = losses.cka(student, teacher)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def hsic_1(k, m):
  """Song et al., JMLR 13 (2012): the unbiased estimator, as it is written."""
  n = len(k)
  k, m = (x - np.diag(np.diag(x)) for x in (k, m))
  ones = np.ones(n)
  value = np.trace(k @ m)
  value += (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
  value -= 2 / (n - 2) * (ones @ k @ m @ ones)
  return value / (n * (n - 3))


@pytest.mark.parametrize("tokens", [4, 6, 20])
def test_unbiased_cka_by_hand(tokens):
  student, teacher = maps(3, tokens)
  expected = []
  for s, t in zip(student, teacher, strict=True):
    k, m = s @ s.T, t @ t.T
    expected.append(hsic_1(k, m) / np.sqrt(hsic_1(k, k) * hsic_1(m, m)))
  got = losses.unbiased_cka(student, teacher)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_unbiased_cka_of_unrelated_maps_is_0_on_average():
  # Wider than there are tokens, where CKA says that they are alike.
  student, teacher = maps(64, 12, 48, 48)
  assert np.mean(1 - losses.cka(student, teacher)) > 0.5
  # 64 values of standard deviation 0.13: 5 standard errors.
  assert abs(np.mean(losses.unbiased_cka(student, teacher))) < 0.08


# What all of them keep.


@pytest.mark.parametrize("name", BY_MAPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_reach_the_student_alone(name, dtype):
  degenerate.check_gradients(BY_MAPS[name], *maps(), dtype)


@pytest.mark.parametrize("name", BY_MAPS)
def test_degenerate_maps_give_finite_values_and_gradients(name):
  pairs = degenerate.maps(S, T)
  if name == "unbiased_cka":  # it refuses fewer than four tokens
    pairs = {key: x for key, x in pairs.items() if x[0].shape[1] >= 4}
  degenerate.check_finite(BY_MAPS[name], pairs)


@pytest.mark.parametrize("name", without("unbiased_cka"))
def test_equal_maps_are_at_distance_0(name):
  student, _ = maps()
  value = BY_MAPS[name](student, student)
  np.testing.assert_allclose(value, 0, atol=1e-6)
  degenerate.check_finite(BY_MAPS[name], {"equal": (student, student)})


@pytest.mark.parametrize("name", without("qkv_relation"))
def test_a_rotated_map_counts_as_the_same(name):
  student, teacher = maps()
  rotation = np.linalg.qr(normal(9, S, S))[0]
  np.testing.assert_allclose(
    BY_MAPS[name](3.0 * student @ rotation, teacher),
    BY_MAPS[name](student, teacher),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("name", ["cka", "unbiased_cka"])
def test_cka_ignores_what_all_tokens_have_in_common(name):
  student, teacher = maps()
  moved = student + 100 * normal(9, B, 1, S)
  np.testing.assert_allclose(
    BY_MAPS[name](moved, teacher),
    BY_MAPS[name](student, teacher),
    atol=1e-4,  # 100 in float32 leaves the tokens 1e-5
  )


@pytest.mark.parametrize("scale", [1e-9, 1e9])
@pytest.mark.parametrize("name", without("qkv_relation"))
def test_the_scale_of_a_map_changes_nothing(name, scale):
  student, teacher = maps()
  np.testing.assert_allclose(
    BY_MAPS[name](scale * student, teacher),
    BY_MAPS[name](student, teacher),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("name", without("manifold_rand"))
def test_the_order_of_tokens_changes_nothing(name):
  student, teacher = maps()
  order = np.random.default_rng(3).permutation(N)
  np.testing.assert_allclose(
    BY_MAPS[name](student[:, order], teacher[:, order]),
    BY_MAPS[name](student, teacher),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("name", without("manifold_sample", "manifold_rand"))
def test_examples_are_kept_apart(name):
  student, teacher = maps()
  np.testing.assert_allclose(
    BY_MAPS[name](student[2:3], teacher[2:3])[0],
    BY_MAPS[name](student, teacher)[2],
    rtol=1e-6,
  )


@pytest.mark.parametrize("group", [1, 2])
def test_a_group_is_a_batch_of_its_own(group):
  student, teacher = maps()

  def separate(loss, *arrays):
    return np.concatenate(
      [loss(*(x[i : i + group] for x in arrays)) for i in range(0, B, group)]
    )

  np.testing.assert_allclose(
    losses.manifold_sample(student, teacher, group=group),
    separate(losses.manifold_sample, student, teacher),
    rtol=1e-6,
  )
  for num_tokens in (4, 100):
    loss = functools.partial(losses.manifold_rand, num_tokens=num_tokens)
    np.testing.assert_allclose(
      loss(student, teacher, SCORES, group=group),
      separate(loss, student, teacher, SCORES),
      rtol=1e-6,
    )


@pytest.mark.parametrize("group", [None, 2])
@pytest.mark.parametrize("name", ["manifold_sample", "manifold_rand"])
def test_one_and_eight_devices_agree(name, group):
  arrays = (*maps(16), np.random.default_rng(5).random((16, N)))
  loss = {
    "manifold_sample": lambda s, t, _: losses.manifold_sample(
      s, t, group=group
    ),
    "manifold_rand": lambda s, t, scores: losses.manifold_rand(
      s, t, scores, num_tokens=7, group=group
    ),
  }[name]
  run = jax.jit(
    jax.value_and_grad(lambda *x: (loss(*x) * jnp.arange(16)).sum())
  )
  arrays = [x.astype(np.float32) for x in arrays]
  spread = jax.device_put(arrays, sharding.batch(sharding.make_mesh()))
  for one, eight in zip(run(*arrays), run(*spread), strict=True):
    np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-5)
  if group is not None:  # the images of a device are a whole group
    text = run.lower(*spread).compile().as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text


# Refusals.

BAD_MAPS = {
  "tokens": (np.zeros((2, 6, 4)), np.zeros((2, 5, 4))),
  "batch": (np.zeros((2, 6, 4)), np.zeros((3, 6, 4))),
  "features": (np.zeros((2, 4)), np.zeros((2, 4))),
}


@pytest.mark.parametrize("kind", BAD_MAPS)
@pytest.mark.parametrize("name", without("qkv_relation"))
def test_maps_of_other_tokens_are_refused(name, kind):
  student, teacher = BAD_MAPS[kind]
  message = r"expected student \[B, N, D_s\] and teacher \[B, N, D_t\]"
  loss = BY_MAPS[name]
  if name == "manifold_rand":
    loss = functools.partial(losses.manifold_rand, scores=np.zeros((2, 6)))
  with pytest.raises(ValueError, match=message) as error:
    loss(student, teacher)
  assert f"got {student.shape} and {teacher.shape}" in str(error.value)


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda s, t: losses.manifold_sample(s, t, group=3),
      "expected group to divide the batch of 4, got 3",
    ),
    (
      lambda s, t: losses.manifold_rand(s, t, SCORES, group=3),
      "expected group to divide the batch of 4, got 3",
    ),
    (
      lambda s, t: losses.manifold_rand(s, t, SCORES, num_tokens=0),
      "expected num_tokens >= 1, got 0",
    ),
    (
      lambda s, t: losses.manifold_rand(s, t, SCORES[:, 1:]),
      r"expected scores and tokens to have the same shape, got \(4, 5\) and "
      r"\(4, 6\)",
    ),
    (
      lambda s, t: losses.token_similarity(s, t, temperature=0.0),
      r"expected temperature > 0, got 0\.0",
    ),
    (
      lambda s, t: losses.unbiased_cka(s[:, :3], t[:, :3]),
      "expected at least 4 tokens for unbiased_cka, got 3",
    ),
  ],
)
def test_bad_options_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call(*maps())


@pytest.mark.parametrize(
  "student, teacher, options, message",
  [
    (
      qkv(0, 3, 12)[:2],
      qkv(0, 3, 12),
      {},
      r"expected student to be \(q, k, v\), each \[B, T, heads, e\], got "
      r"shapes \(2, 6, 3, 4\), \(2, 6, 3, 4\)",
    ),
    (
      qkv(0, 3, 12),
      (*qkv(0, 3, 12)[:2], normal(0, 2, 6, 12)),
      {},
      r"expected teacher to be \(q, k, v\)",
    ),
    (
      qkv(0, 3, 12),
      tuple(x[:, 1:] for x in qkv(0, 3, 12)),
      {},
      r"of the same B and T, got student \(2, 6, 3, 4\) and teacher "
      r"\(2, 5, 3, 4\)",
    ),
    (
      qkv(0, 3, 12),
      qkv(0, 4, 16),
      {},
      r"expected relation_heads to divide the widths 12 \(student\) and 16 "
      r"\(teacher\), got 3",
    ),
    (
      qkv(0, 3, 12),
      qkv(0, 4, 16),
      {"relation_heads": 0},
      "got 0",
    ),
    (
      qkv(0, 3, 12),
      qkv(0, 3, 12),
      {"pairs": ()},
      "expected pairs to be some of qq, qk, qv, kq, kk, kv, vq, vk, vv, got "
      "none",
    ),
    (
      qkv(0, 3, 12),
      qkv(0, 3, 12),
      {"pairs": ("qq", "qx")},
      "expected a pair to be one of qq, .*, got 'qx'",
    ),
  ],
)
def test_bad_relations_are_refused(student, teacher, options, message):
  with pytest.raises(ValueError, match=message):
    losses.qkv_relation(student, teacher, **options)
