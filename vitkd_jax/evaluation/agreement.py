"""Agreement of a student with its teacher."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vitkd_jax.distill import losses
from vitkd_jax.evaluation import classification, contract


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Evaluator of how often and how closely student and teacher agree.

  Attributes:
    classes: indices of the classes to compare; None for all.
    teacher: name of the teacher among the models.
  """

  classes: Sequence[int] | None = None
  teacher: str = "teacher"

  def init(self) -> contract.Sums:
    """The sums before the first batch: zeros."""
    whole = jnp.zeros((), jnp.int32)
    names = ("agree", "teacher_top1", "count")
    return dict.fromkeys(names, whole) | {"kl": jnp.zeros((), jnp.float32)}

  def update(
    self, sums: contract.Sums, logits: contract.Logits, batch: contract.Batch
  ) -> contract.Sums:
    """The sums after one more batch; see `contract.Evaluator.update`.

    Args:
      sums: of the batches before.
      logits: [B, C] float32 by model.
      batch: labels and weights of the same examples.
    """
    student, teacher = logits["student"], logits[self.teacher]
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
    """The results.

    Args:
      sums: on the host.

    Returns:
      agreement and teacher_top1 in [0, 1], and kl, KL(teacher, student) in
      nats, the mean over all images.

    Raises:
      ValueError: no image was counted.
    """
    count = contract.count(sums)
    return {
      "agreement": int(sums["agree"]) / count,
      "kl": float(sums["kl"]) / count,
      "teacher_top1": int(sums["teacher_top1"]) / count,
    }
