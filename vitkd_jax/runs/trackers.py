"""Where metrics go beside the console and metrics.jsonl.

A tracker has `scalars` and `close`. Whatever it raises, the run goes on without
it. Names are grouped there by what they are of; metrics.jsonl keeps its own.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, Protocol

from vitkd_jax.runs import events, wandb_run

# Of config.run.tracker, beside TensorBoard's events, which are always written.
NAMES = ("none", "wandb")

# Prefix in metrics.jsonl -> group in a tracker, where the group is not there.
_PREFIXES = {
  "weighted/": "loss/weighted/",
  "grad_norm_": "grad/norm_",
  "grad_norm/": "grad/norm/",
  "grad_cosine/": "grad/cosine/",
  "eval_": "eval/",
}
_WHOLE = {
  "loss": "loss/total",
  "grad_norm": "grad/norm",
  "images_per_second": "speed/images_per_second",
  "data_wait": "speed/data_wait",
  "eta_seconds": "speed/eta_seconds",
}


class Tracker(Protocol):
  """Takes the scalars of one start of a run."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Adds scalars.

    Args:
      step: updates done; never falls.
      values: scalars by name.
    """
    ...

  def close(self) -> None:
    """Writes what is left."""
    ...


def grouped(values: Mapping[str, float]) -> dict[str, float]:
  """Scalars under names such as "loss/vitkd/mimic" and "eval/top1".

  Args:
    values: by the names of metrics.jsonl; a loss term is whatever has a
      weighted form beside it.
  """
  return {_group(name, values): value for name, value in values.items()}


def _group(name: str, values: Mapping[str, float]) -> str:
  if name in _WHOLE:
    return _WHOLE[name]
  if f"weighted/{name}" in values:
    return f"loss/{name}"
  for prefix, group in _PREFIXES.items():
    if name.startswith(prefix):
      return group + name.removeprefix(prefix)
  return name if "/" in name else f"train/{name}"


class Trackers:
  """All trackers of a run; one that fails is left out from then on.

  Args:
    make: {name for users: makes the tracker}.
    tell: prints a line.
  """

  def __init__(
    self,
    make: Mapping[str, Callable[[], Tracker]],
    tell: Callable[[str], None],
  ):
    self._tell, self._open = tell, dict[str, Tracker]()
    for name, maker in make.items():
      made = self._try(name, maker)
      if made is not None:
        self._open[name] = made

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Hands scalars to each tracker.

    Args:
      step: updates done.
      values: scalars by the names of metrics.jsonl.
    """
    named = grouped(values)
    for name, tracker in list(self._open.items()):
      self._try(name, functools.partial(tracker.scalars, step, named))

  def close(self) -> None:
    """Closes each tracker."""
    for name, tracker in list(self._open.items()):
      self._try(name, tracker.close)
    self._open.clear()

  def _try(self, name: str, function: Callable[[], Any]) -> Any:
    try:
      return function()
    except Exception as error:  # of any library
      self._open.pop(name, None)
      first = str(error).strip().partition("\n")[0] or type(error).__name__
      self._tell(f"lost {name} ({first}); the run goes on without it")
      return None


def of(
  tracker: str,
  workdir: str,
  first_step: int,
  config: Mapping[str, Any],
  tell: Callable[[str], None],
) -> Trackers:
  """The trackers of a start of a run.

  Args:
    tracker: of `NAMES`.
    workdir: an existing folder, or a URL.
    first_step: updates done before this start.
    config: of the run.
    tell: prints a line.
  """
  make: dict[str, Callable[[], Tracker]] = {
    "TensorBoard's events": lambda: events.Events(workdir, first_step + 1)
  }
  if tracker == "wandb":
    make["Weights & Biases"] = lambda: wandb_run.Run(workdir, config, tell)
  return Trackers(make, tell)


def missing(tracker: str) -> Sequence[str]:
  """Packages that a tracker needs and that are not installed.

  Args:
    tracker: of `NAMES`.
  """
  return wandb_run.missing() if tracker == "wandb" else ()
