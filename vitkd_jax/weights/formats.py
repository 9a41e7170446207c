"""The formats of other libraries: a module each, with names and shapes."""

from collections.abc import Iterable, Mapping
import re
from typing import Any

import numpy as np

from vitkd_jax import check
from vitkd_jax.models import backbones, cait, variants
from vitkd_jax.weights import (
  adapt,
  big_vision,
  huggingface,
  mmpretrain,
  rules,
  timm,
)

FORMATS = (timm, mmpretrain, huggingface, big_vision)


def detect(leaves: Mapping[str, Any], source: str | None) -> Any:
  """The module of a format.

  Args:
    leaves: of a file, by name.
    source: name of the format; None detects it from the names of the leaves.

  Raises:
    ValueError: no format fits, or the name is unknown.
  """
  modules = {module.NAME: module for module in FORMATS}
  if source is not None:
    check.known("format", source, modules)
    return modules[source]
  for module in FORMATS:
    if module.matches(leaves):
      return module
  raise ValueError(
    f"expected the names of a ViT of {', '.join(modules)}, got "
    + rules.some(sorted(leaves))
  )


def check_family(format_: Any, names: Iterable[str], variant: str) -> None:
  """Refuses another library's weights of another architecture.

  Args:
    format_: module of the file's format; None for our names.
    names: of the file's leaves.
    variant: name of the model that they are read into.

  Raises:
    ValueError: they are of another family than the variant.
  """
  if format_ in (None, big_vision):
    return  # the variant is stated, or unknown leaves tell
  found = "CaiT" if format_ is timm and timm.is_cait(names) else "ViT"
  expected = variants.get(variant).family
  if found != expected:
    raise ValueError(
      f"expected weights of a {expected} for variant {variant!r}, got those of "
      f"a {found}; give the variant that the weights are for"
    )


def translate(
  format_: Any,
  source: dict[str, np.ndarray],
  model: backbones.Named,
  image_size: tuple[int, int],
) -> tuple[dict[str, np.ndarray], list[str]]:
  """A file's leaves under our names.

  Args:
    format_: module of the file's format.
    source: arrays by the file's names.
    model: for the shapes of its leaves.
    image_size: rows and columns in pixels.

  Returns:
    (leaves, notes): arrays by our names, and sentences on what was dropped.

  Raises:
    ValueError: leaves are missing, unknown, or of another shape.
  """
  if format_ is big_vision:
    return big_vision.clean(source), []
  notes, kept, dropped = [], {}, []
  for name, array in source.items():
    for pattern, new in format_.RENAMES:
      name = re.sub(pattern, new, name)
    if re.match(format_.UNUSED, name):
      dropped.append(name)
    else:
      kept[name] = array
  if dropped:
    notes.append(f"ignored, as not part of the model: {rules.some(dropped)}")
  table = timm.CAIT_RULES if isinstance(model, cait.CaiT) else format_.RULES
  if format_ is huggingface:
    kept, table = huggingface.clean(kept), huggingface.table(kept)
  expected = adapt.shapes(model, image_size)
  return rules.to_ours(table, kept, expected, adapt.is_free), notes
