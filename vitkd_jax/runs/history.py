"""Keys of a config across starts: which may change, which older runs lack."""

from collections.abc import Callable, Mapping
import hashlib
import json
import re
from typing import Any

import ml_collections

from vitkd_jax.runs import legacy

# "config.data.exif" -> default of that key, None if it has none.
Default = Callable[[str], Any]

# Keys that may change between two starts of one run, as no result depends on
# them.
FREE = (
  "command",
  "config.run.checkpoint_minutes",
  "config.run.keep",
  "config.run.fsdp",
  "config.run.fsdp_teacher",
  "config.run.attention",
  "config.run.max_bad_steps",
  "config.run.step_timeout",
  "config.run.profile_at",
  "config.run.tracker",
  "config.data.data_dir",
  "config.data.cache",
  "config.data.num_workers",
  "config.data.placement",
)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  """{full name of a key: its value} of a config's nested sections.

  Args:
    tree: of dicts; anything else is a value.
    prefix: name of the tree.
  """
  if not isinstance(tree, dict):
    return {prefix: tree}
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    flat |= flatten(value, f"{prefix}.{name}" if prefix else name)
  return flat


def free(name: str) -> bool:
  """Whether a key may change between two starts of one run.

  Args:
    name: full name of the key, such as "config.run.keep".
  """
  return name in FREE or any(x.fullmatch(name) for x in (_PATHS, _INTERVALS))


# The SHA-256 of these weights is compared.
_PATHS = re.compile(r"config\.(teachers\.[^.]+\.weights|student\.init)")

# In steps, epochs, examples or percent.
_INTERVALS = re.compile(
  r"config\.run\.(log|eval|inspect|checkpoint)_every(_\w+)?"
)

# Behaviour of runs from before a key existed, where its default is another.
_BEFORE = {("data", "exif"): True}


def identity(record: Mapping[str, Any]) -> str:
  """A hash of whatever may not change between two starts of one run.

  Args:
    record: the content of config.json.

  Returns:
    64 hexadecimal digits.
  """
  parts = {name: record.get(name) for name in ("config", "teachers", "init")}
  kept = {k: v for k, v in flatten(parts).items() if not free(k)}
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def complete(config: Mapping[str, Any], default: Default) -> dict[str, Any]:
  """A new run's config with the keys that older runs may lack.

  `meant` leaves such a config unchanged.

  Args:
    config: sections of a config.
    default: of a key.
  """
  return _filled(
    config, lambda section, key, _: default(f"config.{section}.{key}")
  )


def meant(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config that states what its run did where older versions had no key.

  Args:
    config: sections of a config, as config.json has them.
  """
  return _filled(legacy.modern(config), lambda section, key, before: before)


def carried_on(
  config: ml_collections.ConfigDict, old: Mapping[str, Any]
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """The config with which a run from before some keys existed resumes.

  Args:
    config: as given for this start.
    old: sections of the config in the workdir, as config.json has them.

  Returns:
    (config, notes): the config, and a sentence for each key that was changed.
  """
  notes = []
  for (section, key), before in _BEFORE.items():
    values = old.get(section)
    if values is None or key in values or section not in config:
      continue
    if config[section].get(key) != before:
      config = config.copy_and_resolve_references()
      with config.unlocked():
        config[section][key] = before
      notes.append(
        f"using config.{section}.{key}={before}, as this run was started "
        "before that key existed; use another workdir for another value"
      )
  return config, notes


def _filled(
  config: Mapping[str, Any], value: Callable[[str, str, Any], Any]
) -> dict[str, Any]:
  config = dict(config)
  for (section, key), before in _BEFORE.items():
    if isinstance(config.get(section), Mapping):
      new = {key: value(section, key, before)}
      config[section] = {**new, **config[section]}
  return config
