"""The section `student`: model fields, each the variant's unless it is set."""

from collections.abc import Collection, Mapping
import dataclasses
import typing
from typing import Any

import ml_collections

from vitkd_jax import check
from vitkd_jax.models import vit

# Type of each key of the section `student`, besides the variant's name.
FIELDS = {
  name: (typing.get_args(field.type) or (field.type,))[0]
  for name, field in vit.ViT.__dataclass_fields__.items()
  if name in vit.FIELDS
} | dict(patch_size=tuple, dtype_mm=str)


@dataclasses.dataclass(frozen=True)
class Own:
  """What the section `student` takes beside the fields of its model.

  Attributes:
    init: weights to start from: a file, folder or workdir as for a teacher,
      shipped:NAME or hf:OWNER/NAME; empty for random ones. Position embeddings
      are resized. Its SHA-256 is kept, but the file is not needed to resume
      from a checkpoint.
    init_head: "keep" the head of these weights, which must have the dataset's
      classes, or "init" to draw a new one.
    freeze: patterns of leaves that are not trained, such as "embedding/*" or
      "Transformer/encoderblock_0/**"; "*" stands for anything but "/", "**" for
      anything.
  """

  init: str = ""
  init_head: str = "keep"
  freeze: tuple[str, ...] = ()


# Type of each of these keys.
OWN = {
  field.name: typing.get_origin(field.type) or field.type
  for field in dataclasses.fields(Own)
}


def own(section: Mapping[str, Any]) -> Own:
  """The keys of the section `student` that are not fields of its model.

  Args:
    section: section `student`.

  Raises:
    ValueError: a value is invalid.
  """
  found = {name: section[name] for name in OWN if name in section}
  patterns = found.pop("freeze", ())
  for name, value in found.items():
    if not isinstance(value, str):
      raise ValueError(
        f"expected config.student.{name} to be text, got {value!r}"
      )
  if not isinstance(patterns, list | tuple) or not all(
    isinstance(pattern, str) for pattern in patterns
  ):
    raise ValueError(
      "expected config.student.freeze to be a sequence of patterns, got "
      f"{patterns!r}"
    )
  keys = Own(**found, freeze=tuple(patterns))
  check.known("config.student.init_head", keys.init_head, ("keep", "init"))
  return keys


def model(section: Mapping[str, Any]) -> dict[str, Any]:
  """The variant and the model fields of the section `student`.

  Args:
    section: section `student`.

  Raises:
    ValueError: an unknown key; the message names the nearest.
  """
  for name in section:
    if name not in (*FIELDS, *OWN, "variant", "num_classes"):
      raise ValueError(
        f"unknown model field {name!r}; {check.nearest(name, (*FIELDS, *OWN))}"
      )
  return {name: x for name, x in section.items() if name not in OWN}


def given(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy of the config without the model fields that are not set.

  None stands for the variant's value, except for layerscale_init=None, which
  switches LayerScale off if it is written out rather than left a placeholder.

  Args:
    config: with or without the sections `student` and `teachers`.
  """
  plain = config.to_dict()
  _drop_unset(config.get("student"), plain.get("student"), FIELDS | OWN)
  teachers = plain.get("teachers")
  for name, teacher in teachers.items() if isinstance(teachers, dict) else ():
    if isinstance(teacher, dict):
      section = config.teachers[name].get("fields")
      _drop_unset(section, teacher.get("fields"), FIELDS)
  return ml_collections.ConfigDict(plain)


def _drop_unset(section: Any, copy: Any, names: Collection[str]) -> None:
  """Deletes from a section's copy the keys of these names that are not set."""
  if not isinstance(copy, dict):
    return
  for name in copy.keys() & set(names):
    written = section.get_type(name) is type(None)
    if copy[name] is None and not (written and name == "layerscale_init"):
      del copy[name]
