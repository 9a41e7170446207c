"""Losses between logits: pure, one value per example, in float32."""

import jax
import jax.numpy as jnp

from vitkd_jax.distill.losses import arrays

# The published settings of NKD in ViTKD's configs. Every default below and in a
# training's config is one of these.
TEMPERATURE = 1.0
GAMMA = 1.0


def soft_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
  """Cross-entropy with a distribution over classes.

  Args:
    logits: [B, C].
    target: [B, C] float, possibly mixed and smoothed.

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: the shapes differ.
  """
  arrays.check_same_shape(("logits", "target"), logits, target)
  logits, target = arrays.float32(logits, target)
  return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  temperature: float = TEMPERATURE,
) -> jax.Array:
  """tau^2 KL(teacher || student) at temperature tau, arXiv:1503.02531.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    temperature: tau > 0, divides both logits.

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: the shapes differ, or the temperature is not positive.
  """
  _check_logits(student_logits, teacher_logits, temperature)
  student, teacher = arrays.float32(
    student_logits, jax.lax.stop_gradient(teacher_logits)
  )
  log_p = jax.nn.log_softmax(student / temperature)
  log_q = jax.nn.log_softmax(teacher / temperature)
  return temperature**2 * jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def hard_distillation(
  student_logits: jax.Array, teacher_logits: jax.Array
) -> jax.Array:
  """Cross-entropy with the teacher's decision, arXiv:2012.12877, section 4.

  Args:
    student_logits: [B, C], those of the distillation token if there is one.
    teacher_logits: [B, C].

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: the shapes differ.
  """
  arrays.check_same_shape(
    ("student_logits", "teacher_logits"), student_logits, teacher_logits
  )
  (student,) = arrays.float32(student_logits)
  decision = jnp.argmax(teacher_logits, axis=-1)[..., None]
  log_p = jax.nn.log_softmax(student)
  return -jnp.take_along_axis(log_p, decision, axis=-1)[..., 0]


def nkd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  target: jax.Array,
  *,
  temperature: float = TEMPERATURE,
  gamma: float = GAMMA,
) -> jax.Array:
  """Normalised knowledge distillation, arXiv:2303.13005, equation 6.

  With p, q the softmaxes of student and teacher, y the target class and p~,
  q~ the softmaxes over the C - 1 other classes at temperature tau:
  `-q_y log p_y - gamma tau^2 sum_(i != y) q~_i log p~_i`.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    target: int [B], or float [B, C], whose arg max is the target class.
    temperature: tau > 0, applied to the second term alone.
    gamma: weight of the second term; 1 in ViTKD's configs (the reference's
      class default is 1.5).

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: shapes disagree, there are fewer than 3 classes, or the
      temperature is not positive.
  """
  _check_logits(student_logits, teacher_logits, temperature)
  classes = student_logits.shape[-1]
  if classes < 3:
    raise ValueError(
      f"expected at least 3 classes for nkd, got {classes}: its softmax over "
      "a single non-target class is constant; use kl instead"
    )
  target = jnp.asarray(target)
  if jnp.issubdtype(target.dtype, jnp.floating):
    arrays.check_same_shape(
      ("target", "student_logits"), target, student_logits
    )
    target = jnp.argmax(target, axis=-1)
  arrays.check_same_shape(("target", "batch"), target, student_logits[..., 0])
  student, teacher = arrays.float32(
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


def _log_softmax_over(logits: jax.Array, where: jax.Array) -> jax.Array:
  """Log-softmax over the classes where True; 0 elsewhere, without NaN."""
  # At an excluded class logits - total may be far above 0, so that its
  # exponential overflows and its gradient is NaN even where it is unused.
  total = jax.nn.logsumexp(logits, axis=-1, keepdims=True, where=where)
  return jnp.where(where, logits, total) - total


def _check_logits(
  student_logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> None:
  arrays.check_same_shape(
    ("student_logits", "teacher_logits"), student_logits, teacher_logits
  )
  if not temperature > 0:
    raise ValueError(f"expected temperature > 0, got {temperature}")
