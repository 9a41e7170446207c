"""The contract of an evaluator."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

Sums = dict[str, jax.Array]
# By model: "student" and, where one is compared with, "teacher".
Logits = Mapping[str, jax.Array]
Batch = Mapping[str, jax.Array]


class Evaluator(Protocol):
  """Turns the logits of all images of a split into numbers.

  A batch has "label" int32 [B], "weight" float32 [B], 0 for padding, and
  perhaps "labels" bool [B, C]: then any of these is right, and an image without
  one is left out.
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
    """The results, ready for JSON, of sums on the host.

    Raises:
      ValueError: no image was counted.
    """
    ...
