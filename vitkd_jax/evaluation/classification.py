"""Top-1, top-5, loss and confusions of a classifier."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax import check
from vitkd_jax.evaluation import contract

# Classes up to which the confusion matrix is held, and confusions kept beyond.
DENSE, MOST = 2000, 10_000


@dataclasses.dataclass(frozen=True)
class Classification:
  """Evaluator of a model's accuracy and loss.

  Attributes:
    classes: indices of the classes to score; None for all.
    class_names: C names, for the results by class and the confusions; None for
      neither.
    label_sets: whether batches have "labels".
    room: rows of all batches together, padding included; read only beyond
      `DENSE` class names.
    model: name of the model among all.
  """

  classes: Sequence[int] | None = None
  class_names: Sequence[str] | None = None
  label_sets: bool = False
  room: int = 0
  model: str = "student"

  @property
  def _dense(self) -> bool:
    """Whether the confusion matrix is held, and not every image's classes."""
    return self.class_names is None or len(self.class_names) <= DENSE

  def init(self) -> contract.Sums:
    """The sums before the first batch: zeros.

    The confusion matrix is [C, C] int32, [true, predicted]. Beyond `DENSE`
    classes, "pairs" [room, 2] int32 has both of each image, -1 without any, and
    "seen" is the number of its rows that are filled.
    """
    whole = jnp.zeros((), jnp.int32)
    sums = {name: whole for name in ("top1", "top5", "count")}
    sums["nll"] = jnp.zeros((), jnp.float32)
    if not self._dense:
      check.integers(1, room=self.room)
      sums["pairs"] = jnp.full((self.room, 2), -1, jnp.int32)
      sums["seen"] = whole
    elif self.class_names is not None:
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
    """The sums after one more batch; see `contract.Evaluator.update`.

    Args:
      sums: of the batches before.
      logits: [B, C] float32 by model.
      batch: labels and weights of the same examples.
    """
    label, labels = batch["label"], batch.get("labels")
    weight = counted(batch)
    own = logits[self.model]
    scored = among(self.classes, own)
    new, placed = _measure(scored, label, labels, weight), {}
    if labels is not None:
      left_out = (batch["weight"] > 0) & ~jnp.any(labels, -1)
      new["unlabelled"] = jnp.sum(left_out, dtype=jnp.int32)
    if self.classes is not None:
      over_all = _measure(own, label, labels, weight)
      new |= {f"{name}_all": over_all[name] for name in ("top1", "top5")}
    if self.class_names is not None:
      guess = jnp.argmax(scored, -1)
      right = is_right(guess, label, labels)
      if labels is not None:  # the label if it is right, else the first right
        kept = is_right(label, label, labels)
        label = jnp.where(kept, label, jnp.argmax(labels, -1))
      # A right guess counts for that class, whichever right class it is.
      taken = jnp.where(right, label, guess)
      if not self._dense:
        pairs = jnp.where(weight[:, None] > 0, jnp.stack([label, taken], 1), -1)
        placed = {
          "pairs": jax.lax.dynamic_update_slice(
            sums["pairs"], pairs, (sums["seen"], 0)
          ),
          "seen": sums["seen"] + len(label),
        }
      else:
        zeros = jnp.zeros_like(sums["confusion"])
        new["confusion"] = zeros.at[label, taken].add(
          (weight > 0).astype(jnp.int32)
        )
    return {k: sums[k] + value for k, value in new.items()} | placed

  def compute(self, sums: Mapping[str, Any]) -> dict[str, Any]:
    """The results.

    Args:
      sums: on the host.

    Returns:
      count, top1, top5 and loss (nats). If only some classes are scored,
      top1_all and top5_all over all classes. If images have several labels,
      unlabelled, the number of images without one. With class names: classes,
      a dict of name, count and accuracy (None without images) per class, and
      confusion, lists `[true][predicted]`. Beyond `DENSE` classes, in its
      place: confusions, the [true, predicted, count] of the most frequent, at
      most `MOST`, distinct_confusions, how many there are, and of each class
      confused_with, its own most frequent [predicted, count] or None.

    Raises:
      ValueError: no image was counted.
    """
    count = contract.count(sums)
    shares = [name for name in sums if name.startswith("top")]
    found: dict[str, Any] = {"count": count}
    found |= {name: int(sums[name]) / count for name in shares}
    found["loss"] = float(sums["nll"]) / count
    if "unlabelled" in sums:
      found["unlabelled"] = int(sums["unlabelled"])
    if not self._dense:
      pairs = np.asarray(sums["pairs"])
      assert sums["seen"] <= len(pairs)  # else the last batches overlap
      found |= self._by_class(pairs)
    elif self.class_names is not None:
      confusion = np.asarray(sums["confusion"])
      found["classes"] = self._classes(confusion.sum(1), np.diag(confusion))
      found["confusion"] = confusion.tolist()
    return found

  def _classes(
    self, counts: np.ndarray, right: np.ndarray
  ) -> list[dict[str, Any]]:
    assert self.class_names is not None
    return [
      {"name": name, "count": count, "accuracy": r / count if count else None}
      for name, count, r in zip(
        self.class_names, counts.tolist(), right.tolist(), strict=True
      )
    ]

  def _by_class(self, pairs: np.ndarray) -> dict[str, Any]:
    assert self.class_names is not None
    number = len(self.class_names)
    true, taken = pairs[pairs[:, 0] >= 0].astype(np.int64).T
    counts = np.bincount(true, minlength=number)
    right = np.bincount(true[true == taken], minlength=number)
    wrong = true != taken
    # One number for both classes, which does not fit into 32 bits.
    both, often = np.unique(
      true[wrong] * number + taken[wrong], return_counts=True
    )
    order = np.argsort(-often, kind="stable")
    rows = np.stack([both // number, both % number, often], 1)[order]
    classes = self._classes(counts, right)
    for each in classes:
      each["confused_with"] = None
    for index in np.unique(rows[:, 0], return_index=True)[1]:
      of, *most = rows[index].tolist()
      classes[of]["confused_with"] = most
    return {
      "distinct_confusions": len(rows),
      "classes": classes,
      "confusions": rows[:MOST].tolist(),
    }


def counted(batch: contract.Batch) -> jax.Array:
  """The weights of a batch, 0 for padding and for images without a label.

  Args:
    batch: see `contract.Evaluator`.

  Returns:
    [B] float32.
  """
  if "labels" not in batch:
    return batch["weight"]
  return jnp.where(jnp.any(batch["labels"], -1), batch["weight"], 0.0)


def among(classes: Sequence[int] | None, logits: jax.Array) -> jax.Array:
  """Logits with minus infinity for all but some classes.

  Args:
    classes: indices of the classes to keep; None for all.
    logits: [B, C] float32.

  Returns:
    [B, C] float32.
  """
  if classes is None:
    return logits
  chosen = np.isin(np.arange(logits.shape[-1]), classes)
  return jnp.where(chosen, logits, -jnp.inf)


def is_right(
  guess: jax.Array, label: jax.Array, labels: jax.Array | None
) -> jax.Array:
  """Whether each guess is the label, or one of the labels.

  Args:
    guess: [B] int32.
    label: [B] int32.
    labels: [B, C] bool; None if each image has one label.

  Returns:
    [B] bool.
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
    label: [B] int32.
    weight: [B], 0 for padding.

  Returns:
    "top1", "top5" and "count", int32, which is exact for any batch and mesh,
    and "nll", float32, in nats.
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
  """`measure`, for images with several right labels too.

  The most likely right label is ranked; "nll" is that of their summed
  probability.
  """
  if labels is None:
    return measure(logits, label, weight)
  # Always a right label, even if its logit is NaN.
  least = float(jnp.finfo(jnp.float32).min)
  ranked = jnp.nan_to_num(logits, nan=least, neginf=least)
  best = jnp.argmax(jnp.where(labels, ranked, -jnp.inf), -1)
  found = measure(logits, best, weight)
  logs = jnp.where(labels, jax.nn.log_softmax(logits), -jnp.inf)
  nll = -jax.nn.logsumexp(logs, -1)
  return found | {"nll": jnp.sum(jnp.where(weight > 0, nll, 0.0))}
