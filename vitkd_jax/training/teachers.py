"""The frozen teacher: its model and its parameters."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.data import datasets
from vitkd_jax.distill import parts
from vitkd_jax.evaluation import scoring
from vitkd_jax.models import backbones, checks, protocol, variants
from vitkd_jax.models.function import Function
from vitkd_jax.runs import students
from vitkd_jax.training import outside, sections
from vitkd_jax.weights import resolve


@dataclasses.dataclass(frozen=True)
class Pin:
  """Which weights a run learns from, so that each of its starts finds them.

  Attributes:
    sha256: hash of the file, or of the parameters in a checkpoint; None if
      unknown.
    step: step of the checkpoint, where the teacher is a run without an export;
      None for a file.
  """

  sha256: str | None = None
  step: int | None = None

  def __str__(self) -> str:
    step = "" if self.step is None else f"step {self.step}, "
    return f"{step}SHA-256 {(self.sha256 or 'unknown')[:12]}"


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A frozen teacher.

  Attributes:
    model: applies `params`.
    params: parameters in the teacher's dtype; shapes where nothing was read.
    stats: mean and std of its images in [0, 1].
    fields: of the model, beside the variant's.
    class_names: that its weights state.
    pin: which weights they are.
    notes: what was read and changed at loading, in sentences.
  """

  model: protocol.Backbone
  params: Any
  stats: parts.Stats
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  class_names: Sequence[str] | None = None
  pin: Pin = Pin()
  notes: tuple[str, ...] = ()


def make(
  name: str,
  config: sections.Teacher,
  num_classes: int | None,
  image_size: tuple[int, int],
  *,
  from_file: bool,
) -> Teacher:
  """A teacher before its weights are read; one of one's own, with them.

  Args:
    name: of the teacher in the config.
    config: its section.
    num_classes: C; None without a head.
    image_size: (H, W) in pixels of the images that it gets.
    from_file: take the fields that its weights state.

  Raises:
    ValueError: the variant or a field is unknown, its patches do not divide the
      images, or what `config.build` names is not of that form.
  """
  if config.build:
    built, params = _build(name, config, image_size)
    checks.check_patches(f"teacher {name}", built.patch_size, *image_size)
    return Teacher(built, params, _stats(config, built))
  said = students.stated(config.weights) if from_file else resolve.Stated()
  fields = _used(said, config.variant) | (config.fields or {})
  try:
    model = backbones.make_model(num_classes, variant=config.variant, **fields)
  except ValueError as error:
    raise ValueError(f"config.teachers.{name}: {error}") from None
  checks.check_patches(f"teacher {name}", model.patch_size, *image_size)
  # Another library's weights may have been trained with their own.
  stats = _stats(config, said.preprocess or variants.get(config.variant))
  return Teacher(model, None, stats, fields, said.class_names)


def _stats(config: sections.Teacher, default: Any) -> parts.Stats:
  return config.mean or default.mean, config.std or default.std


# Fields of a student that change nothing of a frozen model, or that `frozen`
# sets.
_OF_TRAINING = ("scan", "remat_policy", "drop_path", "dropout", "dtype_mm")


def _used(said: resolve.Stated, variant: str) -> dict[str, Any]:
  """The fields that weights state of a model of this variant."""
  if said.variant != variant:
    return {}
  return {k: v for k, v in said.fields.items() if k not in _OF_TRAINING}


def _build(
  name: str, config: sections.Teacher, image_size: tuple[int, int]
) -> tuple[Function, Any]:
  key = f"config.teachers.{name}.build"
  function = outside.find(key, config.build)
  try:
    found = function(config.weights, image_size, **(config.fields or {}))
  except Exception as error:  # it raises what it likes
    raise ValueError(f"{key}: {outside.said(error)}") from error
  if (
    not isinstance(found, tuple)
    or len(found) != 2
    or not isinstance(found[0], Function)
  ):
    got = type(found).__name__
    if isinstance(found, tuple):
      got += f" of {', '.join(type(x).__name__ for x in found)}"
    raise ValueError(
      f"expected {key} to return (models.function.Function, parameters), got "
      f"{got}"
    )
  model, params = found
  try:
    return model.counted(params, image_size), params
  except Exception as error:
    raise ValueError(f"{key}: {outside.said(error)}") from error


def load(
  name: str,
  config: sections.Teacher,
  made: Teacher,
  info: datasets.Info,
  image_size: tuple[int, int],
  by_logits: Sequence[str] = (),
  pinned: Pin | None = None,
) -> Teacher:
  """A teacher of a config with its parameters.

  Its classes may differ from the dataset's where no method compares logits.

  Args:
    name: of the teacher in the config.
    config: its section.
    made: from `make`.
    info: dataset description.
    image_size: (H, W) in pixels of the images that it gets.
    by_logits: methods that compare logits with it.
    pinned: the weights that the run's first start took; of a teacher's
      checkpoints the same step is read, even if there are newer ones.

  Raises:
    ValueError: the file cannot be read, or its resolution or its number of
      classes is another.
  """
  if config.build:
    leaves = jax.tree_util.tree_leaves_with_path(made.params)
    pin = Pin(
      students.sha256(
        {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
      )
    )
    _check_classes(made.model.num_classes, config.build, by_logits, info)
    frozen, params = made.model.frozen(made.params, config.dtype)
    return dataclasses.replace(made, model=frozen, params=params, pin=pin)
  step = pinned.step if pinned else None
  loaded = _read(config, made.fields, image_size, step)
  _check_classes(loaded.num_classes, config.weights, by_logits, info)
  _check_resolution(name, config, loaded.notes, image_size)
  model = backbones.make_model(
    loaded.num_classes, variant=config.variant, **loaded.fields
  )
  frozen, params = model.frozen(loaded.params, config.dtype)
  notes = loaded.notes
  if by_logits:
    notes += scoring.compare_classes(
      f"the teacher {config.weights}", made.class_names, info
    )
  if loaded.saved:
    notes += (
      "this run reads that checkpoint again to resume; if the teacher still "
      "trains and may delete it, keep a copy and learn from that: "
      f"python -m vitkd_jax.convert --weights {config.weights} --step "
      f"{loaded.saved.step} --to flat --output teacher.safetensors",
    )
  pin = _pin(loaded, pinned)
  return dataclasses.replace(
    made, model=frozen, params=params, pin=pin, notes=notes
  )


def _read(
  config: sections.Teacher,
  fields: Mapping[str, Any],
  image_size: tuple[int, int],
  step: int | None,
) -> students.Loaded:
  """The weights as they are, those of a given step if it is a checkpoint."""
  path = config.weights
  if step is not None and students.find(path, saved=True) is not None:
    step = None  # a file, whose hash tells whether it is the pinned one
  try:
    return students.load(
      path,
      variant=config.variant,
      num_classes="file",
      image_size=image_size,
      step=step,
      **fields,
    )
  except ValueError as error:
    if step is None:
      raise
    raise ValueError(
      f"this run learns from step {step} of the teacher {path}, which cannot "
      f"be read: {error}; restore that checkpoint, or start a new run in "
      "another workdir"
    ) from None


def _pin(loaded: students.Loaded, pinned: Pin | None) -> Pin:
  if loaded.saved is not None:
    return Pin(loaded.saved.sha256, loaded.saved.step)
  if pinned is not None and pinned.step is not None:
    # The checkpoint may have been converted to a file since.
    leaves = traverse_util.flatten_dict(loaded.params, sep="/")
    if students.sha256(leaves) == pinned.sha256:
      return pinned
  return Pin(loaded.sha256())


def plan(
  config: sections.Teacher, made: Teacher, image_size: tuple[int, int]
) -> Teacher:
  """A teacher of a config as shapes; reads no weights but for `build`.

  Args:
    config: its section.
    made: from `make`, with the dataset's classes.
    image_size: (H, W) in pixels of the images that it gets.
  """
  model = frozen = made.model

  def freeze(params: Any) -> Any:
    nonlocal frozen
    frozen, params = model.frozen(params, config.dtype)
    return params

  params = made.params
  if params is None:
    hashable: Any = model
    params = _initial_shapes(hashable, image_size)
  params = jax.eval_shape(freeze, params)
  return dataclasses.replace(made, model=frozen, params=params)


# A lab plans many trainings with one teacher, and tracing takes seconds.
@functools.lru_cache(maxsize=8)
def _initial_shapes(model: Any, image_size: tuple[int, int]) -> Any:
  image = jnp.zeros((1, *image_size, 3))
  return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def _check_classes(
  found: int | None, where: str, by_logits: Sequence[str], info: datasets.Info
) -> None:
  if by_logits and found != info.num_classes:
    raise ValueError(
      f"expected a teacher of {info.name}'s {info.num_classes} classes for the "
      f"logits of {', '.join(by_logits)}, got {found or 'no'} classes in "
      f"{where}; use another teacher, or token maps alone (method=vitkd)"
    )


def _check_resolution(
  name: str,
  config: sections.Teacher,
  notes: Sequence[str],
  image_size: tuple[int, int],
) -> None:
  """Refuses a teacher of another resolution unless the config accepts it."""
  resized = [note for note in notes if "position embedding" in note]
  if resized and not config.resize_posemb:
    raise ValueError(
      f"expected a teacher trained at {image_size[0]}x{image_size[1]}, got "
      f"{config.weights} ({resized[0]}); use a teacher of this resolution, or "
      f"set config.teachers.{name}.resize_posemb=True (the one published trial "
      "of that ended below its baseline)"
    )
