"""Models by the name of their variant, of whatever architecture."""

from typing import Any

from vitkd_jax.models import cait, variants, vit

Named = vit.ViT | cait.CaiT


def make_model(
  num_classes: int | None = None, *, variant: str, **fields: Any
) -> Named:
  """Builds the linen module of a variant.

  Args:
    num_classes: C; None or 0 for no head.
    variant: as for `vit.Model` and `cait.Model`.
    **fields: of the module; they override the variant's.

  Raises:
    ValueError: an unknown variant or field, or an invalid value.
  """
  if variants.get(variant).family == "CaiT":
    return cait.Model(num_classes, variant=variant, **fields)
  return vit.Model(num_classes, variant=variant, **fields)


def module(variant: str) -> type[Named]:
  """The class of a variant's model.

  Args:
    variant: as for `make_model`.

  Raises:
    ValueError: an unknown variant.
  """
  return cait.CaiT if variants.get(variant).family == "CaiT" else vit.ViT
