"""A student's parameters of which some are not trained."""

from collections.abc import Collection, Sequence
from typing import Any

import jax


def held(student: Any, names: Collection[str]) -> Any:
  """The parameters, those of these names without gradient.

  Args:
    student: the student's parameters.
    names: of leaves, parts joined by "/".
  """
  return where(names, student, jax.tree.map(jax.lax.stop_gradient, student))


def where(names: Collection[str], others: Any, chosen: Any) -> Any:
  """A student's tree with the leaves of `chosen` at these names.

  Args:
    names: of leaves.
    others: tree like the student's parameters, of all other leaves.
    chosen: tree of the same structure.
  """
  if not names:
    return others
  return jax.tree_util.tree_map_with_path(
    lambda path, x, y: y if name_of(path) in names else x, others, chosen
  )


def name_of(path: Sequence[Any]) -> str:
  """The name of a leaf, its parts joined by "/".

  Args:
    path: of the leaf in the student's parameters.
  """
  return "/".join(part.key for part in path)
