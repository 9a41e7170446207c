"""Intervals in other units than steps, named as big_vision names durations."""

import dataclasses
import math
from typing import TypeVar

from vitkd_jax.training import lengths

_KEYS = ("log_every", "eval_every", "inspect_every", "checkpoint_every")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
  """Intervals in place of those in steps; None leaves the one in steps.

  Attributes:
    log_every_epochs: as log_every, in passes over the training split.
    log_every_examples: as log_every, in images.
    log_every_percent: as log_every, a share of the run.
    eval_every_epochs: as eval_every, in passes over the training split.
    eval_every_examples: as eval_every, in images.
    eval_every_percent: as eval_every, a share of the run.
    inspect_every_epochs: as inspect_every, in passes over the training split.
    inspect_every_examples: as inspect_every, in images.
    inspect_every_percent: as inspect_every, a share of the run.
    checkpoint_every_epochs: as checkpoint_every, in passes over the split.
    checkpoint_every_examples: as checkpoint_every, in images.
    checkpoint_every_percent: as checkpoint_every, a share of the run.
  """

  log_every_epochs: float | None = None
  log_every_examples: float | None = None
  log_every_percent: float | None = None
  eval_every_epochs: float | None = None
  eval_every_examples: float | None = None
  eval_every_percent: float | None = None
  inspect_every_epochs: float | None = None
  inspect_every_examples: float | None = None
  inspect_every_percent: float | None = None
  checkpoint_every_epochs: float | None = None
  checkpoint_every_examples: float | None = None
  checkpoint_every_percent: float | None = None


R = TypeVar("R", bound=Every)


def in_steps(run: R, length: lengths.Length) -> R:
  """The section with every interval in steps, at least one where it is not 0.

  Args:
    run: the section.
    length: of the run.

  Raises:
    ValueError: an interval is given in two units, or is out of its range.
  """
  scales = {
    "epochs": length.per_epoch,
    "examples": 1 / length.batch_size,
    "percent": length.steps,
  }
  found = {}
  for key in _KEYS:
    units = {
      f"{key}_{unit}": (value, scale)
      for unit, scale in scales.items()
      if (value := getattr(run, f"{key}_{unit}")) is not None
    }
    if len(units) > 1:
      first, second = (f"config.run.{name}" for name in [*units][:2])
      raise ValueError(f"expected either {first} or {second}, got both")
    for name, (value, scale) in units.items():
      _check(name, value)
      found[key] = max(1, round(value * scale)) if value else 0
  return dataclasses.replace(run, **found)


def _check(name: str, value: float) -> None:
  most = 1.0 if name.endswith("_percent") else math.inf
  if 0 < value <= most or (value == 0 and not name.startswith("log_")):
    return
  least = "0 <" if name.startswith("log_") else "0 <="
  end = f" <= {most:g}, a share of the run" if most == 1 else ""
  raise ValueError(f"expected {least} config.run.{name}{end}, got {value:g}")
