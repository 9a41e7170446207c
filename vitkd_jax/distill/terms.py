"""The names of the loss terms, as configs, metrics and reports have them."""

from collections.abc import Mapping
from typing import Any

# Of the loss between the student's logits and the labels.
TASK = "task"


def name(method: str, kind: str, term: str) -> str:
  """The full name of a method's term, such as "vitkd/mimic" or "nkd".

  Args:
    method: name of the method in the config.
    kind: from `kind`.
    term: of the method.
  """
  return method if term == kind else f"{method}/{term}"


def kind(method: str, values: Mapping[str, Any]) -> str:
  """Key of `methods.METHODS`: the method's name, unless its section says.

  Args:
    method: name of the method in the config.
    values: its section.
  """
  return values.get("kind") or method


def weights(
  task: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
  """{full name: weight} of every term with a weight, in a config's order.

  Args:
    task: section `task`.
    methods: section `methods`.
  """
  found = {TASK: task.get("weight", 1.0)}
  for method, values in methods.items():
    for term, weight in (values.get("weights") or {}).items():
      found[name(method, kind(method, values), term)] = weight
  return {term: weight for term, weight in found.items() if weight}
