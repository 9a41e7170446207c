"""Top-1, top-5 and the loss of a classifier, and what it confuses."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.evaluation import contract


@dataclasses.dataclass(frozen=True)
class Classification:
  """How often the student is right; an evaluator, see `contract`.

  Attributes:
    classes: whose logits are scored; None for all.
    class_names: of length C, for the results by class and the confusion
      matrix; None leaves both out.
    label_sets: batches have "labels".
  """

  classes: Sequence[int] | None = None
  class_names: Sequence[str] | None = None
  label_sets: bool = False

  def init(self) -> contract.Sums:
    """Zeros; the confusion matrix is int32 [true, predicted]."""
    whole = jnp.zeros((), jnp.int32)
    sums = {name: whole for name in ("top1", "top5", "count")}
    sums["nll"] = jnp.zeros((), jnp.float32)
    if self.class_names is not None:
      number = len(self.class_names)
      sums["confusion"] = jnp.zeros((number, number), jnp.int32)
    if self.classes is not None:
      sums |= {"top1_all": whole, "top5_all": whole}
    if self.label_sets:
      sums["unlabelled"] = whole
    return sums

  def update(
    self, sums: contract.Sums, logits: contract.Logits, batch: contract.Batch
  ) -> contract.Sums:
    """Adds a batch; see `contract.Evaluator.update`."""
    label, labels = batch["label"], batch.get("labels")
    weight = counted(batch)
    scored = among(self.classes, logits["student"])
    new = _measure(scored, label, labels, weight)
    if labels is not None:
      left_out = (batch["weight"] > 0) & ~jnp.any(labels, -1)
      new["unlabelled"] = jnp.sum(left_out, dtype=jnp.int32)
    if self.classes is not None:
      over_all = _measure(logits["student"], label, labels, weight)
      new |= {f"{name}_all": over_all[name] for name in ("top1", "top5")}
    if self.class_names is not None:
      guess = jnp.argmax(scored, -1)
      right = is_right(guess, label, labels)
      if labels is not None:  # the label, if it is one of them, else the first
        own = is_right(label, label, labels)
        label = jnp.where(own, label, jnp.argmax(labels, -1))
      # A right guess counts for that class, whichever of an image's it is.
      taken = jnp.where(right, label, guess)
      zeros = jnp.zeros_like(sums["confusion"])
      new["confusion"] = zeros.at[label, taken].add(
        (weight > 0).astype(jnp.int32)
      )
    return jax.tree.map(jnp.add, sums, new)

  def compute(self, sums: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation.

    Args:
      sums: on the host.

    Returns:
      count, top1, top5 and loss (nats); where some classes are scored, top1_all
      and top5_all over all of them; where images have several labels,
      unlabelled, how many have none; with class names classes, per class its
      name, count and accuracy (None without images), and confusion as lists
      [true][predicted].

    Raises:
      ValueError: no image was counted.
    """
    count = int(sums["count"])
    if not count:
      raise ValueError("the split is empty, or none of its images has a label")
    shares = [name for name in sums if name.startswith("top")]
    found = {"count": count}
    found |= {name: int(sums[name]) / count for name in shares}
    found["loss"] = float(sums["nll"]) / count
    if "unlabelled" in sums:
      found["unlabelled"] = int(sums["unlabelled"])
    if self.class_names is not None:
      confusion = np.asarray(sums["confusion"])
      found["classes"] = [
        {
          "name": name,
          "count": int(row.sum()),
          "accuracy": int(row[i]) / int(row.sum()) if row.sum() else None,
        }
        for i, (name, row) in enumerate(
          zip(self.class_names, confusion, strict=True)
        )
      ]
      found["confusion"] = confusion.tolist()
    return found


def counted(batch: contract.Batch) -> jax.Array:
  """[B] float32: 0 for padding, and for an image without a label."""
  if "labels" not in batch:
    return batch["weight"]
  return jnp.where(jnp.any(batch["labels"], -1), batch["weight"], 0.0)


def among(classes: Sequence[int] | None, logits: jax.Array) -> jax.Array:
  """`logits` [B, C], minus infinity where a class is not one of `classes`."""
  if classes is None:
    return logits
  chosen = np.isin(np.arange(logits.shape[-1]), classes)
  return jnp.where(chosen, logits, -jnp.inf)


def is_right(
  guess: jax.Array, label: jax.Array, labels: jax.Array | None
) -> jax.Array:
  """bool [B]: whether a class is the label, or one of the labels.

  Args:
    guess: int32 [B].
    label: int32 [B].
    labels: bool [B, C], or None where each image has one label.
  """
  if labels is None:
    return guess == label
  return jnp.take_along_axis(labels, guess[:, None], -1)[:, 0]


def measure(
  logits: jax.Array, label: jax.Array, weight: jax.Array
) -> contract.Sums:
  """What a batch adds to the sums of an evaluation.

  Args:
    logits: [B, C]. Equal ones rank by class, as in arg max; NaN ranks last.
    label: int32 [B].
    weight: [B], 0 for padding.

  Returns:
    "top1", "top5" and "count", int32 and so exact for any batch and mesh, and
    "nll", float32, nats.
  """
  logits, label = jnp.float32(logits), label[:, None]
  included = (weight > 0).astype(jnp.int32)
  own = jnp.take_along_axis(logits, label, axis=-1)
  earlier = jnp.arange(logits.shape[-1]) < label
  # Written so that NaN ranks last.
  rank = jnp.sum(~(logits <= own) | ((logits == own) & earlier), axis=-1)
  nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), label, axis=-1)
  return {
    "top1": jnp.sum(included * (rank < 1)),
    "top5": jnp.sum(included * (rank < 5)),
    "nll": jnp.sum(jnp.where(weight > 0, nll[:, 0], 0.0)),
    "count": jnp.sum(included),
  }


def _measure(logits, label, labels, weight):
  """`measure`; of several right labels, the most likely counts.

  Their probabilities add up in "nll".
  """
  if labels is None:
    return measure(logits, label, weight)
  # Never one that is not right, be the others' logits NaN.
  least = float(jnp.finfo(jnp.float32).min)
  ranked = jnp.nan_to_num(logits, nan=least, neginf=least)
  best = jnp.argmax(jnp.where(labels, ranked, -jnp.inf), -1)
  found = measure(logits, best, weight)
  logs = jnp.where(labels, jax.nn.log_softmax(logits), -jnp.inf)
  nll = -jax.nn.logsumexp(logs, -1)
  return found | {"nll": jnp.sum(jnp.where(weight > 0, nll, 0.0))}
