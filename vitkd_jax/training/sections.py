"""The sections of a config: their keys, types and ranges."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import inspect
import math
import types
import typing
from typing import Any, TypeVar

import ml_collections

from vitkd_jax import check
from vitkd_jax.training import fields as student_fields

T = TypeVar("T")

SECTIONS = (
  "data",
  "augment",
  "student",
  "teacher",
  "head",
  "select",
  "weights",
  "logits",
  "schedule",
  "optimizer",
  "run",
)


@dataclasses.dataclass(frozen=True)
class Data:
  """Section `data`: which images.

  Attributes:
    name: of the data set.
    train_split: in TFDS's notation.
    eval_split: likewise.
    data_dir: where prepared sets lie; None for the package and TFDS's folder.
    cache: keep decoded images in memory, where threads read them.
    num_workers: processes that read and decode; 0 for threads.
    image_size: pixels of the crop's side, random for the training, in the
      middle for the evaluation; 0 takes images whole, all of one size.
    crop_area: least and greatest part of the image's area in a random crop.
    crop_ratio: its least and greatest width / height.
    eval_resize: short side before the evaluation's crop; 0: image_size / 0.875.
    exif: turn images as their EXIF says; timm and torchvision do not.
    repeats: times that an example comes in a row, each cropped anew; an
      epoch, as long as ever, then has that much fewer different ones.
    max_bad_share: part of the records read that may be bad: each is replaced
      by the next good one and named in the log. More end the run, once more
      than ten different ones are bad.
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
  max_bad_share: float = 0.001


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Section `teacher`: whose maps and logits are learnt.

  Attributes:
    weights: path of the weights, or the name of ones that are shipped.
    variant: its architecture.
    dtype: of its parameters and matrix products.
    resample: bring its token maps to the student's grid if they differ.
    resize_posemb: take a teacher of another resolution, its position
      embedding resampled.
  """

  weights: str
  variant: str
  dtype: str = "bfloat16"
  resample: bool = False
  resize_posemb: bool = False


@dataclasses.dataclass(frozen=True)
class Head:
  """Section `head`: see `heads.ViTKD`."""

  mask_ratio: float = 0.5
  reduction: str = "sum"
  always_align: bool = False


@dataclasses.dataclass(frozen=True)
class Logits:
  """Section `logits`: temperature and gamma, see `objective.Objective`."""

  temperature: float = 1.0
  gamma: float = 1.0


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Section `schedule`: see `optim.make_schedule`.

  Attributes:
    warmup_epochs: length of the warm-up; 0 for none.
  """

  kind: str
  peak: float
  warmup_epochs: float
  warmup_start: float
  end: float


@dataclasses.dataclass(frozen=True)
class Run:
  """Section `run`: how long, how much at once, how often.

  Attributes:
    seed: of everything random.
    epochs: passes over the training split; may be a fraction.
    batch_size: images per update, over all devices.
    accumulate: micro-batches that a batch is worked off in.
    fsdp: devices that share one copy of the state; 1 is data parallel, all
      devices is fully sharded, between them is hybrid.
    fsdp_teacher: they share one copy of the teacher, too.
    ema_decay: of the student's moving average; 0 for none.
    log_every: steps between metrics.
    eval_every: steps between evaluations; 0 for one at the end, to which one
      is left, too, that is due at most a tenth of the interval before it.
    checkpoint_every: steps between checkpoints, likewise.
    checkpoint_minutes: time between checkpoints, beside the steps, taken at
      the next log; 0 for none.
    keep: newest checkpoints that are kept, beside the best.
    max_bad_steps: updates in a row that are skipped because something is not
      finite, at which the run stops.
    step_timeout: seconds that a step may take before the process ends itself
      with all stacks on disk; compilation, saves and the start may take four
      times as long; 0 for ever.
    profile_at: the first of five steps, fewer before an evaluation or a save,
      of which process 0 writes a trace into the workdir, for TensorBoard's
      profiler or Perfetto; 0 for none.
  """

  seed: int
  epochs: float
  batch_size: int
  accumulate: int = 1
  fsdp: int = 1
  fsdp_teacher: bool = False
  ema_decay: float = 0.0
  log_every: int = 50
  eval_every: int = 0
  checkpoint_every: int = 0
  checkpoint_minutes: float = 0.0
  keep: int = 2
  max_bad_steps: int = 10
  step_timeout: float = 300.0
  profile_at: int = 0


def split(config: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
  """Every section as a plain dict, empty where the config has none.

  Raises:
    ValueError: a section that there is not.
  """
  sections = student_fields.given(config).to_dict()
  for name in sections.keys() - set(SECTIONS):
    near = check.nearest(name, SECTIONS)
    raise ValueError(f"unknown config section {name!r}; {near}")
  return {name: dict(sections.get(name) or {}) for name in SECTIONS}


def known(
  section: str, values: Mapping[str, Any], names: Iterable[str]
) -> Mapping[str, Any]:
  """`values`, whose keys are all in `names`.

  Raises:
    ValueError: an unknown key; the nearest is named.
  """
  for name in values:
    if name not in names:
      raise ValueError(
        f"unknown key config.{section}.{name}; {check.nearest(name, names)}"
      )
  return values


def check_types(
  section: str, values: Mapping[str, Any], annotations: Mapping[str, Any]
) -> None:
  """Raises ValueError for a value that is not of its annotation's type."""
  for name, value in values.items():
    kinds = typing.get_args(annotations[name]) or (annotations[name],)
    if isinstance(annotations[name], types.GenericAlias):
      kinds = (annotations[name],)
    if not any(_fits(value, kind) for kind in kinds):
      wanted = " or ".join(map(_wanted, kinds))
      raise ValueError(f"config.{section}.{name}={value!r}: wanted {wanted}")


_NAMES = {
  int: "a whole number",
  float: "a finite number",
  bool: "True or False",
  str: "text",
  type(None): "None",
}


def _wanted(kind):
  """A type in words; of a sequence, how many of what."""
  if typing.get_origin(kind) not in (tuple, Sequence):
    return _NAMES.get(kind, str(kind))
  first, *rest = typing.get_args(kind)
  count = len(rest) + 1 if typing.get_origin(kind) is tuple else "one or more"
  return f"a sequence of {count} {_NAMES[first].removeprefix('a ')}s"


def _fits(value, kind):
  if kind is float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
  if kind is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if kind in _NAMES:
    return isinstance(value, kind)
  if typing.get_origin(kind) in (tuple, Sequence):
    size = [k for k in typing.get_args(kind) if k is not ...]
    fixed = typing.get_origin(kind) is tuple
    return (
      isinstance(value, list | tuple)
      and (len(value) == len(size) if fixed else len(value) > 0)
      and all(_fits(part, size[0]) for part in value)
    )
  return True


def make(kind: type[T], section: str, values: Mapping[str, Any]) -> T:
  """A dataclass from a section, whose keys must be its fields.

  Raises:
    ValueError: an unknown key, or one without default that is missing.
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
  """function(*args, **more, **values); its keywords are the section's keys.

  Raises:
    ValueError: an unknown key, one that is missing, or what the function
      refuses.
  """
  check_keywords(function, section, values, given=more)
  return function(*args, **more, **values)


def check_keywords(
  function: Callable,
  section: str,
  values: Mapping[str, Any],
  given: Iterable[str],
) -> None:
  """Raises ValueError unless `values` are a function's keywords, and typed.

  Args:
    function: whose keyword-only parameters are the section's keys.
    section: its name.
    values: the section.
    given: keywords that do not come from the section.
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
  annotations = {n: p.annotation for n, p in keywords.items()}
  check_types(section, values, annotations)


# More than any training is long; the step is counted in int32.
_MOST_EPOCHS = 1e6

# The least that each number in the section `run` may be.
_LEAST = {
  "batch_size": 1,
  "accumulate": 1,
  "fsdp": 1,
  "log_every": 1,
  "eval_every": 0,
  "checkpoint_every": 0,
  "checkpoint_minutes": 0,
  "keep": 1,
  "max_bad_steps": 1,
  "step_timeout": 0,
  "profile_at": 0,
  "seed": 0,
}


def check_run(run: Run) -> None:
  """Raises ValueError for a number out of its range."""
  for name, least in _LEAST.items():
    if getattr(run, name) < least:
      raise ValueError(
        f"config.run.{name}={getattr(run, name)}: wanted at least {least}"
      )
  if not 0 < run.epochs <= _MOST_EPOCHS:
    raise ValueError(
      f"config.run.epochs={run.epochs}: wanted more than 0, at most "
      f"{_MOST_EPOCHS:.0f}"
    )
  if run.seed >= 2**63:
    raise ValueError(f"config.run.seed={run.seed}: wanted less than 2**63")
  if not 0 <= run.ema_decay < 1:
    raise ValueError(f"config.run.ema_decay={run.ema_decay} is not in [0, 1)")
