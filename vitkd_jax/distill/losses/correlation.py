"""Distillation by correlation: what probabilities' relations have in common."""

import jax
import jax.numpy as jnp

from vitkd_jax.distill.losses import arrays, classes

# The defaults of the authors' class, which their ImageNet configs leave alone.
BETA = 1.0
GAMMA = 1.0
TEMPERATURE = 1.0


def dist(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  beta: float = BETA,
  gamma: float = GAMMA,
  temperature: float = TEMPERATURE,
  group: int | None = None,
) -> jax.Array:
  """DIST: 1 - Pearson's correlation of probabilities, arXiv:2205.10536.

  With p, q [B, C] the softmaxes of student and teacher at temperature tau and
  rho Pearson's correlation (1e-8 is added to the product of the norms, as in
  the authors' code): `tau^2 (beta (1 - rho(p_b, q_b)) + gamma mean_c (1 -
  rho(p_c, q_c)))`, the relation between the classes of an example and that of
  a class between examples (p_c is column c). The latter is one number a batch,
  or group, and stands at each of its examples.

  The authors' statistics are those of one GPU's share of the batch; `group`
  gives them for that size. Where a row of p is constant its correlation is 0;
  with one example that holds for all columns, so that the second part is
  gamma tau^2 without a gradient.

  Args:
    student_logits: [B, C].
    teacher_logits: [B, C].
    beta: weight of the relation between classes, >= 0.
    gamma: weight of the relation between examples, >= 0.
    temperature: tau > 0, divides both logits.
    group: number of consecutive examples that a class is correlated over,
      which divides B; None for the whole batch.

  Returns:
    [B] float32, whose mean is the published scalar (with groups, the mean of
    theirs).

  Raises:
    ValueError: the shapes differ, there are fewer than 3 classes, the
      temperature is not positive, a weight is negative, or `group` does not
      divide the batch.
  """
  classes.check_logits(student_logits, teacher_logits, temperature=temperature)
  classes.check_at_least_zero(beta=beta, gamma=gamma)
  classes.check_num_classes(
    "dist",
    student_logits,
    3,
    "the correlation of two pairs of probabilities is constant; use kl instead",
  )
  num_classes = student_logits.shape[-1]
  size = arrays.group_size(len(student_logits), group)
  student, teacher = arrays.float32(
    student_logits, jax.lax.stop_gradient(teacher_logits)
  )
  p = jax.nn.softmax(student / temperature)
  q = jax.nn.softmax(teacher / temperature)
  inter = 1 - _correlation(p, q, axis=-1)  # [B]
  p, q = (x.reshape(-1, size, num_classes) for x in (p, q))
  intra = 1 - jnp.mean(_correlation(p, q, axis=1), axis=-1)  # [B / size]
  intra = arrays.of_each_example(intra, size)
  return temperature**2 * (beta * inter + gamma * intra)


def _correlation(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
  """Pearson's correlation along an axis, 0 where an array is constant."""
  a, b = (x - jnp.mean(x, axis=axis, keepdims=True) for x in (a, b))
  norms = (arrays.safe_sqrt(jnp.sum(jnp.square(x), axis=axis)) for x in (a, b))
  return jnp.sum(a * b, axis=axis) / (next(norms) * next(norms) + 1e-8)
