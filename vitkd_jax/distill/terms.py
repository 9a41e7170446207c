"""The names of the loss terms, as configs, metrics and reports have them."""

from collections.abc import Mapping
from typing import Any

# Of the loss between the student's logits and the labels.
TASK = "task"


def name(method: str, kind: str, term: str) -> str:
  """The full name of a method's term, such as "vitkd/mimic" or "nkd".

  Args:
    method: name of the method in the config.
    kind: key of `methods.METHODS`; the same as `method` unless it says so.
    term: of the method.
  """
  return method if term == kind else f"{method}/{term}"


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
    kind = values.get("kind") or method
    for term, weight in (values.get("weights") or {}).items():
      found[name(method, kind, term)] = weight
  return {term: weight for term, weight in found.items() if weight}
