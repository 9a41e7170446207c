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
