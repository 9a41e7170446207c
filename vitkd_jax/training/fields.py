"""The section `student`: model fields, each the variant's unless it is set."""

import typing

import ml_collections

from vitkd_jax.models import vit

# Type of each key of the section `student`, besides the variant's name.
FIELDS = {
  name: (typing.get_args(field.type) or (field.type,))[0]
  for name, field in vit.ViT.__dataclass_fields__.items()
  if name not in ("num_classes", "parent", "name")
} | dict(patch_size=tuple, dtype_mm=str)


def given(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy of the config without the keys of `student` that are not set.

  None stands for the variant's value, except for layerscale_init=None, which
  switches LayerScale off if it is written out rather than left a placeholder.

  Args:
    config: with or without a section `student`.
  """
  plain = config.to_dict()
  student = config.get("student") or ml_collections.ConfigDict()
  for name in FIELDS.keys() & student.keys():
    written = student.get_type(name) is type(None)
    if student[name] is None and not (written and name == "layerscale_init"):
      del plain["student"][name]
  return ml_collections.ConfigDict(plain)
