"""What every loss between two token maps has to keep, and maps that are hard.

`check_gradients` and `check_finite` take a loss of (student, teacher) that
gives [B]; both maps are [B, N, D], of any two widths.
"""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed, *shape):
  """Normal float64 that are float32 numbers."""
  x = np.random.default_rng(seed).standard_normal(shape)
  return x.astype(np.float32).astype(np.float64)


def check_gradients(loss, student, teacher, dtype):
  """Float32 values; gradients reach each student image and no teacher."""
  student, teacher = jnp.asarray(student, dtype), jnp.asarray(teacher, dtype)

  @jax.jit
  def run(student, teacher):
    def total(student, teacher):
      value = loss(student, teacher)
      return value.sum(), value

    return jax.grad(total, (0, 1), has_aux=True)(student, teacher)

  (to_student, to_teacher), value = run(student, teacher)
  assert value.dtype == jnp.float32
  assert value.shape == (len(student),)
  assert to_student.dtype == student.dtype
  to_student = np.asarray(to_student, np.float32)
  assert np.isfinite(to_student).all()
  assert np.any(to_student != 0, axis=tuple(range(1, student.ndim))).all()
  np.testing.assert_array_equal(np.asarray(to_teacher, np.float32), 0)
  # bfloat16 is widened before anything is computed; sums in bfloat16 would be
  # off by 1e-2.
  wide = loss(student.astype(jnp.float32), teacher.astype(jnp.float32))
  np.testing.assert_allclose(value, wide, rtol=1e-5)


def maps(student_width, teacher_width, batch=3, tokens=6):
  """{name: (student, teacher)}: maps in which a norm or a variance is 0."""
  student = normal(0, batch, tokens, student_width)
  teacher = normal(1, batch, tokens, teacher_width)
  both = student, teacher
  one = (np.arange(tokens) == 2)[:, None]
  # Not a float32 whose sums are exact: the mean of equal tokens is off by
  # rounding.
  level_s, level_t = (
    0.1 + normal(2, batch, 1, width) for width in (student_width, teacher_width)
  )
  return {
    "zero student token": (np.where(one, 0, student), teacher),
    "zero teacher token": (student, np.where(one, 0, teacher)),
    "zero token of both": tuple(np.where(one, 0, x) for x in both),
    "tiny student": (1e-30 * student, teacher),
    "zero student": (0 * student, teacher),
    "zero maps": (0 * student, 0 * teacher),
    "constant student": (level_s + 0 * student, teacher),
    "constant teacher": (student, level_t + 0 * teacher),
    "constant maps": (level_s + 0 * student, level_t + 0 * teacher),
    "one token": (student[:, :1], teacher[:, :1]),
    "one image": (student[:1], teacher[:1]),
    "one token of one image": (student[:1, :1], teacher[:1, :1]),
  }


def check_finite(loss, pairs, largest=1e3):
  """Values and gradients are finite, and of a size that training survives.

  `pairs` is {name: (student, teacher)}, of one or several shapes.
  """

  @jax.jit
  def run(student, teacher):
    value, pull = jax.vjp(lambda s: loss(s, teacher), student)
    return value, pull(jnp.ones_like(value))[0]

  for name, (student, teacher) in pairs.items():
    value, gradient = run(jnp.asarray(student, jnp.float32), teacher)
    assert np.isfinite(value).all(), name
    assert np.isfinite(gradient).all(), name
    assert np.abs(gradient).max() < largest, name
