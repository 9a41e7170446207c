"""Distillation and task losses: pure, one value per example, in float32.

A loss knows nothing of weights and batch means: both happen once, in the
train step. No loss sends a gradient to the teacher.
"""

import jax
import jax.numpy as jnp

REDUCTIONS = ("sum", "mean")


def _float32(*arrays):
  return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def _check_same_shape(names, first, second):
  if jnp.shape(first) != jnp.shape(second):
    raise ValueError(
      f"{names[0]} {jnp.shape(first)} and {names[1]} {jnp.shape(second)} "
      "must have the same shape"
    )


def _reduce(squared, reduction):
  """[B, ..., N, D] -> [B]: the sum, or that over N D."""
  if reduction not in REDUCTIONS:
    raise ValueError(
      f"reduction={reduction!r}: wanted one of {', '.join(REDUCTIONS)}"
    )
  total = jnp.sum(squared, axis=tuple(range(1, squared.ndim)))
  if reduction == "mean":
    total /= squared.shape[-2] * squared.shape[-1]
  return total


def mimic(
  student: jax.Array, teacher: jax.Array, *, reduction: str = "sum"
) -> jax.Array:
  """Squared distance of (aligned) token maps: ViTKD's shallow term.

  arXiv:2209.02432, equation 3, without its weight alpha.

  Args:
    student: [B, K, N, D] maps of K blocks, or [B, N, D].
    teacher: the same shape.
    reduction: "sum" over blocks, tokens and channels (the paper), or "mean":
      that sum over N D, so that a weight carries over to other widths and
      grids.

  Returns:
    [B] float32.

  Raises:
    ValueError: the shapes differ, or an unknown reduction.
  """
  _check_same_shape(("student", "teacher"), student, teacher)
  student, teacher = _float32(student, jax.lax.stop_gradient(teacher))
  return _reduce(jnp.square(student - teacher), reduction)


def generation(
  generated: jax.Array,
  teacher: jax.Array,
  mask: jax.Array,
  *,
  mask_ratio: float = 0.5,
  reduction: str = "sum",
) -> jax.Array:
  """Squared distance at the replaced tokens: ViTKD's deep term.

  arXiv:2209.02432, equation 6, without its weight beta; the division by
  lambda is the authors' code's. With `mask_ratio` 0 every token counts and
  nothing is divided.

  Args:
    generated: [B, N, D] the generator's output.
    teacher: [B, N, D].
    mask: [B, N] bool, True where the token was replaced.
    mask_ratio: lambda, in [0, 1).
    reduction: "sum" (the paper), or "mean": that over N D.

  Returns:
    [B] float32.

  Raises:
    ValueError: shapes do not fit, a ratio outside [0, 1), or an unknown
      reduction.
  """
  _check_same_shape(("generated", "teacher"), generated, teacher)
  _check_same_shape(("mask", "token grid"), mask, generated[..., 0])
  if not 0 <= mask_ratio < 1:
    raise ValueError(f"mask_ratio={mask_ratio} is not in [0, 1)")
  generated, teacher = _float32(generated, jax.lax.stop_gradient(teacher))
  squared = jnp.square(generated - teacher)
  if mask_ratio == 0:
    return _reduce(squared, reduction)
  squared = jnp.where(mask[..., None], squared, 0.0)
  return _reduce(squared, reduction) / mask_ratio


def soft_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
  """Cross-entropy with a distribution over classes.

  Args:
    logits: [B, C].
    target: [B, C] float, mixed and smoothed as it may be.

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: the shapes differ.
  """
  _check_same_shape(("logits", "target"), logits, target)
  logits, target = _float32(logits, target)
  return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  temperature: float = 1.0,
) -> jax.Array:
  """tau^2 KL(teacher || student) at temperature tau, arXiv:1503.02531.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    temperature: tau > 0, divides both.

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: the shapes differ, or a temperature that is not positive.
  """
  _check_logits(student_logits, teacher_logits, temperature)
  student, teacher = _float32(
    student_logits, jax.lax.stop_gradient(teacher_logits)
  )
  log_p = jax.nn.log_softmax(student / temperature)
  log_q = jax.nn.log_softmax(teacher / temperature)
  return temperature**2 * jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def hard_distillation(
  student_logits: jax.Array, teacher_logits: jax.Array
) -> jax.Array:
  """Cross-entropy with the teacher's decision, arXiv:2012.12877 section 4.

  Args:
    student_logits: [B, C], of the distillation token where there is one.
    teacher_logits: [B, C].

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: the shapes differ.
  """
  _check_same_shape(
    ("student_logits", "teacher_logits"), student_logits, teacher_logits
  )
  (student,) = _float32(student_logits)
  decision = jnp.argmax(teacher_logits, axis=-1)[..., None]
  log_p = jax.nn.log_softmax(student)
  return -jnp.take_along_axis(log_p, decision, axis=-1)[..., 0]


def nkd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  target: jax.Array,
  *,
  temperature: float = 1.0,
  gamma: float = 1.0,
) -> jax.Array:
  """Normalised knowledge distillation, arXiv:2303.13005 equation 6.

  With p, q the softmaxes of student and teacher, y the target class and p~,
  q~ the softmaxes over the C - 1 other classes at temperature tau:
  `-q_y log p_y - gamma tau^2 sum_(i != y) q~_i log p~_i`.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    target: int [B], or float [B, C], of which the arg max is the target.
    temperature: tau > 0, of the second term alone.
    gamma: weight of the second term; 1 in ViTKD's configs (the reference's
      class default is 1.5).

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: shapes do not fit, fewer than 3 classes, a temperature that
      is not positive, or a float target without classes.
  """
  _check_logits(student_logits, teacher_logits, temperature)
  classes = student_logits.shape[-1]
  if classes < 3:
    raise ValueError(
      f"nkd needs at least 3 classes, got {classes}: over the one class that "
      "is not the target its softmax is constant; use kl instead"
    )
  target = jnp.asarray(target)
  if jnp.issubdtype(target.dtype, jnp.floating):
    _check_same_shape(("target", "student_logits"), target, student_logits)
    target = jnp.argmax(target, axis=-1)
  _check_same_shape(("target", "batch"), target, student_logits[..., 0])
  student, teacher = _float32(
    student_logits, jax.lax.stop_gradient(teacher_logits)
  )
  target = target[..., None]
  log_p = jnp.take_along_axis(jax.nn.log_softmax(student), target, axis=-1)
  q = jnp.take_along_axis(jax.nn.softmax(teacher), target, axis=-1)
  target_term = -(q * log_p)[..., 0]

  others = jnp.arange(classes) != target  # [B, C]
  log_p = _log_softmax_over(student / temperature, others)
  log_q = _log_softmax_over(teacher / temperature, others)
  other_term = -jnp.sum(jnp.exp(log_q) * log_p, axis=-1)  # 0 at the target
  return target_term + gamma * temperature**2 * other_term


def _log_softmax_over(logits, where):
  """Log-softmax over the classes where True; 0 at the others, and no NaN."""
  # At a class left out logits - total may be far above 0 and its exponential
  # overflow, whose gradient is NaN even where the value is not used.
  total = jax.nn.logsumexp(logits, axis=-1, keepdims=True, where=where)
  return jnp.where(where, logits, total) - total


def _check_logits(student_logits, teacher_logits, temperature):
  _check_same_shape(
    ("student_logits", "teacher_logits"), student_logits, teacher_logits
  )
  if not temperature > 0:
    raise ValueError(f"temperature={temperature} is not positive")
