"""The sections of a config: their keys, types and ranges."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import inspect
from typing import Any, ClassVar, Protocol, TypeVar

import ml_collections

from vitkd_jax import check
from vitkd_jax.runs import legacy
from vitkd_jax.training import annotations, durations
from vitkd_jax.training import fields as student_fields

T = TypeVar("T")


class _Dataclass(Protocol):
  __dataclass_fields__: ClassVar[dict[str, Any]]


D = TypeVar("D", bound=_Dataclass)

SECTIONS = (
  "data",
  "augment",
  "student",
  "teachers",
  "methods",
  "task",
  "schedule",
  "optimizer",
  "run",
)


@dataclasses.dataclass(frozen=True)
class Data:
  """Section `data`: which images.

  Attributes:
    name: dataset name.
    train_split: training split, in TFDS's notation.
    eval_split: evaluation split, in TFDS's notation.
    data_dir: folder of prepared datasets; None for the package's and TFDS's.
    cache: keep decoded images in memory, shared by the reading threads.
    num_workers: processes that read and decode; 0 for threads.
    image_size: side of the crop in pixels, random in training and central in
      evaluation; 0 to use whole images, which must have one size.
    crop_area: smallest and largest share of an image's area in a random crop.
    crop_ratio: smallest and largest width / height of a random crop.
    eval_resize: short side in pixels after the evaluation's resize, before the
      crop; 0 for image_size / 0.875.
    exif: rotate images by their EXIF orientation, which timm and torchvision
      ignore.
    repeats: consecutive copies of each example, each cropped anew; an epoch
      keeps its length, and so sees fewer distinct examples.
    placement: "host" sends every batch to the devices; "device" puts the whole
      training split there once, for whole images of a set that fits.
    max_bad_share: largest share of unreadable records, in [0, 1]. Each is
      logged and replaced by the next good one; beyond this share, and beyond
      ten distinct ones, the run ends.
  """

  name: str
  train_split: str
  eval_split: str
  data_dir: str | None = None
  cache: bool = False
  num_workers: int = 0
  image_size: int = 0
  crop_area: tuple[float, float] = (0.08, 1.0)
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
  eval_resize: int = 0
  exif: bool = False
  repeats: int = 1
  placement: str = "host"
  max_bad_share: float = 0.001


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A section of `teachers`: a model whose maps and logits a student learns.

  Attributes:
    weights: file, folder or workdir of the weights, shipped:NAME or
      hf:OWNER/NAME.
    variant: model name, see `variants.NAMED`.
    fields: model fields that differ from the variant's, such as pool_type; by
      default those that the weights state.
    build: "module:function" that makes a teacher of one's own, in the place of
      `variant`, see `models.function`; `fields` are its keyword arguments.
    mean: of the images in [0, 1] that it was trained with, per channel; None
      for what the weights state, else the variant's.
    std: as `mean`.
    image_size: side in pixels of the images that it gets, resized from the
      student's; 0 for the student's own.
    scale: multiplies its token maps and CLS tokens. PHI-S's balances teachers
      that are regressed (arXiv:2410.01680); the doctor states it.
    dtype: dtype of parameters and matrix products.
    resample: resample its token maps to the student's grid if they differ.
    resize_posemb: accept a teacher of another resolution and resample its
      position embedding.
  """

  weights: str = ""
  variant: str = ""
  fields: dict | None = None
  build: str = ""
  mean: tuple[float, float, float] | None = None
  std: tuple[float, float, float] | None = None
  image_size: int = 0
  scale: float = 1.0
  dtype: str = "bfloat16"
  resample: bool = False
  resize_posemb: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
  """Section `task`: how the labels and the teachers share an image.

  Attributes:
    weight: of the cross-entropy with the labels; 0 learns from teachers alone.
    teacher_drop: chance that a teacher other than an image's hardest is left
      out of its loss, of which the others' mean is then taken (UNIC's 0.5, see
      `losses.teacher_coefficients`); 0 for the sum over all teachers.
    drop_normalisation: "per_image", or "unic" as its authors' code has it.
  """

  weight: float = 1.0
  teacher_drop: float = 0.0
  drop_normalisation: str = "per_image"


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Section `schedule`: see `optim.make_schedule`.

  Attributes:
    warmup_epochs: length of the warm-up in epochs; 0 for none.
  """

  kind: str
  peak: float
  warmup_epochs: float
  warmup_start: float
  end: float


@dataclasses.dataclass(frozen=True)
class Run(durations.Every):
  """Section `run`: length, batch, devices and intervals.

  Attributes:
    seed: seed of initialisation, batch order, augmentation, masks and dropout.
    epochs: passes over the training split; may be fractional.
    batch_size: images per update, over all devices.
    accumulate: gradient-accumulation steps per update.
    fsdp: devices that share one copy of the state: 1 is data parallel, all
      devices is fully sharded, anything between is hybrid.
    fsdp_teacher: shard the teacher over the same devices.
    attention: how self-attention is computed on a GPU: by XLA's own products
      ("xla"), by cuDNN's kernel ("cudnn"), or by cuDNN's where it can be
      ("auto").
    ema_decay: decay of the student's moving average, in [0, 1); 0 for none.
    log_every: steps between logged metrics. This and the other intervals can
      be given in other units, see `durations.Every`.
    eval_every: steps between evaluations; 0 for only the final one. One due
      within a tenth of an interval of the end is left to the end.
    inspect_every: steps between looks at what each term does to the student,
      see docs/diagnostics.md; 0 for none.
    checkpoint_every: steps between checkpoints, as `eval_every`.
    checkpoint_minutes: minutes between additional checkpoints, each saved at
      the next log; 0 for none.
    keep: number of newest checkpoints to keep, besides the best.
    max_bad_steps: consecutive updates skipped as non-finite after which the
      run fails.
    step_timeout: seconds a step may take before the process writes all stacks
      to the workdir and exits; start-up, compilation and saves may take four
      times as long; 0 for no limit.
    tracker: where metrics go beside metrics.jsonl and TensorBoard's events:
      "wandb" for Weights & Biases, "none" for nowhere.
    profile_at: first of five steps (fewer before an evaluation or a save) that
      process 0 traces into the workdir, for TensorBoard's profiler or
      Perfetto; 0 for none.
  """

  seed: int
  epochs: float
  batch_size: int
  accumulate: int = 1
  fsdp: int = 1
  fsdp_teacher: bool = False
  attention: str = "auto"
  ema_decay: float = 0.0
  log_every: int = 50
  eval_every: int = 0
  inspect_every: int = 0
  checkpoint_every: int = 0
  checkpoint_minutes: float = 0.0
  keep: int = 2
  max_bad_steps: int = 10
  step_timeout: float = 300.0
  tracker: str = "none"
  profile_at: int = 0


def split(config: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
  """Every section as a plain dict, empty where the config has none.

  Raises:
    ValueError: the config has an unknown section.
  """
  sections = legacy.modern(student_fields.given(config).to_dict())
  for name in sections.keys() - set(SECTIONS):
    near = check.nearest(name, SECTIONS)
    raise ValueError(f"unknown config section {name!r}; {near}")
  return {name: dict(sections.get(name) or {}) for name in SECTIONS}


def known(section: str, values: Iterable[str], names: Iterable[str]) -> None:
  """Checks that a section's keys are known.

  Args:
    section: section name, for the message.
    values: the section, or its keys.
    names: the known keys.

  Raises:
    ValueError: an unknown key; the message names the nearest.
  """
  for name in values:
    if name not in names:
      raise ValueError(
        f"unknown key config.{section}.{name}; {check.nearest(name, names)}"
      )


def check_types(
  section: str, values: Mapping[str, Any], kinds: Mapping[str, Any]
) -> None:
  """Checks the type of each value of a section.

  Args:
    section: section name, for the message.
    values: the section.
    kinds: type of each key.

  Raises:
    ValueError: a value of another type, or a number that is not finite.
  """
  for name, value in values.items():
    if not annotations.fits(value, kinds[name]):
      raise ValueError(
        f"expected config.{section}.{name} to be "
        f"{annotations.described(kinds[name])}, got {value!r}"
      )


def make(kind: type[D], section: str, values: Mapping[str, Any]) -> D:
  """A dataclass from a section, whose keys are its fields.

  Args:
    kind: the dataclass.
    section: section name, for messages.
    values: the section.

  Raises:
    ValueError: an unknown key, a missing one, or a value of another type.
  """
  fields = {field.name: field for field in dataclasses.fields(kind)}
  known(section, values, fields)
  for name, field in fields.items():
    if field.default is dataclasses.MISSING and values.get(name) is None:
      raise ValueError(f"config.{section}.{name} is missing")
  check_types(section, values, {n: f.type for n, f in fields.items()})
  return kind(**values)


def call(
  function: Callable[..., T],
  section: str,
  values: Mapping[str, Any],
  *args: Any,
  **more: Any,
) -> T:
  """function(*args, **more, **values).

  Args:
    function: its keyword-only parameters are the section's keys.
    section: section name, for messages.
    values: the section.
    *args: positional arguments that do not come from the section.
    **more: keyword arguments that do not come from the section.

  Raises:
    ValueError: an unknown key, a missing one, a value of another type, or one
      that the function refuses.
  """
  check_keywords(function, section, values, given=more)
  return function(*args, **more, **values)


def check_keywords(
  function: Callable,
  section: str,
  values: Mapping[str, Any],
  given: Iterable[str],
) -> dict[str, inspect.Parameter]:
  """Checks that a section's keys are a function's keywords, of their types.

  Args:
    function: its keyword-only parameters are the section's keys.
    section: section name, for messages.
    values: the section.
    given: keywords that do not come from the section.

  Returns:
    The keywords that may come from the section, by name.

  Raises:
    ValueError: an unknown key, a missing one, or a value of another type.
  """
  keywords = {
    name: parameter
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in given
  }
  known(section, values, keywords)
  for name, parameter in keywords.items():
    if parameter.default is parameter.empty and values.get(name) is None:
      raise ValueError(f"config.{section}.{name} is missing")
  check_types(section, values, {n: p.annotation for n, p in keywords.items()})
  return keywords
