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
  adapt,
  big_vision,
  configs,
  files,
  huggingface,
  mmpretrain,
  names,
  reading,
  resolve,
  rules,
  timm,
  torch_files,
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
    file: the path of the file itself; None for a run's checkpoint.
    fields: of `vit.Model`, beyond the variant's: those that were given, and
      those that the file states and no shape tells.
  """

  params: dict[str, Any]
  format: str
  notes: tuple[str, ...]
  num_classes: int | None
  image_size: tuple[int, int]
  file: str | None
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def sha256(self) -> str:
    """Of the file's bytes."""
    return files.sha256(self.file)


@dataclasses.dataclass(frozen=True)
class Content:
  """What a file holds, as it is.

  Attributes:
    leaves: arrays by name: their library's, or ours for a checkpoint.
    name: of the format.
    format: the module that translates the names; None where they are ours.
    metadata: of the file.
    config: the config.json beside it.
    notes: what was done at reading, in sentences.
    file: its path; None for a checkpoint.
  """

  leaves: dict[str, Any]
  name: str
  format: Any = None
  metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()
  file: str | None = None


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
  **fields: Any,
) -> dict[str, Any]:
  """Parameters of a model from a file or folder of any known format.

  What had to be changed (resized position embeddings, a dropped head) is
  logged.

  Args:
    path: a `.safetensors`, `.npz` or `.pth` file, a timm or Hugging Face
      folder, the workdir of a finished run, a `gs://` URL, or `shipped:NAME`
      for a teacher that comes with the package. `runs.students.load` reads
      checkpoints, too.
    variant: the model's name, as `vit.Model` takes it.
    num_classes: C; None or 0 drops the file's head.
    image_size: pixels, side or (rows, columns); by default what the file, the
      folder or the run states, else the variant's.
    head: "keep", or "init" for a new one.
    classes: of the file's classes, those to keep, in order.
    source: the format's name where the keys must not decide.
    which: "student" or "ema" where a file holds both a model and its moving
      average; the average by default.
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
  adopt: bool = True,
  **fields: Any,
) -> Loaded:
  """As `load`, with what was done.

  num_classes "file" keeps the file's head. With `adopt`, fields that are not
  given are the file's where it states them; else they must be as it says.
  """
  variants.get(variant)  # an unknown name is said before a file is read
  path = os.path.expanduser(path)
  return to_model(
    path,
    read(path, which, source),
    variant=variant,
    num_classes=num_classes,
    image_size=image_size,
    head=head,
    classes=classes,
    adopt=adopt,
    **fields,
  )


def to_model(
  path: str,
  content: Content,
  *,
  variant: str,
  num_classes: int | str | None,
  image_size: int | tuple[int, int] | None = None,
  head: str = "keep",
  classes: Sequence[int] | None = None,
  adopt: bool = True,
  **fields: Any,
) -> Loaded:
  """The parameters of a model from what was read; see `load_with_notes`.

  Args:
    path: for messages.
    content: of the file or checkpoint; its leaves are used up.
    variant: the model's name; this and all others are `load_with_notes`'s.
    num_classes: C, None, or "file".
    image_size: pixels, side or (rows, columns).
    head: "keep" or "init".
    classes: of the file's classes, those to keep, in order.
    adopt: take fields that are not given from the file.
    **fields: of `vit.Model`.

  Raises:
    ValueError: the weights do not fit.
  """
  if head not in ("keep", "init"):
    raise ValueError(f"head={head!r}: expected 'keep' or 'init'")
  notes, metadata = [*content.notes], content.metadata
  leaves = dict(content.leaves)
  content.leaves.clear()  # or both forms would be held

  def build(num_classes):
    return vit.Model(num_classes, variant=variant, **{**fields, "scan": False})

  if image_size is None:
    image_size = resolve.image_size(metadata)
    if image_size is None and content.file is not None:
      image_size = resolve.stated(path).image_size
  if image_size is None:
    image_size = variants.get(variant).image_size
    if content.file is None:  # a run that did not state it
      image_size = adapt.image_size(leaves, build(None), image_size)
  if isinstance(image_size, int):
    image_size = (image_size, image_size)

  try:
    said = configs.fields(content.config)
    if content.format is timm:
      said |= configs.pooling(leaves)
    taken, more = configs.settle(said, variant, fields, adopt)
    fields |= taken
    notes += more
    if metadata.get("variant") not in (None, variant):
      notes.append(
        f"the file was written as variant {metadata['variant']!r}, read as "
        f"{variant!r}"
      )
    if content.format is not None:
      leaves, more = _translate(content.format, leaves, build(1), image_size)
      notes += more
    adapt.check_axes(leaves)
    if num_classes == "file":
      count = len(leaves["head/bias"]) if "head/bias" in leaves else None
      num_classes = count if classes is None else len(classes)
    model = build(num_classes)
    wanted = adapt.shapes(model, image_size)
    notes += adapt.position(leaves, wanted, model.grid(*image_size))
    notes += adapt.head(leaves, wanted, head, classes)
    adapt.check(leaves, wanted)
    leaves = adapt.numbers(leaves)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  if fields.get("scan"):
    leaves = big_vision.stack(leaves)
  return Loaded(
    traverse_util.unflatten_dict(leaves, sep="/"),
    content.name,
    tuple(notes),
    num_classes or None,
    image_size,
    content.file,
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
  wanted = adapt.shapes(model, image_size)
  return rules.to_ours(table, kept, wanted, adapt.is_free), notes


def read(path: str, which: str | None, source: str | None) -> Content:
  """What the file of weights that a path stands for holds.

  Raises:
    ValueError: there is none, or it cannot be read.
  """
  file = resolve.find(path)
  exported = os.path.basename(file) == resolve.EXPORTED and file != path
  if exported and which is not None:
    raise ValueError(
      f"which={which!r}: {path!r} is a run's workdir, whose checkpoints "
      "vitkd_jax.runs.students.load reads"
    )
  found = reading.read(file, which)
  average = torch_files.is_average(found.names)
  try:
    wanted, notes = names.strip(list(found.arrays), None if average else which)
    leaves = {name: found.arrays[theirs] for name, theirs in wanted.items()}
    names.check_kind(leaves)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  notes = [*found.notes, *notes]
  if exported:
    notes.append("the student that the run exported")
  format_ = detect(file, leaves, source)
  return Content(
    leaves,
    "flat" if "variant" in found.metadata else format_.NAME,
    format_,
    found.metadata,
    resolve.config_beside(file),
    tuple(notes),
    file,
  )
