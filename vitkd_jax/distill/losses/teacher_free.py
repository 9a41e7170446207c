"""Distillation without a teacher: soft labels made of the student's outputs."""

import jax
import jax.numpy as jnp

from vitkd_jax.distill.losses import arrays, classes
from vitkd_jax.distill.losses.logits import soft_cross_entropy

SMOOTHING = 0.1  # of the weak logits' target, in the authors' code


def uskd(
  student_logits: jax.Array,
  weak_logits: jax.Array,
  target: jax.Array,
  *,
  group: int | None = None,
) -> dict[str, jax.Array]:
  """The three terms of universal self-knowledge distillation, arXiv:2303.13005.

  With p, w the softmaxes of student and weak logits, l an example's labels (its
  one or two classes of largest positive target v) and sg a stop-gradient:

  - target: `-sum_l sg(p_l^2 + v_l - mean_b p_l^2) log p_l`, the mean over the
    batch for first and second labels apart.
  - non_target: `-sum_(i not in l) sg(z_i) log p~_i`, p~ the softmax over the
    classes that are not labels, z_i proportional to 1 / rank_i among all
    classes by `w_i / (1 - sum_l w_l + 1e-6) + log p_i / (1 - sum_l log p_l +
    1e-6)`. (The paper has p where the authors' code has log p.)
  - weak: `-sum_i (0.9 v_i + 0.1 / C) log w_i`.

  The paper's total is `target + 0.1 non_target + mu weak`, mu 0.005 for
  DeiT-Ti. The authors leave a class without target out of `non_target`, one of
  those that tie for second, where an example of a float target has a single
  label; here it counts like an integer label.

  Args:
    student_logits: [B, C].
    weak_logits: [B, C], of a linear layer on the class token of an early block.
    target: int [B], or float [B, C], mixed but not smoothed.
    group: number of consecutive examples that `mean_b` is over, which divides
      B; None for the whole batch.

  Returns:
    {"target", "non_target", "weak"}: [B] float32 each, nats. The last alone has
    a gradient to `weak_logits`, and none to `student_logits`.

  Raises:
    ValueError: shapes disagree, there are fewer than 3 classes (4 for a float
      target), or `group` does not divide the batch.
  """
  arrays.check_same_shape(
    ("student_logits", "weak_logits"), student_logits, weak_logits
  )
  batch, num_classes = student_logits.shape
  size = arrays.group_size(batch, group)
  target = jax.lax.stop_gradient(jnp.asarray(target))
  num_labels = 2 if jnp.issubdtype(target.dtype, jnp.floating) else 1
  classes.check_num_classes(
    "uskd",
    student_logits,
    num_labels + 2,
    "its softmax over a single non-target class is constant; train without it",
  )
  hard = classes.target_class(target, student_logits)
  if num_labels == 1:
    target = jax.nn.one_hot(hard, num_classes)
  student, weak, target = arrays.float32(student_logits, weak_logits, target)
  label = _largest(target, num_labels)
  value = jnp.take_along_axis(target, label, axis=-1)
  # Mixup of two images of one class has a single label.
  present = value > 0
  log_p = jax.nn.log_softmax(student)
  log_p_label = jnp.take_along_axis(log_p, label, axis=-1)
  return {
    "target": _target_term(log_p_label, value, present, size),
    "non_target": _non_target_term(student, weak, label, present),
    "weak": soft_cross_entropy(
      weak, (1 - SMOOTHING) * target + SMOOTHING / num_classes
    ),
  }


def _largest(target: jax.Array, count: int) -> jax.Array:
  """[B, count] int: the classes of the largest values, in their order."""
  # Not `jax.lax.top_k`, which would gather the examples of all devices.
  found = []
  for _ in range(count):
    found.append(jnp.argmax(target, axis=-1, keepdims=True))
    is_found = jnp.arange(target.shape[-1]) == found[-1]
    target = jnp.where(is_found, -jnp.inf, target)
  return jnp.concatenate(found, axis=-1)


def _target_term(
  log_p: jax.Array, value: jax.Array, present: jax.Array, size: int
) -> jax.Array:
  """[B], from log p, value and presence [B, labels] of the labels."""
  squared = jnp.where(present, jnp.exp(2 * log_p), 0.0)
  means = jnp.mean(squared.reshape(-1, size, log_p.shape[-1]), axis=1)
  soft = squared + value - arrays.of_each_example(means, size)
  soft = jax.lax.stop_gradient(jnp.where(present, soft, 0.0))
  return -jnp.sum(soft * log_p, axis=-1)


def _non_target_term(
  student: jax.Array, weak: jax.Array, label: jax.Array, present: jax.Array
) -> jax.Array:
  """[B], from both logits [B, C] and the labels [B, labels]."""
  at_label = jnp.arange(student.shape[-1]) == label[..., None]
  others = ~jnp.any(at_label & present[..., None], axis=1)  # [B, C]
  log_p, w = jax.nn.log_softmax(student), jax.nn.softmax(weak)
  # 1 - sum_l w_l is the sum over the others, which does not round to 0.
  score = w / (jnp.sum(w, axis=-1, keepdims=True, where=others) + 1e-6)
  score += log_p / (
    1 - jnp.sum(log_p, axis=-1, keepdims=True, where=~others) + 1e-6
  )
  # Integers, hence without a gradient.
  rank = jnp.argsort(jnp.argsort(score, axis=-1, descending=True), axis=-1)
  zipf = jnp.where(others, 1 / (1.0 + rank), 0.0)
  zipf /= jnp.sum(zipf, axis=-1, keepdims=True)
  return -jnp.sum(zipf * classes.log_softmax_over(student, others), axis=-1)
