"""The section `student`: model fields, each the variant's unless it is set."""

import typing

import ml_collections

from vitkd_jax.models import vit

# Type of each key of the section `student`, besides the variant's name.
FIELDS = {
  name: (typing.get_args(field.type) or (field.type,))[0]
  for name, field in vit.ViT.__dataclass_fields__.items()
  if name in vit.FIELDS
} | dict(patch_size=tuple, dtype_mm=str)


def given(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy of the config without the model fields that are not set.

  None stands for the variant's value, except for layerscale_init=None, which
  switches LayerScale off if it is written out rather than left a placeholder.

  Args:
    config: with or without the sections `student` and `teachers`.
  """
  plain = config.to_dict()
  teachers = plain.get("teachers")
  names = teachers if isinstance(teachers, dict) else {}
  for path in (["student"], *(["teachers", name, "fields"] for name in names)):
    section, copy = config, plain
    for key in path:
      section, copy = (
        x.get(key) if hasattr(x, "get") else None for x in (section, copy)
      )
    if not isinstance(copy, dict):
      continue
    for name in FIELDS.keys() & copy.keys():
      written = section.get_type(name) is type(None)
      if copy[name] is None and not (written and name == "layerscale_init"):
        del copy[name]
  return ml_collections.ConfigDict(plain)
