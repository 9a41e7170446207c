"""Default values of a config's keys."""

import dataclasses
import inspect
from typing import Any

from vitkd_jax.data import augment
from vitkd_jax.training import sections

_OWNERS = {
  "data": sections.Data,
  "teacher": sections.Teacher,
  "head": sections.Head,
  "logits": sections.Logits,
  "schedule": sections.Schedule,
  "run": sections.Run,
}


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
  if section not in _OWNERS:
    return None
  fields = {f.name: f.default for f in dataclasses.fields(_OWNERS[section])}
  found = fields.get(key)
  return None if found is dataclasses.MISSING else _plain(found)


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value  # as in JSON
