"""Losses of logits against what the authors' PyTorch code gave (golden/)."""

import functools
import pathlib

from golden import cases, logit_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitkd_jax.distill import losses

# Ours are float32, theirs float64.
VALUE_RTOL = 1e-5
GRADIENT_RTOL = 1e-5


@pytest.fixture(scope="module")
def golden():
  path = pathlib.Path(__file__).parent / "golden" / "logits.npz"
  with np.load(path) as arrays:
    return dict(arrays)


def test_every_case_is_stored(golden):
  names = {key.rpartition("/")[0] for key in golden}
  assert names == set(logit_cases.CASES)


def loss_of(name, labels, options):
  """A case's loss of (student, teacher or weak logits, target) -> [B]."""
  name, _, term = name.partition("/")
  loss = functools.partial(getattr(losses, name), **options)
  if term:
    return lambda *arguments: loss(*arguments)[term]
  if labels is None:
    return lambda student, teacher, _: loss(student, teacher)
  return loss


@functools.cache
def compiled(name, labels, options):
  """(gradients of the mean, values, values of each row as a batch)."""
  loss = loss_of(name, labels, dict(options))

  @jax.jit
  def run(student, teacher, target):
    def mean(student, teacher):
      value = loss(student, teacher, target)
      return jnp.mean(value), value

    def alone(*row):
      return loss(*(x[None] for x in row))[0]

    gradient, value = jax.grad(mean, (0, 1), has_aux=True)(student, teacher)
    return gradient, value, jax.vmap(alone)(student, teacher, target)

  return run


@pytest.mark.parametrize("name", logit_cases.CASES)
def test_equals_the_authors(golden, name):
  case = logit_cases.CASES[name]
  student, teacher, target = logit_cases.inputs(case)
  student, teacher = (np.float32(x) for x in (student, teacher))
  mixed = case.labels == "mixed"
  target = np.zeros(case.batch) if target is None else target
  target = target.astype(np.float32 if mixed else np.int32)
  run = compiled(case.loss, case.labels, tuple(case.options.items()))
  gradients, value, rows = run(student, teacher, target)
  scalar, norm, *expected = golden[f"{name}/value"]
  assert value.shape == rows.shape == (case.batch,)
  np.testing.assert_allclose(np.mean(value), scalar, rtol=VALUE_RTOL)
  # A divergence is a sum of terms of both signs: rounding is in proportion to
  # them, and counts more in a row where little is left.
  close = functools.partial(
    np.testing.assert_allclose, rtol=VALUE_RTOL, atol=VALUE_RTOL * scalar
  )
  close(rows, expected)
  if case.loss not in ("dist", "uskd/target"):  # which depend on the batch
    close(value, expected)
  weak = case.loss == "uskd/weak"
  np.testing.assert_array_equal(gradients[0 if weak else 1], 0)
  error = relative_l2(gradients[1 if weak else 0], golden[f"{name}/grad"], norm)
  assert error < GRADIENT_RTOL


def relative_l2(gradient, samples, norm):
  """As `cases.relative_l2`, for these cases' number of samples."""
  gradient = np.asarray(gradient, np.float64)
  error = np.linalg.norm(
    cases.sample(gradient, logit_cases.NUM_SAMPLES) - samples
  )
  error *= np.sqrt(gradient.size / samples.size)
  return max(error, abs(np.linalg.norm(gradient) - norm)) / norm
