"""The contract of an evaluator."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

Sums = dict[str, jax.Array]
# By model: "student", teachers and probes by their names.
Logits = Mapping[str, jax.Array]
Batch = Mapping[str, jax.Array]


class Evaluator(Protocol):
  """Computes results from the logits of all images of a split.

  A batch has "label" [B] int32 and "weight" [B] float32, 0 for padding. It may
  have "labels" [B, C] bool: then any of these is right, and images without one
  are not counted.
  """

  def init(self) -> Sums:
    """The sums before the first batch."""
    ...

  def update(self, sums: Sums, logits: Logits, batch: Batch) -> Sums:
    """The sums after one more batch; traced under jit.

    Args:
      sums: of the batches before.
      logits: [B, C] float32 by model.
      batch: labels and weights of the same examples.
    """
    ...

  def compute(self, sums: Mapping[str, Any]) -> dict[str, Any]:
    """The results, ready for JSON.

    Args:
      sums: of all batches, on the host.

    Raises:
      ValueError: no image was counted.
    """
    ...


def count(sums: Mapping[str, Any]) -> int:
  """The number of images in sums on the host, for `Evaluator.compute`.

  Args:
    sums: with "count".

  Raises:
    ValueError: no image was counted.
  """
  found = int(sums["count"])
  if not found:
    raise ValueError("the split is empty, or none of its images has a label")
  return found
