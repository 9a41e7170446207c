"""How far a student and its teacher agree."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vitkd_jax.distill import losses
from vitkd_jax.evaluation import classification, contract


@dataclasses.dataclass(frozen=True)
class Agreement:
  """The student beside its teacher; an evaluator, see `contract`.

  Attributes:
    classes: whose logits are compared; None for all.
  """

  classes: Sequence[int] | None = None

  def init(self) -> contract.Sums:
    """Zeros."""
    whole = jnp.zeros((), jnp.int32)
    names = ("agree", "teacher_top1", "count")
    return dict.fromkeys(names, whole) | {"kl": jnp.zeros((), jnp.float32)}

  def update(
    self, sums: contract.Sums, logits: contract.Logits, batch: contract.Batch
  ) -> contract.Sums:
    """Adds a batch; see `contract.Evaluator.update`."""
    student, teacher = logits["student"], logits["teacher"]
    included = classification.counted(batch) > 0
    guess, choice = (
      jnp.argmax(classification.among(self.classes, x), -1)
      for x in (student, teacher)
    )
    right = classification.is_right(choice, batch["label"], batch.get("labels"))
    chosen = slice(None) if self.classes is None else jnp.array(self.classes)
    kl = losses.kl(student[:, chosen], teacher[:, chosen])
    number = included.astype(jnp.int32)
    new = {
      "agree": jnp.sum(number * (guess == choice)),
      "teacher_top1": jnp.sum(number * right),
      "count": jnp.sum(number),
      "kl": jnp.sum(jnp.where(included, kl, 0.0)),
    }
    return jax.tree.map(jnp.add, sums, new)

  def compute(self, sums: Mapping[str, Any]) -> dict[str, Any]:
    """agreement, teacher_top1, and kl (nats, of teacher to student)."""
    count = int(sums["count"])
    if not count:
      raise ValueError("the split is empty, or none of its images has a label")
    return {
      "agreement": int(sums["agree"]) / count,
      "kl": float(sums["kl"]) / count,
      "teacher_top1": int(sums["teacher_top1"]) / count,
    }
