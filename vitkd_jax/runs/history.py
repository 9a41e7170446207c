"""Keys of a config from run to run: which may change, which an older lacks."""

from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

# A key like "config.data.exif" -> its default, None where it has none.
Default = Callable[[str], Any]

# What may change between two starts of one run: it changes no result.
FREE = (
  "command",
  "config.run.log_every",
  "config.run.eval_every",
  "config.run.checkpoint_every",
  "config.run.checkpoint_minutes",
  "config.run.keep",
  "config.run.fsdp",
  "config.run.fsdp_teacher",
  "config.run.max_bad_steps",
  "config.run.step_timeout",
  "config.run.profile_at",
  "config.data.data_dir",
  "config.data.cache",
  "config.data.num_workers",
  "config.teacher.weights",  # their SHA-256 is compared
)

# What runs did before there was the key, where that is not its default now.
_BEFORE = {("data", "exif"): True}


def complete(config: Mapping[str, Any], default: Default) -> dict[str, Any]:
  """A config with every key that once was not there: `meant` leaves it be."""
  return _filled(
    config, lambda section, key, _: default(f"config.{section}.{key}")
  )


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
