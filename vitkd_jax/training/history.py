"""What the keys mean that the config.json of an older run lacks."""

from collections.abc import Mapping
import dataclasses
import inspect
from typing import Any

import ml_collections

from vitkd_jax.data import augment
from vitkd_jax.training import sections

# What runs did before there was the key, where that is not its default now.
_BEFORE = {("data", "exif"): True}

_OWNERS = {
  "data": sections.Data,
  "teacher": sections.Teacher,
  "head": sections.Head,
  "logits": sections.Logits,
  "schedule": sections.Schedule,
  "run": sections.Run,
}


def default(name: str) -> Any:
  """Of a key like "config.data.exif"; None where it has none."""
  _, section, key = (*name.split("."), "", "")[:3]
  if section == "augment":
    known = inspect.signature(augment.make_augment).parameters
    found = known[key].default if key in known else None
    return None if found is inspect.Parameter.empty else _plain(found)
  if section not in _OWNERS:
    return None
  fields = {f.name: f.default for f in dataclasses.fields(_OWNERS[section])}
  found = fields.get(key)
  return None if found is dataclasses.MISSING else _plain(found)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config with every key that once was not there: `meant` leaves it be."""
  return _filled(config, lambda section, key, _: default(f".{section}.{key}"))


def meant(config: Mapping[str, Any]) -> dict[str, Any]:
  """An older run's config with what it did where it lacks a key."""
  return _filled(config, lambda section, key, before: before)


def carried_on(
  config: ml_collections.ConfigDict, old: Mapping[str, Any]
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """A run's config where it goes on as an older one, and sentences on that.

  Args:
    config: as it is given.
    old: the config in the workdir, as it was written.
  """
  notes = []
  for (section, key), before in _BEFORE.items():
    if section not in old or key in old[section] or section not in config:
      continue
    if config[section].get(key) != before:
      config = config.copy_and_resolve_references()
      with config.unlocked():
        config[section][key] = before
      notes.append(
        f"config.{section}.{key}={before}: so this run was started, before"
        " there was the key; another workdir takes another value"
      )
  return config, notes


def _filled(config, value):
  config = dict(config)
  for (section, key), before in _BEFORE.items():
    if isinstance(config.get(section), Mapping):
      new = {key: value(section, key, before)}
      config[section] = {**new, **config[section]}
  return config


def _plain(value):
  return list(value) if isinstance(value, tuple) else value  # as JSON has it
