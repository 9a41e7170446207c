"""Checkpoints of the train state; the only module that imports orbax.

Orbax neither detects a flipped bit nor falls back from a damaged latest step.
So each checkpoint stores a fingerprint of every leaf, and `restore` tries the
steps from the newest to the oldest until one is intact.
"""

from collections.abc import Callable, Iterator
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
from vitkd_jax.runs import fingerprint, legacy_state

_log = logging.getLogger(__name__)
T = TypeVar("T")


class DamagedError(ValueError):
  """Checkpoints exist, but none of them is intact and fits the run."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """The content of a checkpoint.

  Attributes:
    state: the saved tree.
    evaluated: False if the evaluation that was due at its step has not run.
  """

  state: Any
  evaluated: bool


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, which does not poll for preemption notices here.

  It polls with the step as the number, also in the background: JAX would then
  agree on a number that our own polls have passed, and the notice would be
  lost.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


def _as_dict(state: Any) -> Any:
  """The dict of a flax dataclass's fields; other trees unchanged."""
  if not dataclasses.is_dataclass(state):
    return state
  names = [field.name for field in dataclasses.fields(state)]
  return {name: getattr(state, name) for name in names}


class Checkpoints:
  """Saves and restores the states of one run; use it as a context.

  Args:
    directory: folder or URL of the checkpoints, created unless read-only.
    keep: number of newest checkpoints to keep, beside the best one.
    read_only: write and delete nothing, unfinished saves included.
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
    # Orbax accepts a relative path and fails at the next save.
    self._directory = remote.absolute(directory)
    with _without_warnings() if read_only else contextlib.nullcontext():
      self._manager = _Manager(
        self._directory,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=policy,
          # Of killed runs; otherwise a full disk stays full.
          cleanup_tmp_directories=not read_only,
          create=not read_only,
          read_only=read_only,
        ),
        # Named handlers, so that a checkpoint's shapes can be read.
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
    """Starts an asynchronous save; `wait` blocks until it is durable.

    Args:
      step: updates done.
      state: tree of arrays; may be donated at once.
      top1: accuracy in [0, 1] of the evaluation at this step, by which the best
        checkpoint is chosen; None without an evaluation.
      evaluated: False if an evaluation is due at this step and has not run.
    """
    tree = _as_dict(state)
    # Damaged and skipped before, or saved before its evaluation.
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
    """Compiles what `save` needs, as a save before a preemption has no time.

    Args:
      state: tree of arrays, as for `save`.
    """
    fingerprint.of(_as_dict(state))

  def wait(self) -> None:
    """Blocks until the last save is durable; raises if it failed."""
    self._manager.wait_until_finished()

  def busy(self) -> bool:
    """Whether a save is in progress on any process."""
    return self._manager.is_saving_in_progress()

  def steps(self) -> list[int]:
    """The steps of all checkpoints, newest first; some may be damaged."""
    return sorted(self._manager.all_steps(), reverse=True)

  def restore(self, like: Any, state_shardings: Any) -> Restored | None:
    """The newest intact state, or None if there are no checkpoints.

    Args:
      like: tree of ShapeDtypeStructs (`jax.eval_shape`).
      state_shardings: sharding of each leaf, on any mesh.

    Raises:
      DamagedError: there are checkpoints, but none is intact and fits `like`.
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
    tree, meta = self._first_intact(
      steps, lambda step: _restore_intact(self._manager, step, target)
    )
    if dataclasses.is_dataclass(like) and not isinstance(like, type):
      tree = dataclasses.replace(like, **tree)
    return Restored(tree, meta["evaluated"])

  def read(self, choice: str | int) -> tuple[Any, int]:
    """One state as it was saved, and its step.

    Args:
      choice: "latest", "best" (highest top-1), or a step. Where the latest or
        best is damaged, the next one is read.

    Returns:
      (state, step): a tree of arrays on this process's first device, and
      updates done.

    Raises:
      DamagedError: none is intact.
      ValueError: there is no such checkpoint; for "best", none was evaluated.
    """
    steps = self.steps()
    if isinstance(choice, int):
      steps = [step for step in steps if step == choice]
    elif choice == "best":
      found = ((step, self._top1(step)) for step in steps)
      top1 = {step: score for step, score in found if score is not None}
      steps = sorted(top1, key=top1.__getitem__, reverse=True)
    if not steps:
      expected: dict[str | int, str] = {
        "latest": "a checkpoint",
        "best": "an evaluated checkpoint",
      }
      raise ValueError(
        f"expected {expected.get(choice, f'a checkpoint of step {choice}')} in "
        f"{self._directory}, got {self.steps() or 'none'}"
      )
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def read(step):
      target = jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device),
        self._manager.item_metadata(step)["state"].tree,
      )
      return _restore_intact(self._manager, step, target)

    tree, meta = self._first_intact(steps, read)
    return tree, meta["step"]

  def _top1(self, step: int) -> float | None:
    try:
      return _meta(self._manager, step)["top1"]
    except Exception:  # damaged: `_first_intact` warns of it
      return None

  def _first_intact(self, steps: list[int], read: Callable[[int], T]) -> T:
    reason = ""
    for step in steps:
      try:
        return read(step)
      # Damage makes Orbax raise many types, the bare Exception among them.
      except Exception as error:
        reason = reason or first_line(error)
        _log.warning(
          "skipped the damaged checkpoint of step %d in %s: %s",
          step,
          self._directory,
          first_line(error),
        )
    raise DamagedError(
      f"none of the checkpoints {steps} in {self._directory} is intact and "
      f"fits this run ({reason}); restore them from a backup, or start again "
      "in an empty workdir"
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    try:
      self.close()
    except Exception:
      if kind is None:  # a failed save must not hide what ended the run
        raise

  def close(self) -> None:
    """Waits for the last save, and frees the threads."""
    self._manager.close()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
  """Context without Orbax's warning that a read-only manager does not write."""
  logger = absl_logging.get_absl_logger()
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def first_line(error: Exception) -> str:
  """The first line of an error's message, or its type if it has none.

  Args:
    error: any.

  Returns:
    At most 300 characters.
  """
  return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _meta(manager, step):
  return manager.restore(
    step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
  )["meta"]


def _restore_intact(manager, step, target):
  """(state, meta) of one step; raises if it is damaged or does not fit."""
  saved = manager.item_metadata(step)["state"].tree
  old = legacy_state.is_old(saved) and not legacy_state.is_old(target)
  if old:
    target = legacy_state.old(target)
  _check_leaves(saved, target)
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
  return (legacy_state.new(tree) if old else tree), meta


def _check_leaves(saved: Any, target: Any) -> None:
  """Refuses other leaves, shapes or dtypes.

  Orbax casts another dtype silently, and names no leaf where a shape differs.
  """
  saved, target = fingerprint.paths(saved), fingerprint.paths(target)
  for path in sorted(saved.keys() ^ target.keys()):
    where = "in the checkpoint" if path in saved else "in this run's state"
    raise ValueError(f"{path} is only {where}")
  for path, leaf in target.items():
    was, now = (
      f"{np.dtype(x.dtype).name} {tuple(x.shape)}" for x in (saved[path], leaf)
    )
    if was != now:
      raise ValueError(f"{path} is {was} in the checkpoint, {now} in this run")
