"""Reads any known file into the parameters of a model."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import re
from typing import Any

from absl import logging
from flax import traverse_util

from vitkd_jax.models import variants, vit
from vitkd_jax.weights import (
  big_vision,
  configs,
  files,
  fit,
  huggingface,
  mmpretrain,
  names,
  places,
  reading,
  rules,
  timm,
  torch_files,
  workdirs,
)

FORMATS = (timm, mmpretrain, huggingface, big_vision)


@dataclasses.dataclass(frozen=True)
class Loaded:
  """What a file gave.

  Attributes:
    params: nested parameters, NumPy float32.
    format: the name of the format that the file is in.
    notes: what was changed on the way, in sentences.
    num_classes: C of the head, None without one.
    image_size: rows and columns in pixels that the parameters are for.
    file: the path of the file itself; None for a checkpoint of ours.
    fields: of `vit.Model`, beyond the variant's: those that were given, and
      those that the file states and no shape tells.
    saved: what was taken of a run's checkpoints; None for a file.
  """

  params: dict[str, Any]
  format: str
  notes: tuple[str, ...]
  num_classes: int | None
  image_size: tuple[int, int]
  file: str | None
  saved: workdirs.Saved | None = None
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def sha256(self) -> str:
    """Of the file's bytes, or of a checkpoint's parameters."""
    return self.saved.sha256 if self.saved else files.sha256(self.file)


def load(
  path: str | os.PathLike,
  *,
  variant: str,
  num_classes: int | None,
  image_size: int | tuple[int, int] | None = None,
  head: str = "keep",
  classes: Sequence[int] | None = None,
  source: str | None = None,
  which: str | None = None,
  step: str | int | None = None,
  **fields: Any,
) -> dict[str, Any]:
  """Parameters of a model from a file or folder of any known format.

  What had to be changed (resized position embeddings, a dropped head) is
  logged.

  Args:
    path: a `.safetensors`, `.npz` or `.pth` file, a timm, Hugging Face or
      work folder, one of our checkpoints, a `gs://` URL, or `shipped:NAME` for
      a teacher that comes with the package.
    variant: the model's name, as `vit.Model` takes it.
    num_classes: C; None or 0 drops the file's head.
    image_size: pixels, side or (rows, columns); by default what the file, the
      folder or the run states, else the variant's.
    head: "keep", or "init" for a new one.
    classes: of the file's classes, those to keep, in order.
    source: the format's name where the keys must not decide.
    which: "student" or "ema" of a workdir's checkpoint; by default what
      `workdirs` says.
    step: of the checkpoint: "latest", "best" (of the highest top-1) or a
      number; by default the student that the run exported, else the latest.
    **fields: further fields of `vit.Model`.

  Returns:
    Nested parameters for `vit.Model(num_classes, variant=variant, **fields)`:
    NumPy float32, on the host.

  Raises:
    ValueError: the file is unreadable or its weights do not fit; the sentence
      names the file and the leaf.
  """
  loaded = load_with_notes(
    path,
    adopt=False,
    variant=variant,
    num_classes=num_classes,
    image_size=image_size,
    head=head,
    classes=classes,
    source=source,
    which=which,
    step=step,
    **fields,
  )
  for note in loaded.notes:
    logging.info("%s: %s", path, note)
  return loaded.params


def load_with_notes(
  path: str | os.PathLike,
  *,
  variant: str,
  num_classes: int | str | None,
  image_size: int | tuple[int, int] | None = None,
  head: str = "keep",
  classes: Sequence[int] | None = None,
  source: str | None = None,
  which: str | None = None,
  step: str | int | None = None,
  adopt: bool = True,
  **fields: Any,
) -> Loaded:
  """As `load`, with what was done.

  num_classes "file" keeps the file's head. With `adopt`, fields that are not
  given are the file's where it states them; else they must be as it says.
  """
  if head not in ("keep", "init"):
    raise ValueError(f"head={head!r}: wanted 'keep' or 'init'")
  workdirs.check(which, step)
  variants.get(variant)  # an unknown name is said before a file is read
  path = os.path.expanduser(path)
  file = places.find(path, saved=(which, step) != (None, None))
  notes, config, metadata, saved = [], {}, {}, None
  if file is None:
    leaves, saved = workdirs.read(path, which, step)
    notes.append(saved.note)
    name = "checkpoint"
  else:
    leaves, metadata, more = _read(path, file, which, step)
    notes += more
    if workdirs.is_export(file) and file != path:
      notes.append("the student that the run exported")
    config = places.config_beside(file)
    format_ = detect(file, leaves, source)
    name = "flat" if "variant" in metadata else format_.NAME

  def build(num_classes):
    return vit.Model(num_classes, variant=variant, **{**fields, "scan": False})

  if image_size is None:
    image_size = places.image_size(metadata) or places.stated(path).image_size
  if image_size is None:
    image_size = variants.get(variant).image_size
    if file is None:  # a run that did not state it
      image_size = fit.image_size(leaves, build(None), image_size)
  if isinstance(image_size, int):
    image_size = (image_size, image_size)

  try:
    said = configs.fields(config)
    if file is not None and format_ is timm:
      said |= configs.pooling(leaves)
    taken, more = configs.settle(said, variant, fields, adopt)
    fields |= taken
    notes += more
    if metadata.get("variant") not in (None, variant):
      notes.append(
        f"the file was written as variant {metadata['variant']!r}, read as "
        f"{variant!r}"
      )
    if file is not None:
      leaves, more = _translate(format_, leaves, build(1), image_size)
      notes += more
    fit.check_axes(leaves)
    if num_classes == "file":
      count = len(leaves["head/bias"]) if "head/bias" in leaves else None
      num_classes = count if classes is None else len(classes)
    model = build(num_classes)
    wanted = fit.shapes(model, image_size)
    notes += fit.position(leaves, wanted, model.grid(*image_size))
    notes += fit.head(leaves, wanted, head, classes)
    fit.check(leaves, wanted)
    leaves = fit.numbers(leaves)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  if fields.get("scan"):
    leaves = big_vision.stack(leaves)
  return Loaded(
    traverse_util.unflatten_dict(leaves, sep="/"),
    name,
    tuple(notes),
    num_classes or None,
    image_size,
    file,
    saved,
    fields,
  )


def detect(path: str, leaves: Mapping[str, Any], source: str | None):
  """The module of the format that the names are in.

  Raises:
    ValueError: none fits, or `source` names none.
  """
  for module in FORMATS:
    if source == module.NAME or (source is None and module.matches(leaves)):
      return module
  known = ", ".join(module.NAME for module in FORMATS)
  if source is not None:
    raise ValueError(f"unknown format {source!r}: wanted one of {known}")
  raise ValueError(
    f"{path}: the names in the file are no ViT's of {known}; it begins with "
    + rules.some(sorted(leaves))
  )


def _translate(format_, source, model, image_size):
  """A file's leaves under our names; (leaves, notes)."""
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
    notes.append(f"left out, as no part of the model: {rules.some(dropped)}")
  table = format_.RULES
  if format_ is huggingface:
    kept, table = huggingface.clean(kept), huggingface.table(kept)
  wanted = fit.shapes(model, image_size)
  return rules.to_ours(table, kept, wanted, fit.is_free), notes


def _read(path, file, which, step):
  """A file's leaves under its library's own names; metadata, and notes."""
  if step is not None:
    raise ValueError(
      f"step={step!r} needs a workdir with checkpoints, got {path!r}"
    )
  content = reading.read(file, which)
  average = torch_files.is_average(content.names)
  try:
    found, notes = names.strip(list(content.arrays), None if average else which)
    leaves = {name: content.arrays[theirs] for name, theirs in found.items()}
    names.check_kind(leaves)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  return leaves, content.metadata, [*content.notes, *notes]
