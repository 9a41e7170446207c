"""Whether a value has the type of an annotation, and that type in words."""

from collections.abc import Sequence
import types
import typing
from typing import Any

from vitkd_jax import check

_NAMES = {
  int: "an integer",
  float: "a finite number",
  bool: "True or False",
  str: "text",
  dict: "a section",
  type(None): "None",
}


def fits(value: Any, annotation: Any) -> bool:
  """Whether a value has an annotation's type.

  An int passes for a float, NaN and infinity do not; a list passes for a
  tuple. Types that are not listed here are not checked.

  Args:
    value: the value.
    annotation: a type, a union of types, or a tuple or Sequence of one type.
  """
  return any(_fits(value, kind) for kind in _kinds(annotation))


def described(annotation: Any) -> str:
  """An annotation in words, such as "a finite number or None".

  Args:
    annotation: as for `fits`.
  """
  return " or ".join(map(_in_words, _kinds(annotation)))


def _kinds(annotation: Any) -> tuple[Any, ...]:
  if isinstance(annotation, types.GenericAlias):
    return (annotation,)
  return typing.get_args(annotation) or (annotation,)


def _in_words(kind: Any) -> str:
  """A type in words, such as "a sequence of 2 finite numbers"."""
  if typing.get_origin(kind) not in (tuple, Sequence):
    return _NAMES.get(kind, str(kind))
  first, *rest = typing.get_args(kind)
  count = len(rest) + 1 if typing.get_origin(kind) is tuple else "one or more"
  return f"a sequence of {count} {_NAMES[first].partition(' ')[2]}s"


def _fits(value: Any, kind: Any) -> bool:
  if kind is float:
    return check.is_real(value)
  if kind is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if kind in _NAMES:
    return isinstance(value, kind)
  if typing.get_origin(kind) in (tuple, Sequence):
    size = [k for k in typing.get_args(kind) if k is not ...]
    fixed = typing.get_origin(kind) is tuple
    return (
      isinstance(value, list | tuple)
      and (len(value) == len(size) if fixed else len(value) > 0)
      and all(_fits(part, size[0]) for part in value)
    )
  return True
