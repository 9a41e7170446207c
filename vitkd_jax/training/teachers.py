"""The frozen teacher: its model, its parameters, and what is refused."""

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
  """Which weights a run learns from: each of its starts finds them again.

  Attributes:
    sha256: of the file, or of the parameters in a checkpoint; None where that
      is not known.
    step: of the checkpoint, where the teacher is a run that had exported
      nothing; None for a file.
  """

  sha256: str | None = None
  step: int | None = None

  def __str__(self):
    step = "" if self.step is None else f"step {self.step}, "
    return f"{step}SHA-256 {(self.sha256 or 'unknown')[:12]}"


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A frozen teacher.

  Attributes:
    model: that applies `params`.
    params: in the teacher's dtype; shapes alone where nothing was read.
    pin: which weights they are.
    notes: what was taken and changed at loading, in sentences.
  """

  model: protocol.Backbone
  params: Any
  pin: Pin = Pin()
  notes: tuple[str, ...] = ()


def load(
  config: sections.Teacher,
  info: datasets.Info,
  image_size: tuple[int, int],
  logit_terms: Sequence[str] = (),
  pinned: Pin | None = None,
) -> Teacher:
  """The teacher of a config.

  Its classes may be others than the dataset's where no loss compares logits.

  Args:
    config: section `teacher`.
    info: of the dataset.
    image_size: rows and columns in pixels.
    logit_terms: losses that compare logits.
    pinned: what the run's first start took. Of a teacher's checkpoints the
      same step is read, though newer ones be there.

  Raises:
    ValueError: the file, its resolution or its number of classes do not fit.
  """
  model = vit.Model(None, variant=config.variant)
  checks.check_patches("teacher", model.patch_size, *image_size)
  loaded = _read(config, image_size, pinned and pinned.step)
  if logit_terms and loaded.num_classes != info.num_classes:
    raise ValueError(
      f"the teacher {config.weights} has {loaded.num_classes or 'no'} classes, "
      f"{info.name} has {info.num_classes}, and the loss terms "
      f"{', '.join(logit_terms)} compare them: use a teacher of these classes, "
      "or the token maps alone (method=vitkd)"
    )
  _check_resolution(config, loaded.notes, image_size)
  model = vit.Model(loaded.num_classes, variant=config.variant, **loaded.fields)
  frozen, params = model.frozen(loaded.params, config.dtype)
  notes = loaded.notes
  if logit_terms:
    names = students.stated(config.weights).class_names
    notes += scoring.compare_classes(
      f"the teacher {config.weights}", names, info
    )
  if loaded.saved:
    notes += (
      "to resume, this run reads that checkpoint again; where it may be "
      "deleted, because the teacher still trains, keep a copy and name that: "
      f"python -m vitkd_jax.convert --weights {config.weights} --step "
      f"{loaded.saved.step} --to flat --output teacher.safetensors",
    )
  pin = _pin(loaded, pinned)
  return Teacher(frozen, params, pin, notes)


def _read(config, image_size, step) -> students.Loaded:
  """The weights as they are; of checkpoints those of a step, if it is given."""
  path = config.weights
  if step is not None and students.find(path, saved=True) is not None:
    step = None  # a file; its hash tells whether it is what was pinned
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


def _pin(loaded, pinned) -> Pin:
  if loaded.saved is not None:
    return Pin(loaded.saved.sha256, loaded.saved.step)
  if pinned is not None and pinned.step is not None:
    # The checkpoint may have been converted to a file meanwhile.
    leaves = traverse_util.flatten_dict(loaded.params, sep="/")
    if students.sha256(leaves) == pinned.sha256:
      return pinned
  return Pin(loaded.sha256())


def plan(
  config: sections.Teacher,
  info: datasets.Info,
  image_size: tuple[int, int],
  logit_terms: Sequence[str] = (),
  pinned: Pin | None = None,
) -> Teacher:
  """As `load`, but the shapes of any weights; reads nothing."""
  del logit_terms, pinned
  model = vit.Model(info.num_classes, variant=config.variant)
  checks.check_patches("teacher", model.patch_size, *image_size)

  frozen = model

  def make(key):
    nonlocal frozen
    params = model.init(key, jnp.zeros((1, *image_size, 3)))["params"]
    frozen, params = model.frozen(params, config.dtype)
    return params

  params = jax.eval_shape(make, jax.random.key(0))
  return Teacher(frozen, params)


def _check_resolution(config, notes, image_size) -> None:
  """Refuses a teacher of another resolution unless that is asked for."""
  resized = [note for note in notes if "position embedding" in note]
  if resized and not config.resize_posemb:
    raise ValueError(
      f"the teacher {config.weights} was not trained on images of "
      f"{image_size[0]}x{image_size[1]} ({resized[0]}): use a teacher of this "
      "resolution, or set config.teacher.resize_posemb=True (the one published "
      "trial of that ended below its baseline)"
    )
