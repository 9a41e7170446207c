"""What every loss does first: the dtype and the shapes of its arrays."""

import jax
import jax.numpy as jnp


def float32(*values: jax.typing.ArrayLike) -> tuple[jax.Array, ...]:
  """The values as float32 arrays.

  Args:
    *values: of any dtype.
  """
  return tuple(jnp.asarray(value, jnp.float32) for value in values)


def check_same_shape(
  names: tuple[str, str],
  first: jax.typing.ArrayLike,
  second: jax.typing.ArrayLike,
) -> None:
  """Checks that two arrays have one shape.

  Args:
    names: what they are, for the message.
    first: an array.
    second: another.

  Raises:
    ValueError: the shapes differ.
  """
  if jnp.shape(first) != jnp.shape(second):
    raise ValueError(
      f"expected {names[0]} and {names[1]} to have the same shape, got "
      f"{jnp.shape(first)} and {jnp.shape(second)}"
    )


def safe_sqrt(value: jax.Array) -> jax.Array:
  """The square root, whose gradient is 0 at 0, as PyTorch's norms have it.

  Args:
    value: float >= 0.
  """
  positive = value > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1.0)), 0.0)


def group_size(batch: int, group: int | None) -> int:
  """Number of consecutive examples that one statistic is taken over.

  Args:
    batch: number of examples.
    group: that number; None for all of them.

  Raises:
    ValueError: groups of that size do not make up the batch.
  """
  if group is None:
    return batch
  if group < 1 or batch % group:
    raise ValueError(
      f"expected group to divide the batch of {batch}, got {group}"
    )
  return group
