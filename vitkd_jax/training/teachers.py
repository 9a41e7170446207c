"""The frozen teacher: its model and its parameters."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from vitkd_jax.data import datasets
from vitkd_jax.evaluation import scoring
from vitkd_jax.models import checks, protocol, vit
from vitkd_jax.runs import students
from vitkd_jax.training import sections


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
    pin: which weights they are.
    notes: what was read and changed at loading, in sentences.
  """

  model: protocol.Backbone
  params: Any
  pin: Pin = Pin()
  notes: tuple[str, ...] = ()


def make_model(
  name: str,
  config: sections.Teacher,
  num_classes: int | None,
  image_size: tuple[int, int],
) -> vit.ViT:
  """The model of a teacher, before its weights are read.

  Args:
    name: of the teacher in the config.
    config: its section.
    num_classes: C; None without a head.
    image_size: (H, W) in pixels.

  Raises:
    ValueError: the variant is unknown, or its patches do not divide the images.
  """
  model = vit.Model(num_classes, variant=config.variant)
  checks.check_patches(f"teacher {name}", model.patch_size, *image_size)
  return model


def load(
  name: str,
  config: sections.Teacher,
  info: datasets.Info,
  image_size: tuple[int, int],
  by_logits: Sequence[str] = (),
  pinned: Pin | None = None,
) -> Teacher:
  """A teacher of a config.

  Its classes may differ from the dataset's where no method compares logits.

  Args:
    name: of the teacher in the config.
    config: its section.
    info: dataset description.
    image_size: (H, W) in pixels.
    by_logits: methods that compare logits with it.
    pinned: the weights that the run's first start took; of a teacher's
      checkpoints the same step is read, even if there are newer ones.

  Raises:
    ValueError: the file cannot be read, or its resolution or its number of
      classes is another.
  """
  make_model(name, config, None, image_size)  # before anything is read
  loaded = _read(config, image_size, pinned.step if pinned else None)
  if by_logits and loaded.num_classes != info.num_classes:
    raise ValueError(
      f"expected a teacher of {info.name}'s {info.num_classes} classes for the "
      f"logits of {', '.join(by_logits)}, got {loaded.num_classes or 'no'} "
      f"classes in {config.weights}; use another teacher, or token maps alone "
      "(method=vitkd)"
    )
  _check_resolution(name, config, loaded.notes, image_size)
  model = vit.Model(loaded.num_classes, variant=config.variant, **loaded.fields)
  frozen, params = model.frozen(loaded.params, config.dtype)
  notes = loaded.notes
  if by_logits:
    names = students.stated(config.weights).class_names
    notes += scoring.compare_classes(
      f"the teacher {config.weights}", names, info
    )
  if loaded.saved:
    notes += (
      "this run reads that checkpoint again to resume; if the teacher still "
      "trains and may delete it, keep a copy and learn from that: "
      f"python -m vitkd_jax.convert --weights {config.weights} --step "
      f"{loaded.saved.step} --to flat --output teacher.safetensors",
    )
  pin = _pin(loaded, pinned)
  return Teacher(frozen, params, pin, notes)


def _read(
  config: sections.Teacher, image_size: tuple[int, int], step: int | None
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
  name: str,
  config: sections.Teacher,
  info: datasets.Info,
  image_size: tuple[int, int],
) -> Teacher:
  """A teacher of a config as shapes; reads no weights.

  Args:
    name: of the teacher in the config.
    config: its section.
    info: dataset description.
    image_size: (H, W) in pixels.

  Raises:
    ValueError: the variant is unknown, or its patches do not divide the images.
  """
  model = make_model(name, config, info.num_classes, image_size)
  frozen = model

  def make(key: jax.Array) -> Any:
    nonlocal frozen
    params = model.init(key, jnp.zeros((1, *image_size, 3)))["params"]
    frozen, params = model.frozen(params, config.dtype)
    return params

  params = jax.eval_shape(make, jax.random.key(0))
  return Teacher(frozen, params)


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
