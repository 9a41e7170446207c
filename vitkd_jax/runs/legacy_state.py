"""Checkpoints from before each method had parameters under its own name.

What was trained beside the student was ViTKD's alone, called "head".
"""

from typing import Any

import jax

from vitkd_jax.runs import legacy

_OLD, _NEW = {"student", "head"}, {"student", "methods"}


def is_old(saved: Any) -> bool:
  """Whether a checkpoint is from then.

  Args:
    saved: its tree, or that of its metadata.
  """
  return isinstance(saved, dict) and "head" in (saved.get("params") or {})


def old(state: dict[str, Any]) -> dict[str, Any]:
  """A state, or its shapes, under the names of then.

  Args:
    state: the fields of a TrainState.
  """

  def rename(node: Any) -> Any:
    if not _is(node, _NEW):
      return node
    return {
      "student": node["student"],
      "head": node["methods"].get("vitkd", {}),
    }

  names = {legacy.metric(name): name for name in legacy.METRICS}
  return _renamed(state, rename, _NEW, names)


def new(state: dict[str, Any]) -> dict[str, Any]:
  """A state from then under the names of today.

  Args:
    state: the fields of a TrainState.
  """

  def rename(node: Any) -> Any:
    if not _is(node, _OLD):
      return node
    head = node["head"]
    return {
      "student": node["student"],
      "methods": {"vitkd": head} if head else {},
    }

  return _renamed(state, rename, _OLD, legacy.METRICS)


def _is(node: Any, names: set[str]) -> bool:
  return isinstance(node, dict) and node.keys() == names


def _renamed(
  state: dict[str, Any], rename: Any, names: set[str], metrics: dict[str, str]
) -> dict[str, Any]:
  # The parameters, and within the optimiser's state every tree like them.
  state = jax.tree.map(rename, state, is_leaf=lambda node: _is(node, names))
  found = {metrics.get(k, k): x for k, x in state["metrics"].items()}
  return state | {"metrics": found}
