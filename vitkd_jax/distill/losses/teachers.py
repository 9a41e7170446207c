"""Several teachers' losses into one: which of them count for which image."""

import jax
import jax.numpy as jnp

from vitkd_jax.distill.losses import arrays

DROP_NORMALISATIONS = ("per_image", "unic")


def teacher_coefficients(
  values: jax.Array,
  keep: jax.Array,
  *,
  normalisation: str = "per_image",
  group: int | None = None,
) -> jax.Array:
  """How much each teacher counts for each image under UNIC's teacher dropping.

  arXiv:2408.05088, `modeling/teacher_dropping.py`: of each image
  the teacher of the largest loss stays (the first of equal ones), and each
  other one where it was drawn to. The coefficients c of 0 and 1 are then
  normalised:

  - "per_image": c / sum_T c, so that all images weigh alike, as the paper and
    a comment in the authors' code say;
  - "unic": B c / sum_(T,B) c, as that code has it: images that keep more
    teachers weigh more.

  Args:
    values: [T, B], the loss of each teacher.
    keep: bool [T, B], True where a teacher was drawn to stay; each with chance
      1/2 in UNIC's settings.
    normalisation: one of `DROP_NORMALISATIONS`.
    group: number of consecutive images that "unic" sums over, which divides B;
      None for the whole batch.

  Returns:
    [T, B] float32, without gradient.

  Raises:
    ValueError: the shapes differ or are not [T, B], the normalisation is
      unknown, or `group` does not divide the batch.
  """
  arrays.check_same_shape(("values", "keep"), values, keep)
  if jnp.ndim(values) != 2:
    raise ValueError(f"expected values [T, B], got shape {jnp.shape(values)}")
  arrays.check_known("normalisation", normalisation, DROP_NORMALISATIONS)
  (values,) = arrays.float32(jax.lax.stop_gradient(values))
  num_teachers, batch = values.shape
  size = arrays.group_size(batch, group)
  hardest = jnp.argmax(values, axis=0) == jnp.arange(num_teachers)[:, None]
  kept = (keep | hardest).astype(jnp.float32)
  count = jnp.sum(kept, axis=0)  # [B], at least 1
  if normalisation == "unic":
    count = jnp.repeat(jnp.mean(count.reshape(-1, size), axis=1), size)
  return kept / count


def teacher_drop(
  values: jax.Array,
  keep: jax.Array,
  *,
  normalisation: str = "per_image",
  group: int | None = None,
) -> jax.Array:
  """The teachers' losses combined, see `teacher_coefficients`.

  Args:
    values: [T, B], the loss of each teacher.
    keep: bool [T, B], True where a teacher was drawn to stay.
    normalisation: one of `DROP_NORMALISATIONS`.
    group: as in `teacher_coefficients`.

  Returns:
    [B] float32: sum_T of coefficient and value.

  Raises:
    ValueError: as `teacher_coefficients`.
  """
  coefficients = teacher_coefficients(
    values, keep, normalisation=normalisation, group=group
  )
  (values,) = arrays.float32(values)
  return jnp.sum(coefficients * values, axis=0)
