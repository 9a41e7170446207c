"""Default values of a config's keys."""

import dataclasses
import inspect
from typing import Any

import ml_collections

from vitkd_jax.data import augment
from vitkd_jax.distill import methods
from vitkd_jax.training import (
  fields,
  method_sections,
  optimizer_section,
  sections,
)

_OWNERS = {
  "student": fields.Own,
  "data": sections.Data,
  "task": sections.Task,
  "schedule": sections.Schedule,
  "run": sections.Run,
}


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A training's config with every weight and optimiser's key written out.

  Args:
    config: as a config file and the command line give it.

  Raises:
    ValueError: an unknown method, term, optimiser or key, or a value out of its
      range.
  """
  config = method_sections.completed(fields.given(config))
  return optimizer_section.completed(config)


def default(name: str) -> Any:
  """The default of a config's key; None where it has none.

  Args:
    name: full name of the key, such as "config.data.exif".
  """
  _, section, key = (*name.split("."), "", "")[:3]
  if section == "augment":
    known = inspect.signature(augment.make_augment).parameters
    found = known[key].default if key in known else None
    return None if found is inspect.Parameter.empty else _plain(found)
  if section == "optimizer":
    common = optimizer_section.COMMON
    found = common[key].default if key in common else None
    return None if found is inspect.Parameter.empty else _plain(found)
  if section in ("methods", "teachers"):
    return _of_named(section, *(*name.split("."), "", "")[2:4])
  if section not in _OWNERS:
    return None
  return _of_dataclass(_OWNERS[section], key)


def _of_named(section: str, name: str, key: str) -> Any:
  """As `default`, of a key of one teacher or method."""
  if section == "teachers":
    return _of_dataclass(sections.Teacher, key)
  kind = methods.METHODS.get(name)
  own = method_sections.keys(kind) if kind else {}
  if key in own:
    return _plain(own[key][0])
  return _of_dataclass(method_sections.Common, key)


def _of_dataclass(kind: Any, key: str) -> Any:
  fields = {field.name: field.default for field in dataclasses.fields(kind)}
  found = fields.get(key)
  return None if found is dataclasses.MISSING else _plain(found)


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value  # as in JSON
