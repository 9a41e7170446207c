"""Decoupled knowledge distillation: the target's share apart from the rest."""

import jax
import jax.numpy as jnp

from vitkd_jax.distill.losses import arrays, classes

# The authors' settings for ImageNet; for CIFAR-100 they use 1, 8 and 4.
ALPHA = 1.0
BETA = 0.5
TEMPERATURE = 1.0


def dkd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  target: jax.Array,
  *,
  alpha: float = ALPHA,
  beta: float = BETA,
  temperature: float = TEMPERATURE,
  standardise: bool = False,
) -> jax.Array:
  """Decoupled knowledge distillation, arXiv:2203.08679.

  With p, q the softmaxes of student and teacher at temperature tau, y the
  target class and p~, q~ the softmaxes over the C - 1 others at tau:
  `tckd = tau^2 (q_y log(q_y / p_y) + (1 - q_y) log((1 - q_y) / (1 - p_y)))`,
  `nckd = tau^2 sum_(i != y) q~_i log(q~_i / p~_i)`, and the result is
  `alpha tckd + beta nckd`. With alpha 1 and beta 1 - q_y it would be `kl`.

  The authors ramp its weight up over the first epochs, and take integer labels
  alone. They remove the target by subtracting 1000 from its logit; here it is
  left out, so that logits further apart than that stay right, too.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    target: int [B], or float [B, C], whose arg max is the target class.
    alpha: weight of the target's share, >= 0.
    beta: weight of the other classes, >= 0.
    temperature: tau > 0, divides both logits.
    standardise: whether both logits are standardised first, see
      `losses.standardise`.

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: shapes disagree, there are fewer than 3 classes, the
      temperature is not positive, or a weight is negative.
  """
  classes.check_logits(student_logits, teacher_logits, temperature=temperature)
  classes.check_at_least_zero(alpha=alpha, beta=beta)
  classes.check_num_classes(
    "dkd",
    student_logits,
    3,
    "its softmax over a single non-target class is constant; use kl instead",
  )
  target = classes.target_class(target, student_logits)
  student, teacher = arrays.float32(
    student_logits, jax.lax.stop_gradient(teacher_logits)
  )
  if standardise:
    student, teacher = map(classes.standardise, (student, teacher))
  student, teacher = student / temperature, teacher / temperature
  # log p_y and log(1 - p_y), neither of which rounds to 0 or -infinity.
  odds_p, odds_q = (classes.log_odds(z, target) for z in (student, teacher))
  tckd = sum(
    jax.nn.sigmoid(sign * odds_q)
    * (jax.nn.log_sigmoid(sign * odds_q) - jax.nn.log_sigmoid(sign * odds_p))
    for sign in (1, -1)
  )
  others = jnp.arange(student.shape[-1]) != target[..., None]  # [B, C]
  log_p, log_q = (
    classes.log_softmax_over(z, others) for z in (student, teacher)
  )
  # At the target both logarithms are 0.
  nckd = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)
  return temperature**2 * (alpha * tckd + beta * nckd)
