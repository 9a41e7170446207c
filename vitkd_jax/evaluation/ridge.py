"""Linear classifiers by regularised least squares, in closed form.

As big_vision's few-shot evaluation (`evaluators/fewshot_lsr.py`): whitened
features with a large constant one, targets of -1 and 1. It computes here in
float64 on the host.
"""

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np
import scipy.sparse

# The constant feature, so large that the bias is hardly regularised.
_BIAS = 100.0
# Added to the standard deviation of a feature.
_EPSILON = 1e-5
# Rows that are in float64 at a time.
_ROWS = 2**14


@dataclasses.dataclass(frozen=True)
class Linear:
  """A linear classifier of features.

  Attributes:
    kernel: [D, C] float32.
    bias: [C] float32.
  """

  kernel: np.ndarray
  bias: np.ndarray

  def top1(self, x: np.ndarray, label: np.ndarray) -> float:
    """The share of features whose highest score is that of the label.

    Args:
      x: [N, D] float32.
      label: [N] int32.
    """
    right = sum(
      int(np.sum(np.argmax(x[rows] @ self.kernel + self.bias, 1) == own))
      for rows, own in ((rows, label[rows]) for rows in blocks(len(x)))
    )
    return right / len(x)


def blocks(number: int) -> Iterator[slice]:
  """Slices that cover a number of rows, some at a time.

  Args:
    number: of rows.
  """
  for start in range(0, number, _ROWS):
    yield slice(start, start + _ROWS)


def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each feature, for whitening.

  Args:
    x: [N, D] float32.

  Returns:
    Two arrays [D] float64; the second is > 0.
  """
  mean = np.asarray(np.mean(x, axis=0, dtype=np.float64))
  variance = np.zeros_like(mean)
  for rows in blocks(len(x)):
    variance += np.sum(np.square(x[rows] - mean), axis=0)
  return mean, np.sqrt(variance / len(x)) + _EPSILON


def fit(
  x: np.ndarray, label: np.ndarray, num_classes: int, strengths: Sequence[float]
) -> list[Linear]:
  """The classifier for each strength of the regularisation.

  Args:
    x: [N, D] float32, features of the training images.
    label: [N] int32.
    num_classes: C.
    strengths: factors of the squared norm, > 0; the squared errors of all
      images are summed, not averaged.
  """
  mean, std = statistics(x)
  number, width = len(x), x.shape[1] + 1

  def whitened(rows: slice) -> np.ndarray:
    scaled = (x[rows] - mean) / std
    return np.pad(scaled, ((0, 0), (0, 1)), constant_values=_BIAS)

  if number >= width:
    gram, target = np.zeros((width, width)), np.zeros((width, num_classes))
    for rows in blocks(number):
      part = whitened(rows)
      gram += part.T @ part
      # X^T Y with Y of -1 and 1: only one entry of a row is 1.
      of_class = _one_hot(label[rows], num_classes).T @ part
      target += 2 * of_class.T - part.sum(0)[:, None]
    values, vectors = np.linalg.eigh(gram)
    left, right = vectors, vectors.T @ target
  else:
    whole = whitened(slice(None))
    values, vectors = np.linalg.eigh(whole @ whole.T)
    target = 2 * _one_hot(label, num_classes).toarray() - 1
    left, right = whole.T @ vectors, vectors.T @ target
  # Rounding may leave values below 0.
  values = np.maximum(values, 0.0)
  return [
    _unwhitened((left / (values + strength)) @ right, mean, std)
    for strength in strengths
  ]


def _one_hot(label: np.ndarray, num_classes: int) -> scipy.sparse.csr_matrix:
  number = len(label)
  return scipy.sparse.csr_matrix(
    (np.ones(number), label, np.arange(number + 1)), (number, num_classes)
  )


def _unwhitened(
  weights: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> Linear:
  """The same classifier for the features as they are."""
  return unwhitened(weights[:-1], weights[-1] * _BIAS, mean, std)


def unwhitened(
  kernel: np.ndarray, bias: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> Linear:
  """The classifier of features that one of whitened features stands for.

  Args:
    kernel: [D, C], of whitened features.
    bias: [C].
    mean: [D], from `statistics`.
    std: [D].
  """
  kernel = kernel / std[:, None]
  bias = bias - mean @ kernel
  return Linear(kernel.astype(np.float32), bias.astype(np.float32))
