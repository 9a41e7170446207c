"""Refuses a value in one sentence that names the nearest valid one."""

from collections.abc import Collection, Iterable
import difflib
import json
import math
import numbers
from typing import Any


def nearest(name: str, names: Iterable[str]) -> str:
  """Half a sentence that names the nearest valid name, or else valid names.

  Args:
    name: that is not valid.
    names: the valid names.
  """
  names = list(names)
  if not names:
    return "it takes no key"
  if near := _near(name, names):
    return near
  rest = " and others" if len(names) > _SHOWN else ""
  return f"the valid ones are {', '.join(names[:_SHOWN])}{rest}"


# Names that a message lists at most.
_SHOWN = 20


def _near(name: str, names: Iterable[str]) -> str:
  """What `nearest` says of a similar name; "" if there is none."""
  near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
  return f"the nearest is {near[0]!r}" if near else ""


def known(name: str, value: object, names: Collection[str]) -> None:
  """Refuses a value that is none of the valid names.

  Args:
    name: of the argument, for the message.
    value: to check; of any type.
    names: the valid names.

  Raises:
    ValueError: the value is not one of them; the message names them all, and
      the nearest if one is near.
  """
  if isinstance(value, str) and value in names:
    return
  near = _near(value, names) if isinstance(value, str) else ""
  near = f"; {near}" if near else ""
  choices = ", ".join(map(repr, names))
  raise ValueError(
    f"expected {name} to be one of {choices}, got {value!r}{near}"
  )


def integers(least: int, **values: Any) -> None:
  """Refuses values that are not integers >= `least`.

  Args:
    least: smallest valid value.
    **values: to check, by the name of the argument.

  Raises:
    ValueError: a value is of another type or smaller.
  """
  for name, value in values.items():
    if not isinstance(value, numbers.Integral) or value < least:
      raise ValueError(f"expected an integer {name} >= {least}, got {value!r}")


def is_real(value: Any) -> bool:
  """Whether a value is a finite number that a float can hold, not a bool.

  Args:
    value: of any type.
  """
  if not isinstance(value, numbers.Real) or isinstance(value, bool):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:  # an integer that no float holds
    return False


def reals(most: float = math.inf, **values: Any) -> None:
  """Refuses values that are not finite numbers from 0 to `most`.

  Args:
    most: largest valid value; infinity for none.
    **values: to check, by the name of the argument.

  Raises:
    ValueError: a value is of another type, not finite or out of range.
  """
  bounded = most < math.inf
  for name, value in values.items():
    if not (is_real(value) and 0 <= value <= most):
      wanted = (
        f"{name} in [0, {most:g}]" if bounded else f"a finite {name} >= 0"
      )
      raise ValueError(f"expected {wanted}, got {value!r}")


def parse_json(text: str | bytes, what: str) -> Any:
  """The value of a JSON text.

  Args:
    text: the JSON.
    what: names it in the message.

  Raises:
    ValueError: the text is not JSON, or nested too deep.
  """
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError(
      f"{what}: expected JSON, got one nested too deep"
    ) from None
  except ValueError as error:
    raise ValueError(f"{what}: expected JSON: {error}") from None
