"""What every loss does first: the dtype and the shapes of its arrays."""

from collections.abc import Iterable

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


def check_token_maps(
  student: jax.typing.ArrayLike, teacher: jax.typing.ArrayLike
) -> None:
  """Checks that two token maps show the same tokens, whatever their widths.

  Args:
    student: [B, N, D_s].
    teacher: [B, N, D_t].

  Raises:
    ValueError: one is no token map, or batch or tokens differ.
  """
  shapes = jnp.shape(student), jnp.shape(teacher)
  if (
    len(shapes[0]) != 3 or len(shapes[1]) != 3 or shapes[0][:2] != shapes[1][:2]
  ):
    raise ValueError(
      "expected student [B, N, D_s] and teacher [B, N, D_t] of the same B and "
      f"N, got {shapes[0]} and {shapes[1]}"
    )


def check_known(name: str, value: str, known: Iterable[str]) -> None:
  """Checks that an option is one of those there are.

  Args:
    name: what it is, for the message.
    value: the option.
    known: all that there are.

  Raises:
    ValueError: it is none of them.
  """
  known = tuple(known)
  if value not in known:
    raise ValueError(
      f"expected {name} to be one of {', '.join(known)}, got {value!r}"
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


def of_each_example(statistic: jax.Array, size: int) -> jax.Array:
  """A statistic of each group, at each of the group's examples.

  Args:
    statistic: [B / size, ...].
    size: number of examples in a group.

  Returns:
    [B, ...].
  """
  # Not `jnp.repeat`, whose gather would cross devices.
  shape = (len(statistic), size, *statistic.shape[1:])
  wide = jnp.broadcast_to(statistic[:, None], shape)
  return wide.reshape(-1, *statistic.shape[1:])
