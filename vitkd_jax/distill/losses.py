"""Distillation and task losses: pure, one value per example, in float32.

A loss knows nothing of weights and batch means: both are applied once, in the
train step. No loss sends a gradient to the teacher.
"""

import jax
import jax.numpy as jnp

REDUCTIONS = ("sum", "mean")

# The published settings: ViTKD's lambda and sums (arXiv:2209.02432), and the
# temperature and gamma of NKD in ViTKD's configs. Every default below, in
# `heads` and in a training's config is one of these.
MASK_RATIO = 0.5
REDUCTION = "sum"
TEMPERATURE = 1.0
GAMMA = 1.0


def _float32(*arrays: jax.typing.ArrayLike) -> tuple[jax.Array, ...]:
  return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def _check_same_shape(
  names: tuple[str, str],
  first: jax.typing.ArrayLike,
  second: jax.typing.ArrayLike,
) -> None:
  if jnp.shape(first) != jnp.shape(second):
    raise ValueError(
      f"expected {names[0]} and {names[1]} to have the same shape, got "
      f"{jnp.shape(first)} and {jnp.shape(second)}"
    )


def _reduce(squared: jax.Array, reduction: str) -> jax.Array:
  """[B, ..., N, D] -> [B]: the sum, or the sum divided by N D."""
  if reduction not in REDUCTIONS:
    raise ValueError(
      f"expected reduction to be one of {', '.join(REDUCTIONS)}, got "
      f"{reduction!r}"
    )
  total = jnp.sum(squared, axis=tuple(range(1, squared.ndim)))
  if reduction == "mean":
    total /= squared.shape[-2] * squared.shape[-1]
  return total


def mimic(
  student: jax.Array, teacher: jax.Array, *, reduction: str = REDUCTION
) -> jax.Array:
  """Squared distance between (aligned) token maps: ViTKD's shallow term.

  arXiv:2209.02432, equation 3, without its weight alpha.

  Args:
    student: [B, K, N, D] maps of K blocks, or [B, N, D].
    teacher: the same shape.
    reduction: "sum" over blocks, tokens and channels (the paper), or "mean",
      that sum divided by N D, so that a weight carries over to other widths
      and grids.

  Returns:
    [B] float32.

  Raises:
    ValueError: the shapes differ, or the reduction is unknown.
  """
  _check_same_shape(("student", "teacher"), student, teacher)
  student, teacher = _float32(student, jax.lax.stop_gradient(teacher))
  return _reduce(jnp.square(student - teacher), reduction)


def generation(
  generated: jax.Array,
  teacher: jax.Array,
  mask: jax.Array,
  *,
  mask_ratio: float = MASK_RATIO,
  reduction: str = REDUCTION,
) -> jax.Array:
  """Squared distance at the replaced tokens: ViTKD's deep term.

  arXiv:2209.02432, equation 6, without its weight beta. The division by
  lambda is in the authors' code alone. With `mask_ratio` 0 every token counts
  and nothing is divided.

  Args:
    generated: [B, N, D] output of the generator.
    teacher: [B, N, D].
    mask: [B, N] bool, True where the token was replaced.
    mask_ratio: lambda, in [0, 1).
    reduction: "sum" (the paper), or "mean", that sum divided by N D.

  Returns:
    [B] float32.

  Raises:
    ValueError: shapes disagree, the ratio is outside [0, 1), or the reduction
      is unknown.
  """
  _check_same_shape(("generated", "teacher"), generated, teacher)
  _check_same_shape(("mask", "token grid"), mask, generated[..., 0])
  if not 0 <= mask_ratio < 1:
    raise ValueError(f"expected 0 <= mask_ratio < 1, got {mask_ratio}")
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
    target: [B, C] float, possibly mixed and smoothed.

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
  student, teacher = _float32(
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


def _log_softmax_over(logits: jax.Array, where: jax.Array) -> jax.Array:
  """Log-softmax over the classes where True; 0 elsewhere, without NaN."""
  # At an excluded class logits - total may be far above 0, so that its
  # exponential overflows and its gradient is NaN even where it is unused.
  total = jax.nn.logsumexp(logits, axis=-1, keepdims=True, where=where)
  return jnp.where(where, logits, total) - total


def _check_logits(
  student_logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> None:
  _check_same_shape(
    ("student_logits", "teacher_logits"), student_logits, teacher_logits
  )
  if not temperature > 0:
    raise ValueError(f"expected temperature > 0, got {temperature}")
