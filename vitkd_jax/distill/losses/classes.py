"""What losses over classes share: checks, the target class, softmaxes."""

import jax
import jax.numpy as jnp

from vitkd_jax.distill.losses import arrays


def check_logits(
  student_logits: jax.typing.ArrayLike,
  teacher_logits: jax.typing.ArrayLike,
  **positive: float,
) -> None:
  """Checks two models' logits and the options that have to be positive.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    **positive: numbers > 0, by the name of the option.

  Raises:
    ValueError: the shapes differ, or an option is not positive.
  """
  arrays.check_same_shape(
    ("student_logits", "teacher_logits"), student_logits, teacher_logits
  )
  check_positive(**positive)


def check_num_classes(
  loss: str, logits: jax.typing.ArrayLike, least: int, reason: str
) -> None:
  """Checks that a loss is defined for so few classes.

  Args:
    loss: its name, for the message.
    logits: [..., C].
    least: smallest C that it is defined for.
    reason: why no smaller one is, and what to use instead.

  Raises:
    ValueError: C < least.
  """
  classes = jnp.shape(logits)[-1]
  if classes < least:
    raise ValueError(
      f"expected at least {least} classes for {loss}, got {classes}: {reason}"
    )


def check_positive(**options: float) -> None:
  """Checks options that have to be positive.

  Args:
    **options: numbers > 0, by the name of the option.

  Raises:
    ValueError: one is not positive, or not a number.
  """
  for name, value in options.items():
    if not value > 0:
      raise ValueError(f"expected {name} > 0, got {value}")


def check_at_least_zero(**weights: float) -> None:
  """Checks the weights of a loss's parts.

  Args:
    **weights: numbers >= 0, by the name of the option.

  Raises:
    ValueError: one is negative, or not a number.
  """
  for name, value in weights.items():
    if not value >= 0:
      raise ValueError(f"expected {name} >= 0, got {value}")


def target_class(target: jax.typing.ArrayLike, logits: jax.Array) -> jax.Array:
  """The one class that a target stands for.

  Args:
    target: int [B], or float [B, C], whose arg max is the class.
    logits: [B, C], for the shape alone.

  Returns:
    [B] int.

  Raises:
    ValueError: the target has neither shape.
  """
  target = jnp.asarray(target)
  if jnp.issubdtype(target.dtype, jnp.floating):
    arrays.check_same_shape(("target", "student_logits"), target, logits)
    target = jnp.argmax(target, axis=-1)
  arrays.check_same_shape(("target", "batch"), target, logits[..., 0])
  return target


def log_odds(logits: jax.Array, target: jax.Array) -> jax.Array:
  """log p_y / (1 - p_y) of the target class: z_y - log sum_(i != y) exp z_i.

  Its sigmoid is p_y, that of its negative 1 - p_y, each to full relative
  precision however close to 0 it is.

  Args:
    logits: [B, C] float32.
    target: [B] int.

  Returns:
    [B] float32.
  """
  is_target = jnp.arange(logits.shape[-1]) == target[..., None]
  chosen = jnp.sum(logits, axis=-1, where=is_target)
  return chosen - jax.nn.logsumexp(logits, axis=-1, where=~is_target)


def log_softmax_over(logits: jax.Array, where: jax.Array) -> jax.Array:
  """Log-softmax over the classes where True; 0 elsewhere, without NaN.

  Args:
    logits: [B, C] float32.
    where: [B, C] bool, True somewhere in each row.
  """
  # At an excluded class logits - total may be far above 0, so that its
  # exponential overflows and its gradient is NaN even where it is unused.
  total = jax.nn.logsumexp(logits, axis=-1, keepdims=True, where=where)
  return jnp.where(where, logits, total) - total


def standardise(logits: jax.typing.ArrayLike) -> jax.Array:
  """Logits of mean 0 and standard deviation 1, arXiv:2403.01427.

  `(z - mean_c z) / (std_c z + 1e-7)` with the C - 1 of an unbiased variance,
  as in the authors' code. Gradients pass through mean and deviation, as they
  do there. A constant row becomes zeros; its gradient is finite, and up to 1e7
  times that of the result.

  Args:
    logits: [..., C].

  Returns:
    [..., C] float32.

  Raises:
    ValueError: there are fewer than 3 classes.
  """
  check_num_classes(
    "standardise",
    logits,
    3,
    "two standardised logits are constant; leave the logits as they are",
  )
  (logits,) = arrays.float32(logits)
  centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
  variance = jnp.sum(jnp.square(centred), axis=-1, keepdims=True)
  variance /= logits.shape[-1] - 1
  return centred / (arrays.safe_sqrt(variance) + 1e-7)
