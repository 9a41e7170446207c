"""What an evaluation counts of each batch, and the numbers that come of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.distill import losses
from vitkd_jax.training import steps

Sums = dict[str, jax.Array]


def make_step(
  student: Callable[[Any, jax.Array], jax.Array],
  teacher: Callable[[Any, jax.Array], jax.Array] | None = None,
  classes: Sequence[int] | None = None,
) -> Callable[[Sums, Any, Mapping[str, jax.Array]], Sums]:
  """The function (sums, {"student": params, "teacher": params}, batch) -> sums.

  Args:
    student: (params, image uint8 [B, H, W, 3]) -> logits [B, C] float32.
    teacher: likewise; None where none is compared with.
    classes: whose logits are scored; None for all.

  Returns:
    The step, to be jitted. `sums` comes from `zero_sums`. A batch has "image",
    "label" int32 [B], "weight" float32 [B], 0 for padding, and perhaps
    "labels" bool [B, C]: then any of these is right, and an image without one
    is left out.
  """

  def step(sums, params, batch):
    weight, label, labels = batch["weight"], batch["label"], batch.get("labels")
    whole = student(params["student"], batch["image"])
    logits = _among(classes, whole)
    new = {}
    if labels is not None:
      labelled = jnp.any(labels, -1)
      new["unlabelled"] = jnp.sum((weight > 0) & ~labelled, dtype=jnp.int32)
      weight = jnp.where(labelled, weight, 0.0)
    counted = weight > 0
    number = counted.astype(jnp.int32)
    new |= _measure(logits, label, labels, weight)
    if classes is not None:
      over_all = _measure(whole, label, labels, weight)
      new |= {f"{name}_all": over_all[name] for name in ("top1", "top5")}
    guess = jnp.argmax(logits, -1)
    right = _is_right(guess, label, labels)
    if labels is not None:  # the label, where it is one of them, else the first
      label = jnp.where(
        _is_right(label, label, labels), label, jnp.argmax(labels, -1)
      )
    # A right guess counts for that class, whichever of an image's it is.
    taken = jnp.where(right, label, guess)
    confusion = jnp.zeros_like(sums["confusion"])
    new["confusion"] = confusion.at[label, taken].add(number)
    if teacher is not None:
      taught = teacher(params["teacher"], batch["image"])
      choice = jnp.argmax(_among(classes, taught), -1)
      chosen = slice(None) if classes is None else jnp.array(classes)
      kl = losses.kl(whole[:, chosen], taught[:, chosen])
      new |= {
        "agree": jnp.sum(number * (guess == choice)),
        "teacher_top1": jnp.sum(number * _is_right(choice, label, labels)),
        "kl": jnp.sum(jnp.where(counted, kl, 0.0)),
      }
    return jax.tree.map(jnp.add, sums, new)

  return step


def _among(classes, logits):
  """`logits` [B, C], minus infinity where a class is not one of `classes`."""
  if classes is None:
    return logits
  chosen = np.isin(np.arange(logits.shape[-1]), classes)
  return jnp.where(chosen, logits, -jnp.inf)


def _measure(logits, label, labels, weight):
  """`steps.measure`; of several right labels, the most likely counts.

  Their probabilities add up in "nll".
  """
  if labels is None:
    return steps.measure(logits, label, weight)
  # Never one that is not right, be the others' logits NaN.
  least = float(jnp.finfo(jnp.float32).min)
  ranked = jnp.nan_to_num(logits, nan=least, neginf=least)
  best = jnp.argmax(jnp.where(labels, ranked, -jnp.inf), -1)
  found = steps.measure(logits, best, weight)
  logs = jnp.where(labels, jax.nn.log_softmax(logits), -jnp.inf)
  nll = -jax.nn.logsumexp(logs, -1)
  return found | {"nll": jnp.sum(jnp.where(weight > 0, nll, 0.0))}


def _is_right(guess, label, labels):
  if labels is None:
    return guess == label
  return jnp.take_along_axis(labels, guess[:, None], -1)[:, 0]


def zero_sums(
  num_classes: int,
  with_teacher: bool = False,
  *,
  with_subset: bool = False,
  label_sets: bool = False,
) -> Sums:
  """What an evaluation starts from; confusion is int32 [true, predicted]."""
  sums = steps.zero_sums()
  whole, real = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
  sums["confusion"] = jnp.zeros((num_classes, num_classes), jnp.int32)
  if with_teacher:
    sums |= {"agree": whole, "teacher_top1": whole, "kl": real}
  if with_subset:
    sums |= {"top1_all": whole, "top5_all": whole}
  if label_sets:
    sums |= {"unlabelled": whole}
  return sums


def results(sums: Mapping[str, Any], class_names) -> dict[str, Any]:
  """The numbers of an evaluation from its sums, ready for JSON.

  Args:
    sums: as `make_step` adds them up, on the host.
    class_names: of length C.

  Returns:
    count, top1, top5 and loss (nats); classes, per class its name, count and
    accuracy (None without images); confusion as lists [true][predicted]; with
    a teacher agreement, kl (nats, of teacher to student) and teacher_top1;
    where some classes are scored, top1_all and top5_all over all of them; and
    where images have several labels, unlabelled, how many have none.

  Raises:
    ValueError: no image was counted.
  """
  confusion = np.asarray(sums["confusion"])
  count = int(sums["count"])
  if not count:
    raise ValueError("the split is empty, or none of its images has a label")
  found = {"count": count, **steps.rates(sums)}
  if "kl" in sums:
    found |= {
      "agreement": int(sums["agree"]) / count,
      "kl": float(sums["kl"]) / count,
      "teacher_top1": int(sums["teacher_top1"]) / count,
    }
  if "top1_all" in sums:
    for name in ("top1_all", "top5_all"):
      found[name] = int(sums[name]) / count
  if "unlabelled" in sums:
    found["unlabelled"] = int(sums["unlabelled"])
  found["classes"] = [
    {
      "name": name,
      "count": int(row.sum()),
      "accuracy": int(row[i]) / int(row.sum()) if row.sum() else None,
    }
    for i, (name, row) in enumerate(zip(class_names, confusion, strict=True))
  ]
  found["confusion"] = confusion.tolist()
  return found
