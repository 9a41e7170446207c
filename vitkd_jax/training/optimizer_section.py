"""The sections `optimizer`, a name and its keys, and `schedule`."""

from collections.abc import Collection, Mapping
import dataclasses
import inspect
from typing import Any

import ml_collections
import optax

from vitkd_jax import check
from vitkd_jax.training import lengths, optim, optimizers, sections

# Keys of every optimiser, beside its own.
_COMMON = inspect.signature(optim.make_optimizer).parameters
COMMON = {
  name: parameter
  for name, parameter in _COMMON.items()
  if parameter.kind is parameter.KEYWORD_ONLY
}
DEFAULT = COMMON["name"].default


def every_key() -> dict[str, type]:
  """{key: type} of all optimisers."""
  found = dict(COMMON)
  for name in optimizers.OPTIMIZERS:
    found |= optimizers.keys(name)
  return {key: parameter.annotation for key, parameter in found.items()}


def schedule(
  values: Mapping[str, Any], length: lengths.Length
) -> optim.Schedule:
  """The learning rate of a section `schedule`, by step.

  Args:
    values: the section.
    length: of the run.

  Raises:
    ValueError: an unknown key, one that is missing, or a value of another type
      or out of its range.
  """
  config = sections.make(sections.Schedule, "schedule", values)
  values = dataclasses.asdict(config)
  warmup = values.pop("warmup_epochs") * length.per_epoch
  return optim.make_schedule(
    total_steps=length.steps, warmup_steps=round(warmup), **values
  )


def make(
  values: Mapping[str, Any],
  schedule: optim.Schedule,
  depth: int = 0,
  frozen: Collection[str] = (),
) -> optax.GradientTransformation:
  """The optimiser of a section.

  Args:
    values: the section; None stands for a key's default.
    schedule: learning rate by step.
    depth: number of the student's blocks.
    frozen: names of the student's leaves to leave as they are.

  Raises:
    ValueError: an unknown key, one of another optimiser, one that is missing,
      or a value of another type or out of its range.
  """
  return optim.make_optimizer(schedule, depth, frozen, **filled(values))


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config with every key of its optimiser written out.

  Args:
    config: of a training.

  Raises:
    ValueError: as for `make`.
  """
  plain = config.to_dict()
  plain["optimizer"] = filled(plain.get("optimizer") or {})
  return ml_collections.ConfigDict(plain)


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
  """A section with every key of its optimiser and no other.

  Args:
    values: the section.

  Raises:
    ValueError: as for `make`, without the ranges.
  """
  name = values.get("name") or DEFAULT
  known = COMMON | optimizers.keys(name)
  others = every_key()
  found: dict[str, Any] = {"name": name}
  for key, value in values.items():
    if key in known:
      if value is not None:
        found[key] = value
    elif key not in others:
      raise ValueError(
        f"unknown key config.optimizer.{key}; {check.nearest(key, known)}"
      )
    elif value is not None:
      raise ValueError(
        f"config.optimizer.{key}={value!r} is not for {name}, which takes "
        f"{', '.join(known)}"
      )
  for key, parameter in known.items():
    if parameter.default is not parameter.empty:
      found.setdefault(key, parameter.default)
    elif key not in found:
      raise ValueError(f"config.optimizer.{key} is missing")
  sections.check_types(
    "optimizer", found, {key: x.annotation for key, x in known.items()}
  )
  return found
