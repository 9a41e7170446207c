"""Losses between logits: pure, one value per example, in float32."""

import jax
import jax.numpy as jnp

from vitkd_jax.distill.losses import arrays, classes

# The published settings of NKD in ViTKD's configs. Every default below and in a
# training's config is one of these.
TEMPERATURE = 1.0
GAMMA = 1.0
# The authors' for a ResNet-34 and a ResNet-18 on ImageNet; theirs for DeiT is
# not published.
TTM_GAMMA = 0.8
WSLD_TEMPERATURE = 2.0  # the authors', on ImageNet


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
  standardise: bool = False,
) -> jax.Array:
  """tau^2 KL(teacher || student) at temperature tau, arXiv:1503.02531.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    temperature: tau > 0, divides both logits.
    standardise: whether both logits are standardised first, see
      `losses.standardise` (arXiv:2403.01427, whose tau is 2).

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: the shapes differ, the temperature is not positive, or there
      are fewer than 3 classes to standardise over.
  """
  classes.check_logits(student_logits, teacher_logits, temperature=temperature)
  student, teacher = arrays.float32(
    student_logits, jax.lax.stop_gradient(teacher_logits)
  )
  if standardise:
    student, teacher = map(classes.standardise, (student, teacher))
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
  classes.check_logits(student_logits, teacher_logits, temperature=temperature)
  classes.check_num_classes(
    "nkd",
    student_logits,
    3,
    "its softmax over a single non-target class is constant; use kl instead",
  )
  target = classes.target_class(target, student_logits)
  student, teacher = arrays.float32(
    student_logits, jax.lax.stop_gradient(teacher_logits)
  )
  target = target[..., None]
  log_p = jnp.take_along_axis(jax.nn.log_softmax(student), target, axis=-1)
  q = jnp.take_along_axis(jax.nn.softmax(teacher), target, axis=-1)
  target_term = -(q * log_p)[..., 0]

  others = jnp.arange(student.shape[-1]) != target  # [B, C]
  log_p = classes.log_softmax_over(student / temperature, others)
  log_q = classes.log_softmax_over(teacher / temperature, others)
  other_term = -jnp.sum(jnp.exp(log_q) * log_p, axis=-1)  # 0 at the target
  return target_term + gamma * temperature**2 * other_term


def deit_soft(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  temperature: float = TEMPERATURE,
) -> jax.Array:
  """DeiT's soft distillation: `kl` / C, arXiv:2012.12877, section 4.

  The authors' code (`losses.py`) divides the sum over batch and classes by B C,
  so that the term is C times weaker than `kl` under the same weight.

  Args:
    student_logits: [B, C], those of the distillation token if there is one.
    teacher_logits: [B, C].
    temperature: tau > 0, divides both logits.

  Returns:
    [B] float32, nats, whose mean is the published scalar.

  Raises:
    ValueError: the shapes differ, or the temperature is not positive.
  """
  value = kl(student_logits, teacher_logits, temperature=temperature)
  return value / student_logits.shape[-1]


def ttm(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  gamma: float = TTM_GAMMA,
) -> jax.Array:
  """Transformed teacher matching, arXiv:2402.11148, section 3.

  `sum_i q~_i log(q~_i / p_i)`: p is the student's softmax at temperature 1, q~
  the teacher's probabilities to the power gamma, normalised, that is at
  temperature 1 / gamma. There is no tau^2.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    gamma: power > 0 of the teacher's probabilities; 1 is `kl` at temperature
      1, a smaller one smooths them.

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: the shapes differ, or gamma is not positive.
  """
  classes.check_logits(student_logits, teacher_logits, gamma=gamma)
  student, teacher = arrays.float32(
    student_logits, jax.lax.stop_gradient(teacher_logits)
  )
  log_p = jax.nn.log_softmax(student)
  log_q = jax.nn.log_softmax(gamma * teacher)
  return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def wttm(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  gamma: float = TTM_GAMMA,
) -> jax.Array:
  """Weighted transformed teacher matching, arXiv:2402.11148, section 4.

  `sum_i q_i^gamma` times `ttm`, q the teacher's softmax. For gamma below 1 this
  weight is 1 where the teacher is certain and C^(1 - gamma) where it knows
  nothing, so that a weight of the term does not carry over to another gamma or
  number of classes.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    gamma: power > 0 of the teacher's probabilities.

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: the shapes differ, or gamma is not positive.
  """
  value = ttm(student_logits, teacher_logits, gamma=gamma)
  (teacher,) = arrays.float32(jax.lax.stop_gradient(teacher_logits))
  # The power of a probability would underflow, that of its logarithm does not.
  log_q = jax.nn.log_softmax(teacher)
  return jnp.exp(jax.nn.logsumexp(gamma * log_q, axis=-1)) * value


def wsld(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  target: jax.Array,
  *,
  temperature: float = WSLD_TEMPERATURE,
) -> jax.Array:
  """Weighted soft labels, arXiv:2102.00650.

  `tau^2 w (-sum_i q_i log p_i)` with p, q the softmaxes of student and teacher
  at temperature tau and `w = 1 - exp(-CE_student / (CE_teacher + 1e-7))`, both
  cross-entropies with the target class at temperature 1, without a gradient.
  In the authors' code (`knowledge_distiller.py`) the weight of the term is 2.5,
  and labels are integers.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    target: int [B], or float [B, C], whose arg max is the target class.
    temperature: tau > 0.

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: shapes disagree, or the temperature is not positive.
  """
  classes.check_logits(student_logits, teacher_logits, temperature=temperature)
  target = classes.target_class(target, student_logits)
  student, teacher = arrays.float32(
    student_logits, jax.lax.stop_gradient(teacher_logits)
  )
  # -log p_y is softplus(-log odds), precise where p_y is close to 1, too.
  of_student, of_teacher = (
    jax.nn.softplus(-classes.log_odds(jax.lax.stop_gradient(z), target))
    for z in (student, teacher)
  )
  weight = -jnp.expm1(-of_student / (of_teacher + 1e-7))
  q = jax.nn.softmax(teacher / temperature)
  return temperature**2 * weight * soft_cross_entropy(student / temperature, q)
