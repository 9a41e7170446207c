"""Checkpoints of the train state; the only importer of orbax.

Orbax neither detects a flipped bit nor falls back from a damaged latest step,
so each checkpoint carries a fingerprint of every leaf, and `restore` tries the
steps from the newest down until one is whole.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import logging
import os
from typing import Any, TypeVar

from absl import logging as absl_logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vitkd_jax import remote
from vitkd_jax.runs import fingerprint

_log = logging.getLogger(__name__)
T = TypeVar("T")


class DamagedError(ValueError):
  """Checkpoints are there, but none of them is whole and fits."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint held.

  Attributes:
    state: the tree that was saved.
    evaluated: False where a save came before the evaluation that was due.
  """

  state: Any
  evaluated: bool


class _Manager(ocp.CheckpointManager):
  """Orbax's, that leaves JAX's notices of preemption alone.

  It polls for them itself, with the step as the number, also in the
  background: a notice that comes between its poll and ours would be expected
  at a number that we have passed, and be lost.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


def _as_dict(state):
  """A flax dataclass as the dict of its fields; other trees as they are."""
  if not dataclasses.is_dataclass(state):
    return state
  names = [field.name for field in dataclasses.fields(state)]
  return {name: getattr(state, name) for name in names}


class Checkpoints:
  """Saves and restores the states of one run; a context that closes itself.

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
    self._directory = remote.absolute(directory)
    with _without_warnings() if read_only else contextlib.nullcontext():
      self._manager = _Manager(
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

  def save(
    self,
    step: int,
    state: Any,
    *,
    top1: float | None,
    evaluated: bool = True,
  ) -> None:
    """Starts an asynchronous save; `wait` says when it is durable.

    Args:
      step: updates done.
      state: tree of arrays; may be donated at once.
      top1: accuracy of the evaluation at this step, which decides what is
        best; None where there was none.
      evaluated: False where an evaluation is due at this step and has yet to
        come.
    """
    tree = _as_dict(state)
    # Damaged and passed over before, or saved before its evaluation.
    if step in self._manager.all_steps():
      self._manager.delete(step)
    top1 = None if top1 is None else float(top1)
    meta = {
      "step": step,
      "top1": top1,
      "evaluated": evaluated,
      "fingerprint": fingerprint.of(tree),
    }
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)
      ),
      metrics=None if top1 is None else {"top1": top1},
      force=True,
    )

  def prepare(self, state: Any) -> None:
    """Compiles what `save` needs: one that a notice asks for has no time."""
    fingerprint.of(_as_dict(state))

  def wait(self) -> None:
    """Blocks until what was saved is durable, and raises if it failed."""
    self._manager.wait_until_finished()

  def busy(self) -> bool:
    """Whether a save is in flight, on any process."""
    return self._manager.is_saving_in_progress()

  def steps(self) -> list[int]:
    """The steps that are there, the newest first; some may be damaged."""
    return sorted(self._manager.all_steps(), reverse=True)

  def restore(self, like: Any, state_shardings: Any) -> Restored | None:
    """The newest whole state, or None where nothing was ever saved.

    Args:
      like: the state's shapes and dtypes (`jax.eval_shape`).
      state_shardings: where each leaf goes; any mesh will do.

    Raises:
      DamagedError: there are checkpoints, and none is whole and fits.
    """
    shapes = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      like,
      state_shardings,
    )
    target = _as_dict(shapes)
    steps = self.steps()
    if not steps:
      return None
    tree, meta = self._first_whole(
      steps, lambda step: _restore_whole(self._manager, step, target)
    )
    if dataclasses.is_dataclass(like):
      tree = like.replace(**tree)
    return Restored(tree, meta["evaluated"])

  def read(self, choice: str | int) -> tuple[Any, int]:
    """One state as it was saved, on this process's first device; its step.

    Args:
      choice: "latest" or "best" (of the highest top-1), the next one where
        that is damaged, or a step.

    Raises:
      DamagedError: none is whole.
      ValueError: there is none, or no evaluated one for "best".
    """
    steps = self.steps()
    if isinstance(choice, int):
      steps = [step for step in steps if step == choice]
    elif choice == "best":
      top1 = {step: self._top1(step) for step in steps}
      steps = [step for step in steps if top1[step] is not None]
      steps.sort(key=lambda step: top1[step], reverse=True)
    if not steps:
      wanted = {"latest": "checkpoint", "best": "evaluated checkpoint"}
      raise ValueError(
        f"{self._directory} holds no "
        + wanted.get(choice, f"checkpoint of step {choice}")
        + (f"; there are {self.steps()}" if self.steps() else "")
      )
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def read(step):
      target = jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device),
        self._manager.item_metadata(step)["state"].tree,
      )
      return _restore_whole(self._manager, step, target)

    tree, meta = self._first_whole(steps, read)
    return tree, meta["step"]

  def _top1(self, step):
    try:
      return _meta(self._manager, step)["top1"]
    except Exception:  # damaged: `_first_whole` will say so
      return None

  def _first_whole(self, steps: list[int], read: Callable[[int], T]) -> T:
    reason = ""
    for step in steps:
      try:
        return read(step)
      # Orbax answers damage with many types, the bare Exception among them.
      except Exception as error:
        reason = reason or first_line(error)
        _log.warning(
          "checkpoint of step %d in %s is damaged and passed over: %s",
          step,
          self._directory,
          first_line(error),
        )
    raise DamagedError(
      f"none of the checkpoints {steps} in {self._directory} is whole and fits "
      f"({reason}); restore them from a copy, or start again in an empty "
      "workdir"
    )

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      self.close()
    except Exception:
      if kind is None:  # else a failed save would hide what ended the run
        raise

  def close(self) -> None:
    """Waits, and frees the threads."""
    self._manager.close()


@contextlib.contextmanager
def _without_warnings():
  """Orbax says of each manager that only reads that it does not write."""
  logger = absl_logging.get_absl_logger()
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def first_line(error: Exception) -> str:
  """What an error says, short; its type where it says nothing."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _meta(manager, step):
  return manager.restore(
    step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
  )["meta"]


def _restore_whole(manager, step, target):
  """(state, meta) of one step; raises whatever is wrong with it."""
  _check_leaves(manager.item_metadata(step)["state"].tree, target)
  restored = manager.restore(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
    ),
  )
  tree, meta = restored["state"], restored["meta"]
  expected, found = meta["fingerprint"], fingerprint.of(tree)
  wrong = [path for path in expected if found.get(path) != expected[path]]
  if wrong or len(found) != len(expected):
    raise ValueError(
      f"its fingerprint differs at {', '.join(wrong[:3]) or 'missing leaves'}"
    )
  return tree, meta


def _check_leaves(saved, wanted):
  """Orbax casts another dtype silently, and names no leaf for a shape."""
  saved, wanted = fingerprint.paths(saved), fingerprint.paths(wanted)
  for path in sorted(saved.keys() ^ wanted.keys()):
    where = "in the checkpoint" if path in saved else "in this run's state"
    raise ValueError(f"{path} is only {where}")
  for path, leaf in wanted.items():
    was, now = (
      f"{np.dtype(x.dtype).name} {tuple(x.shape)}" for x in (saved[path], leaf)
    )
    if was != now:
      raise ValueError(f"{path} is {was} in the checkpoint, {now} in this run")
