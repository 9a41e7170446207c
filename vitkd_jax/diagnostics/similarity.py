"""Centred kernel alignment of the maps of two models, without bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

KERNELS = ("linear", "rbf")
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
# Width of the RBF kernel, in medians of the distances (arXiv:1905.00414 uses
# 0.2 to 0.8).
_RBF_WIDTH = 0.5


def kernel(features: jax.Array, kind: str = "linear") -> jax.Array:
  """The kernel matrix of a batch of examples.

  Args:
    features: [..., n, D], one row an example.
    kind: of `KERNELS`; "rbf" has a width of half the median distance.

  Returns:
    [..., n, n] float32.
  """
  x = jnp.asarray(features, jnp.float32)
  # Without the mean the numbers are small; the alignment does not depend on it.
  x = x - jnp.mean(x, axis=-2, keepdims=True)
  gram = _einsum("...nd,...md->...nm", x, x)
  if kind == "linear":
    return gram
  squares = jnp.diagonal(gram, axis1=-2, axis2=-1)
  distances = squares[..., :, None] + squares[..., None, :] - 2 * gram
  distances = jnp.maximum(distances, 0.0)
  n = distances.shape[-1]
  others = distances[..., ~np.eye(n, dtype=bool)]
  median = jnp.median(others, axis=-1)[..., None, None]
  return jnp.exp(-distances / (2 * _RBF_WIDTH**2 * median))


def hsic(k: jax.Array, l: jax.Array) -> jax.Array:  # noqa: E741
  """The Hilbert-Schmidt independence criterion, without bias.

  L. Song and others, Feature selection via dependence maximization, 2012,
  equation 5, for every kernel of one model with every kernel of another:

  `(tr(K' L') + 1'K'1 1'L'1 / ((n - 1)(n - 2)) - 2 1'K'L'1 / (n - 2))
  / (n (n - 3))` with K' and L' the kernels with a zero diagonal.

  Its mean over minibatches is without bias, too, so that a whole dataset's
  takes the memory of a batch (arXiv:2010.15327).

  Args:
    k: [I, n, n], n >= 4.
    l: [J, n, n].

  Returns:
    [I, J].
  """
  n = k.shape[-1]
  off = 1.0 - jnp.eye(n, dtype=k.dtype)
  k, l = k * off, l * off  # noqa: E741
  rows_k, rows_l = jnp.sum(k, axis=-1), jnp.sum(l, axis=-1)
  trace = _einsum("inm,jnm->ij", k, l)
  sums = jnp.outer(jnp.sum(rows_k, axis=-1), jnp.sum(rows_l, axis=-1))
  crossed = _einsum("in,jn->ij", rows_k, rows_l)
  total = trace + sums / ((n - 1) * (n - 2)) - 2 * crossed / (n - 2)
  return total / (n * (n - 3))


def own_hsic(k: jax.Array) -> jax.Array:
  """`hsic` of each kernel with itself, [I].

  Args:
    k: [I, n, n].
  """
  return jnp.concatenate([jnp.ravel(hsic(x[None], x[None])) for x in k])


def cka(
  crossed: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
  """Alignment from sums of `hsic` over minibatches (arXiv:1905.00414).

  Args:
    crossed: [I, J], of the maps of both models.
    first: [I], of the first's maps with themselves.
    second: [J], of the second's.

  Returns:
    [I, J], at most 1, and about 0 for independent maps; 0 for a constant map.
  """
  scale = np.sqrt(np.maximum(np.outer(first, second), 0.0))
  return np.where(scale > 0, crossed / np.where(scale > 0, scale, 1.0), 0.0)


def pairs(depth: int, teacher_depth: int) -> list[tuple[int, int]]:
  """For each block of a teacher the student's at the same relative depth.

  Args:
    depth: blocks of the student.
    teacher_depth: blocks of the teacher.

  Returns:
    (block of the student, block of the teacher), by the latter.
  """
  return [
    (max(round((block + 1) / teacher_depth * depth), 1) - 1, block)
    for block in range(teacher_depth)
  ]
