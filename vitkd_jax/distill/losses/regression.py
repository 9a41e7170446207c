"""Losses between a student's projected features and the teacher's.

Pure, one value per example, in float32. FitNets, ScaleKD, Proteus, UNIC and
VkD are settings of `regression`. Beside it stand VkD's orthogonal projection,
SRRL's two terms and PHI-S's scale.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vitkd_jax.distill.losses import arrays, norms
from vitkd_jax.distill.losses.maps import REDUCTIONS

_HIGHEST = jax.lax.Precision.HIGHEST


def _mse(student: jax.Array, teacher: jax.Array) -> jax.Array:
  return jnp.mean(jnp.square(student - teacher), axis=-1)


def _cosine(student: jax.Array, teacher: jax.Array) -> jax.Array:
  return 1 - jnp.sum(norms.l2(student) * norms.l2(teacher), axis=-1)


def _smooth_l1(student: jax.Array, teacher: jax.Array) -> jax.Array:
  error = jnp.abs(student - teacher)
  each = jnp.where(error < 1, 0.5 * jnp.square(error), error - 0.5)
  return jnp.mean(each, axis=-1)


def _cosine_smooth_l1(student: jax.Array, teacher: jax.Array) -> jax.Array:
  return 0.5 * _cosine(student, teacher) + 0.5 * _smooth_l1(student, teacher)


# [..., D] and [..., D] -> [...], a mean over channels.
METRICS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  "mse": _mse,
  "cosine": _cosine,
  "smooth_l1": _smooth_l1,
  "cosine_smooth_l1": _cosine_smooth_l1,
}


def regression(
  student: jax.Array,
  teacher: jax.Array,
  *,
  metric: str = "mse",
  student_norm: str = "none",
  teacher_norm: str = "none",
  reduction: str = "mean",
) -> jax.Array:
  """A metric between features, each normalised first.

  Per token, with s and t the normalised features of width D:

  - "mse": mean_D (s - t)^2;
  - "cosine": 1 - cos(s, t);
  - "smooth_l1": mean_D of e^2 / 2 where e = |s - t| < 1, else e - 1/2;
  - "cosine_smooth_l1": half of each of the two above.

  The published settings (metric, norms of student and teacher, reduction):

  - FitNets in Distillation-Dynamics, arXiv:2511.06848: "mse", "batch_norm"
    both, "mean";
  - ScaleKD, arXiv:2411.06786, `fmd.py`: "mse", "l2" (spatial) or
    "mean_removed_l2" (frequency) both, "sum";
  - Proteus, arXiv:2407.10366: "mse", "none" both, "mean";
  - UNIC, arXiv:2408.05088, `modeling/losses.py`: "cosine_smooth_l1", "none"
    both, "mean";
  - VkD, arXiv:2403.06213, `engine.py`: "smooth_l1", "none" and "layer_norm",
    "mean", of pooled features.

  Args:
    student: [B, N, D] token map, already projected to the teacher's width, or
      [B, D] pooled feature or prefix token.
    teacher: the same shape.
    metric: one of `METRICS`.
    student_norm: one of `norms.NORMS`. "l2" is per token, "mean_removed_l2"
      first removes the mean over tokens, "layer_norm" is over channels,
      "batch_norm" over the batch and its tokens (the one that mixes examples);
      none has a scale or bias of its own.
    teacher_norm: likewise.
    reduction: "mean" over tokens (and channels, see above), or "sum": over
      tokens and channels, and for "cosine" 2 sum_N (1 - cos), which is what
      "mse" sums to between unit vectors.

  Returns:
    [B] float32.

  Raises:
    ValueError: the shapes differ or are neither [B, N, D] nor [B, D], an
      option is unknown, "mean_removed_l2" meets features without tokens, or
      "sum" meets "cosine_smooth_l1".
  """
  arrays.check_same_shape(("student", "teacher"), student, teacher)
  if jnp.ndim(student) not in (2, 3):
    raise ValueError(
      f"expected features [B, N, D] or [B, D], got shape {jnp.shape(student)}"
    )
  arrays.check_known("metric", metric, METRICS)
  arrays.check_known("reduction", reduction, REDUCTIONS)
  for name, norm in {
    "student_norm": student_norm,
    "teacher_norm": teacher_norm,
  }.items():
    arrays.check_known(name, norm, norms.NORMS)
    if norm == "mean_removed_l2" and jnp.ndim(student) == 2:
      raise ValueError(
        f"expected token maps [B, N, D] with {name} 'mean_removed_l2', got "
        f"shape {jnp.shape(student)}: without tokens nothing would be left"
      )
  if reduction == "sum" and metric == "cosine_smooth_l1":
    raise ValueError(
      "expected reduction 'mean' with metric 'cosine_smooth_l1', got 'sum': "
      "its halves sum over different things"
    )
  student, teacher = arrays.float32(student, jax.lax.stop_gradient(teacher))
  width = student.shape[-1]
  value = METRICS[metric](
    norms.NORMS[student_norm](student), norms.NORMS[teacher_norm](teacher)
  ).reshape(len(student), -1)  # [B, N], or [B, 1]
  if reduction == "mean":
    return jnp.mean(value, axis=1)
  return jnp.sum(value, axis=1) * (2 if metric == "cosine" else width)


def orthogonal(kernel: jax.Array) -> jax.Array:
  """A linear map with orthonormal rows, or columns: VkD's projection.

  arXiv:2403.06213: the Q of the reduced QR decomposition, made unique by
  diag(R) > 0, of the kernel's transpose if D_s <= D_t (then `x @ map` has the
  length of x), else of the kernel (then `map.T` keeps lengths). Differentiable
  where the kernel has full rank, as a random one has. The authors' code uses
  PyTorch's Householder parametrisation instead, which AdamW's weight decay
  turns to zero in its first step.

  Args:
    kernel: [D_s, D_t] float, the free parameters.

  Returns:
    [D_s, D_t] float32.

  Raises:
    ValueError: the kernel is not a matrix.
  """
  if jnp.ndim(kernel) != 2:
    raise ValueError(
      f"expected kernel [D_s, D_t], got shape {jnp.shape(kernel)}"
    )
  (kernel,) = arrays.float32(kernel)
  wide = kernel.shape[0] <= kernel.shape[1]
  with jax.default_matmul_precision("highest"):
    q, r = jnp.linalg.qr(kernel.T if wide else kernel)
  q *= jnp.where(jnp.diag(r) < 0, -1.0, 1.0)
  return q.T if wide else q


def srrl(
  connected: jax.Array,
  teacher_pooled: jax.Array,
  teacher_logits: jax.Array,
  head: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """SRRL's two terms: the feature, and what the teacher's head makes of it.

  Softmax regression representation learning (ICLR 2021, OpenReview
  ZzwDy_wiWv; `srrl.py` and `distiller.py` of cls_KD). With u the student's
  feature in the teacher's space, f and t the teacher's feature and logits:
  `mean_D (u - f)^2` and `mean_C (head(u) - t)^2`.

  Args:
    connected: u, [B, D_t]: the student's feature after its connector.
    teacher_pooled: [B, D_t], the input of the teacher's head.
    teacher_logits: [B, C].
    head: the teacher's kernel [D_t, C] and bias [C]. Both are held fixed; the
      gradient passes through to u.

  Returns:
    (feature [B] float32, logit [B] float32).

  Raises:
    ValueError: shapes disagree.
  """
  kernel, bias = head
  arrays.check_same_shape(
    ("connected", "teacher_pooled"), connected, teacher_pooled
  )
  expected = (jnp.shape(connected)[-1], jnp.shape(teacher_logits)[-1])
  if jnp.shape(kernel) != expected or jnp.shape(bias) != expected[1:]:
    raise ValueError(
      f"expected head of kernel {expected} and bias {expected[1:]}, got "
      f"{jnp.shape(kernel)} and {jnp.shape(bias)}"
    )
  (connected,) = arrays.float32(connected)
  pooled, target, kernel, bias = arrays.float32(
    *jax.lax.stop_gradient((teacher_pooled, teacher_logits, kernel, bias))
  )
  logits = jnp.matmul(connected, kernel, precision=_HIGHEST) + bias  # [B, C]
  arrays.check_same_shape(("head's logits", "teacher_logits"), logits, target)
  return _mse(connected, pooled), _mse(logits, target)


def phi_s(features: jax.Array) -> tuple[jax.Array, jax.Array]:
  """PHI-S's mean and scale of a teacher's features, arXiv:2410.01680.

  `scale * (features - mean)` has a mean variance of 1 over its channels: the
  scale is (mean eigenvalue of the covariance)^-1/2, and the mean
  eigenvalue is the mean variance (ddof 1). The method's rotation, which gives
  each channel the same variance, leaves a squared error as it is, so for one
  this is the whole of it: the error is multiplied by scale^2.

  Args:
    features: [M, D], M >= 2 features of the teacher, for example the tokens
      of many images.

  Returns:
    (mean [D] float32, scale [] float32); the scale is 1 if all features are
    equal.

  Raises:
    ValueError: features are not [M, D], or M < 2.
  """
  if jnp.ndim(features) != 2 or jnp.shape(features)[0] < 2:
    raise ValueError(
      f"expected features [M, D] with M >= 2, got shape {jnp.shape(features)}"
    )
  (features,) = arrays.float32(jax.lax.stop_gradient(features))
  first = features[0]  # see norms.centre
  mean = first + jnp.mean(features - first, axis=0)
  squared = jnp.square(features - mean)
  variance = jnp.mean(jnp.sum(squared, axis=0)) / (len(features) - 1)
  varies = variance > 0
  scale = jnp.where(
    varies, jax.lax.rsqrt(jnp.where(varies, variance, 1.0)), 1.0
  )
  return mean, scale
