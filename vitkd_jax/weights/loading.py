"""Reads files of any known format into the parameters of a model."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

from absl import logging
from flax import traverse_util

from vitkd_jax import check
from vitkd_jax.models import backbones, fitting, variants
from vitkd_jax.weights import (
  adapt,
  configs,
  files,
  formats,
  hub,
  names,
  opening,
  reading,
  resolve,
  timm,
  torch_files,
)


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Parameters from a file.

  Attributes:
    params: nested parameters, NumPy float32.
    format: name of the file's format.
    notes: sentences on what was changed.
    num_classes: C of the head; None without one.
    image_size: rows and columns in pixels that the parameters are for.
    file: path of the file itself; None for a run's checkpoint.
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
    """The hash of the file."""
    assert self.file is not None  # checkpoints override this
    return files.sha256(self.file)


@dataclasses.dataclass(frozen=True)
class Content:
  """The content of a file or checkpoint.

  Attributes:
    leaves: arrays by name: the library's names, or ours for a checkpoint.
    name: of the format.
    format: module that translates the names; None if they are ours.
    metadata: of the file.
    config: content of the config.json beside the file.
    notes: sentences on what was chosen while reading.
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

  Changes, such as resized position embeddings or a dropped head, are logged.

  Args:
    path: a `.safetensors`, `.npz` or `.pth` file, a timm or Hugging Face
      folder, the workdir of a finished run, a checkpoint of big_vision's (see
      `bv_steps.find`), a `gs://` URL, `shipped:NAME` for a teacher that comes
      with the package, or `hf:OWNER/NAME[@REVISION]` for a
      repository of the Hugging Face hub. `runs.students.load` also reads
      checkpoints.
    variant: name of the model, as for `vit.Model`.
    num_classes: C; None or 0 drops the file's head.
    image_size: side or (rows, columns) in pixels; by default as the file, the
      folder or the run states, else the variant's.
    head: "keep", or "init" for a new one.
    classes: indices of the file's classes to keep, in order; None for all.
    source: name of the format; None detects it from the names of the leaves.
    which: "student" or "ema" if a file has both a model and its moving
      average; None for the default of `torch_files.read`.
    **fields: further fields of `vit.Model`.

  Returns:
    Nested parameters for `backbones.make_model(num_classes, variant=variant,
    **fields)`: NumPy float32, on the host.

  Raises:
    ValueError: the file cannot be read, or its weights do not fit the model;
      the message names the file and the leaf.
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
  which: str | None = None,
  source: str | None = None,
  **options: Any,
) -> Loaded:
  """As `load`, with notes instead of a log.

  Args:
    path: as for `load`.
    variant: name of the model.
    which: as for `load`.
    source: as for `load`.
    **options: of `to_model`.

  Raises:
    ValueError: as for `load`.
  """
  variants.get(variant)  # refuse an unknown name before reading
  path = hub.local(path)
  file = resolve.find(path)
  if which is not None and opening.is_folder(os.path.join(path, "checkpoints")):
    raise ValueError(
      f"which={which!r} needs a checkpoint, but {path!r} is the workdir of a "
      "finished run; read it with vitkd_jax.runs.students.load"
    )
  return of_file(path, file, which, source, variant=variant, **options)


def of_file(
  path: str, file: str, which: str | None, source: str | None, **options: Any
) -> Loaded:
  """The parameters of a model from a file.

  Names and shapes are judged before any array is read, where the file begins
  with them.

  Args:
    path: that stands for the file, for messages.
    file: see `resolve.find`.
    which: as for `load`.
    source: as for `load`.
    **options: of `to_model`.

  Raises:
    ValueError: the file cannot be read, or its weights do not fit the model.
  """
  zeros = reading.blank(file)
  if zeros is not None and zeros.arrays:
    to_model(path, _content(path, file, zeros, which, source), **options)
  found = reading.read(file, which)
  return to_model(path, _content(path, file, found, which, source), **options)


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
  """The parameters of a model from the content of a file or checkpoint.

  Args:
    path: for messages.
    content: to adapt; its leaves are consumed.
    variant: name of the model.
    num_classes: C; None or 0 drops the head; "file" keeps the content's.
    image_size: as for `load`.
    head: as for `load`.
    classes: as for `load`.
    adopt: take fields that are not given from the file, if it states them;
      otherwise it must not contradict the variant's.
    **fields: further fields of `vit.Model`.

  Raises:
    ValueError: the weights do not fit the model.
  """
  check.known("head", head, ("keep", "init"))
  notes, metadata = [*content.notes], content.metadata
  leaves = dict(content.leaves)
  content.leaves.clear()  # otherwise both forms would be in memory

  def build(num_classes: int | None) -> backbones.Named:
    return backbones.make_model(
      num_classes, variant=variant, **{**fields, "scan": False}
    )

  if image_size is None:
    image_size = resolve.image_size(metadata)
    if image_size is None and content.file is not None:
      image_size = resolve.stated(path).image_size
  if image_size is None:
    image_size = variants.get(variant).image_size
    if content.file is None:  # an older run does not state it
      image_size = adapt.image_size(leaves, build(None), image_size)
  if isinstance(image_size, int):
    image_size = (image_size, image_size)

  try:
    formats.check_family(content.format, leaves, variant)
    said = configs.fields(content.config)
    if content.format is timm:
      said |= configs.pooling(leaves)
    taken, more = configs.settle(said, variant, fields, adopt)
    fields |= taken
    notes += more
    if metadata.get("variant") not in (None, variant):
      notes.append(
        f"the file was written as variant {metadata['variant']!r} and is read "
        f"as {variant!r}"
      )
    if content.format is not None:
      leaves, more = formats.translate(
        content.format, leaves, build(1), image_size
      )
      notes += more
    adapt.check_axes(leaves)
    if num_classes == "file":
      count = len(leaves["head/bias"]) if "head/bias" in leaves else None
      num_classes = count if classes is None else len(classes)
    assert not isinstance(num_classes, str)
    model = build(num_classes)
    expected = adapt.shapes(model, image_size)
    notes += fitting.position(leaves, expected, model.grid(*image_size))
    notes += adapt.head(leaves, expected, head, classes)
    adapt.check(leaves, expected)
    leaves = adapt.numbers(leaves)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  if fields.get("scan"):
    leaves = fitting.stack(leaves)
  return Loaded(
    traverse_util.unflatten_dict(leaves, sep="/"),
    content.name,
    tuple(notes),
    num_classes or None,
    image_size,
    content.file,
    fields,
  )


def _content(
  path: str,
  file: str,
  found: reading.Content,
  which: str | None,
  source: str | None,
) -> Content:
  """What was found in a file, with the names of one model."""
  average = torch_files.is_average(found.names)
  try:
    own, notes = names.strip(list(found.arrays), None if average else which)
    leaves = {name: found.arrays[theirs] for name, theirs in own.items()}
    names.check_kind(leaves)
    format_ = formats.detect(leaves, source)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  notes = [*found.notes, *notes]
  if os.path.basename(file) == resolve.EXPORTED and file != path:
    notes.append("the student that the run exported")
  return Content(
    leaves,
    "flat" if "variant" in found.metadata else format_.NAME,
    format_,
    found.metadata,
    resolve.config_beside(file),
    tuple(notes),
    file,
  )
