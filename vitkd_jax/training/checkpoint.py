"""Checkpoints of the train state; the only importer of orbax.

Orbax neither detects a flipped bit nor falls back from a damaged latest step,
so each checkpoint carries a fingerprint of every leaf, and `restore` tries the
steps from the newest down until one is whole.
"""

from collections.abc import Callable
import dataclasses
import functools
import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

_log = logging.getLogger(__name__)
_UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class DamagedError(ValueError):
  """Checkpoints are there, but none of them is whole."""


def _leaf_fingerprint(x):
  """uint32 that any changed word alters, on any sharding the same."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  words = jax.lax.bitcast_convert_type(x, _UINTS[x.dtype.itemsize])
  words = words.astype(jnp.uint32)
  index = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(
      jnp.uint32, words.shape, axis
    )
  # Odd factors (Knuth's multiplicative hash), so that no word cancels out.
  return jnp.sum(words * (index * jnp.uint32(2654435761) | 1), dtype=jnp.uint32)


@jax.jit
def _fingerprints(leaves):
  return [_leaf_fingerprint(x) for x in leaves]


def _paths(tree):
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return {name(path): leaf for path, leaf in flat}


def fingerprint(tree: Any) -> dict[str, int]:
  """{path: uint32} of every leaf; equal on any number of devices."""
  leaves = _paths(tree)
  values = jax.device_get(_fingerprints(list(leaves.values())))
  return {path: int(v) for path, v in zip(leaves, values, strict=True)}


def _as_dict(state):
  """A flax dataclass as the dict of its fields; other trees as they are."""
  if not dataclasses.is_dataclass(state):
    return state
  names = [field.name for field in dataclasses.fields(state)]
  return {name: getattr(state, name) for name in names}


class Checkpoints:
  """Saves and restores the states of one run.

  Args:
    directory: where they lie; made if it is not there.
    keep: number of newest checkpoints that are kept, and the best one too.
    read_only: leaves everything as it is, a save in flight included.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep: int = 2,
    read_only: bool = False,
  ):
    policy = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(keep),
        checkpoint_managers.BestN(
          get_metric_fn=lambda metrics: metrics["top1"],
          n=1,
          reverse=False,
          keep_checkpoints_without_metrics=False,
        ),
      ]
    )
    # A relative path is accepted by orbax and fails one save later.
    self._directory = _absolute(directory)
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        # What a killed run left half written, or a full disk stays full.
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
      ),
      # Named handlers, so that a checkpoint's shapes can be asked for.
      item_handlers={
        "state": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
      },
    )

  def save(self, step: int, state: Any, *, top1: float | None) -> None:
    """Starts an asynchronous save; `wait` says when it is durable.

    Args:
      step: updates done.
      state: tree of arrays; may be donated at once.
      top1: accuracy of the evaluation at this step, which decides what is
        best; None where there was none.
    """
    tree = _as_dict(state)
    if step in self._manager.all_steps():  # damaged, and passed over before
      self._manager.delete(step)
    meta = {"step": step, "fingerprint": fingerprint(tree)}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)
      ),
      metrics=None if top1 is None else {"top1": float(top1)},
      force=True,
    )

  def wait(self) -> None:
    """Blocks until what was saved is durable, and raises if it failed."""
    self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """The steps that are there, the newest first; some may be damaged."""
    return sorted(self._manager.all_steps(), reverse=True)

  def restore(self, like: Any, state_shardings: Any) -> Any | None:
    """The newest whole state, or None where nothing was ever saved.

    Args:
      like: the state's shapes and dtypes (`jax.eval_shape`).
      state_shardings: where each leaf goes; any mesh will do.

    Raises:
      DamagedError: there are checkpoints, and none is whole.
    """
    shapes = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      like,
      state_shardings,
    )
    target = _as_dict(shapes)
    tree = self._newest_whole(
      lambda step: _restore_whole(self._manager, step, target)
    )
    if tree is None or not dataclasses.is_dataclass(like):
      return tree
    return like.replace(**tree)

  def _newest_whole(self, read: Callable[[int], Any]) -> Any | None:
    steps = self.steps()
    for step in steps:
      try:
        return read(step)
      # Orbax answers damage with many types, the bare Exception among them.
      except Exception as error:
        _log.warning(
          "checkpoint of step %d in %s is damaged and passed over: %s",
          step,
          self._directory,
          first_line(error),
        )
    if steps:
      raise DamagedError(
        f"none of the checkpoints {steps} in {self._directory} is whole; "
        "restore them from a copy, or start again in an empty workdir"
      )
    return None

  def close(self) -> None:
    """Waits, and frees the threads."""
    self._manager.close()


def _absolute(directory):
  directory = os.fspath(directory)
  return directory if "://" in directory else os.path.abspath(directory)


def first_line(error: Exception) -> str:
  """What an error says, short; its type where it says nothing."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _restore_whole(manager, step, target):
  restored = manager.restore(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
    ),
  )
  tree, expected = restored["state"], restored["meta"]["fingerprint"]
  # Fingerprints are of bits, so that a silent cast is found, too.
  found = fingerprint(tree)
  wrong = [path for path in expected if found.get(path) != expected[path]]
  if wrong or len(found) != len(expected):
    raise ValueError(
      f"its fingerprint differs at {', '.join(wrong[:3]) or 'missing leaves'}"
    )
  return tree


def load_params(directory: str | os.PathLike, *, which: str = "student") -> Any:
  """The student's parameters of a run's newest whole checkpoint.

  Args:
    directory: a workdir, or its folder `checkpoints`.
    which: "student" or "ema".

  Returns:
    Tree of float32 NumPy arrays.

  Raises:
    ValueError: no checkpoint there, none whole, or no moving average in it.
  """
  if which not in ("student", "ema"):
    raise ValueError(f"which={which!r}: wanted 'student' or 'ema'")
  candidates = os.path.join(directory, "checkpoints"), os.fspath(directory)
  folder = next(filter(os.path.isdir, candidates), None)
  if folder is None:
    raise ValueError(f"no folder {os.fspath(directory)}")
  checkpoints = Checkpoints(folder, read_only=True)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def read(step):
    metadata = checkpoints._manager.item_metadata(step)["state"].tree
    target = jax.tree.map(
      lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device),
      metadata,
    )
    return _restore_whole(checkpoints._manager, step, target)

  try:
    tree = checkpoints._newest_whole(read)
  finally:
    checkpoints.close()
  if tree is None:
    raise ValueError(f"{folder} holds no checkpoint")
  params = tree["ema"] if which == "ema" else tree["params"]["student"]
  if params is None:
    raise ValueError(f"the run in {folder} kept no moving average (ema_decay)")
  return jax.device_get(params)
