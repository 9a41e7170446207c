"""How much of a teacher's map the best linear layer makes of the student's."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np


def product(first: jax.Array, second: jax.Array) -> jax.Array:
  """Sum over images and tokens of the outer products of two maps' tokens.

  Args:
    first: [B, N, D].
    second: [B, N, E].

  Returns:
    [D, E] float32.
  """
  return jnp.einsum(
    "bnd,bne->de",
    jnp.asarray(first, jnp.float32),
    jnp.asarray(second, jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )


def covariance(
  total: np.ndarray, first: np.ndarray, second: np.ndarray, count: float
) -> np.ndarray:
  """The covariance of the tokens of two maps.

  Args:
    total: [D, E], the sum of `product` over batches.
    first: [D], the sum of the first's tokens.
    second: [E], the second's.
    count: number of tokens.
  """
  outer = np.outer(np.float64(first), np.float64(second))
  return np.float64(total) / count - outer / count**2


def covariances(
  own: Mapping[str, np.ndarray],
  crossed: np.ndarray,
  theirs: Mapping[str, np.ndarray],
  count: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Those of a student's map, of it with a teacher's, and of the teacher's.

  Args:
    own: "sum" and "product" of the student's map over all tokens.
    crossed: sum of `product` of both maps.
    theirs: as `own`, of the teacher's.
    count: number of tokens.
  """
  one, other = own["sum"], theirs["sum"]
  return (
    covariance(own["product"], one, one, count),
    covariance(crossed, one, other, count),
    covariance(theirs["product"], other, other, count),
  )


def layer(student: np.ndarray, crossed: np.ndarray) -> np.ndarray:
  """The best linear layer from the student's map to the teacher's, [D_s, D_t].

  Args:
    student: covariance [D_s, D_s].
    crossed: covariance [D_s, D_t].
  """
  # As ridge regression, so that directions that are only rounding count little.
  ridge = 1e-6 * np.trace(student) / len(student) + 1e-30
  return np.linalg.solve(student + ridge * np.eye(len(student)), crossed)


def explained(
  student: np.ndarray, crossed: np.ndarray, teacher: np.ndarray
) -> float:
  """Share of the teacher's variance that a linear layer explains, R^2.

  Args:
    student: covariance [D_s, D_s].
    crossed: covariance [D_s, D_t].
    teacher: covariance [D_t, D_t].

  Returns:
    In [0, 1]; 1 for a teacher without variance.
  """
  total = np.trace(teacher)
  if total <= 0:
    return 1.0
  solved = layer(student, crossed)
  return float(np.clip(np.sum(solved * crossed) / total, 0.0, 1.0))
