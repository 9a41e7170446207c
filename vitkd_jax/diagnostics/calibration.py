"""How far probabilities are what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Confidence against accuracy, in bins of equal width.

  Attributes:
    error: expected calibration error in [0, 1].
    counts: images of each bin, [bins].
    accuracy: of each bin; NaN for an empty one.
    confidence: mean of each bin; NaN for an empty one.
  """

  error: float
  counts: np.ndarray
  accuracy: np.ndarray
  confidence: np.ndarray


def sums(
  logits: jax.Array, label: jax.Array, weight: jax.Array, bins: int = 15
) -> jax.Array:
  """What `of` adds up, of one batch.

  Args:
    logits: [B, C].
    label: int [B].
    weight: [B], 0 for padding.
    bins: number of bins; 15 as in arXiv:1706.04599.

  Returns:
    [3, bins] float32: images, right ones, and sum of the confidences.
  """
  probabilities = jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1)
  confidence = jnp.max(probabilities, axis=-1)
  right = (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)
  # Bins are open below and closed above, as in arXiv:1706.04599.
  place = jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1)
  member = jax.nn.one_hot(place.astype(jnp.int32), bins) * weight[:, None]
  each = jnp.stack([jnp.ones_like(right), right, confidence])
  return jnp.einsum(
    "kb,bn->kn", each, member, precision=jax.lax.Precision.HIGHEST
  )


def of(total: np.ndarray) -> Calibration:
  """The calibration of a split.

  Args:
    total: the sum of `sums` over its batches.
  """
  counts, right, confidence = np.asarray(total, np.float64)
  share = np.maximum(counts, 1)
  gaps = np.abs(right - confidence) / max(counts.sum(), 1)
  empty = np.where(counts > 0, 1.0, np.nan)
  return Calibration(
    error=float(gaps.sum()),
    counts=counts.astype(np.int64),
    accuracy=right / share * empty,
    confidence=confidence / share * empty,
  )
