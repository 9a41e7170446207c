"""The section `student`: fields of the model, those not set the variant's."""

import typing

import ml_collections

from vitkd_jax.models import vit

# The type of each key of the section `student`, beside the variant's name.
FIELDS = {
  name: (typing.get_args(field.type) or (field.type,))[0]
  for name, field in vit.ViT.__dataclass_fields__.items()
  if name not in ("num_classes", "parent", "name")
} | dict(patch_size=tuple, dtype_mm=str)


def given(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config without the keys of `student` that nobody set.

  None means the variant's value. Only layerscale_init=None, written as such
  and not left open by a placeholder, is a value: no LayerScale.
  """
  plain = config.to_dict()
  student = config.get("student") or ml_collections.ConfigDict()
  for name in FIELDS.keys() & student.keys():
    written = student.get_type(name) is type(None)
    if student[name] is None and not (written and name == "layerscale_init"):
      del plain["student"][name]
  return ml_collections.ConfigDict(plain)
