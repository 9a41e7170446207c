"""What the configs share: their arguments and the two recipes."""

from collections.abc import Callable, Mapping, Sequence
import inspect
import math
import typing
from typing import Any, TypeVar

import ml_collections

from vitkd_jax import check
from vitkd_jax.data import augment
from vitkd_jax.distill import methods as published
from vitkd_jax.models import variants
from vitkd_jax.training import fields as student_fields
from vitkd_jax.training import method_sections, optimizer_section, sections

T = TypeVar("T")


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
  """The argument after `config.py:` as a dict, e.g. "method=both,epochs=3".

  With `runlocal`, if it is known, `epochs` and `batch_size` are those of a
  trial unless they are given, see `trial`.

  Args:
    arg: comma-separated name=value; a bare name means True.
    **defaults: every known name with its default, which also sets its type.

  Raises:
    ValueError: a name is unknown, or a value has another type.
  """
  values, given = dict(defaults), set[str]()
  for part in filter(None, (arg or "").split(",")):
    name, _, text = part.partition("=")
    if name not in defaults:
      raise ValueError(
        f"unknown config argument {name!r}; {check.nearest(name, defaults)}"
      )
    kind = type(defaults[name])
    if kind is bool:
      if text not in ("", "True", "False"):
        raise ValueError(
          f"expected config argument {name} to be True or False, got {text!r}"
        )
      values[name] = text != "False"
      continue
    try:
      values[name] = kind(text)
    except ValueError:
      raise ValueError(
        f"expected config argument {name} to be of type {kind.__name__}, got "
        f"{text!r}"
      ) from None
    if kind is float and not math.isfinite(values[name]):
      raise ValueError(
        f"expected config argument {name} to be a finite number, got {text!r}"
      )
    given.add(name)
  if values.get("runlocal"):
    for name in (_TRIAL.keys() & values.keys()) - given:
      values[name] = type(defaults[name])(_TRIAL[name])
  return values


_TRIAL = dict(epochs=2, batch_size=8)


def trial(
  config: ml_collections.ConfigDict, images: int = 64, scored: int = 64
) -> ml_collections.ConfigDict:
  """The config, changed for a trial of a few steps on one machine.

  It logs every step, evaluates and saves at the end alone, and warms up for a
  tenth of its epochs, also if they are overridden.

  Args:
    config: of a training, whose epochs and batch `parse_arg` has chosen.
    images: number of training images, at most those of the split.
    scored: number of images of the evaluation, likewise.
  """
  config.run.log_every = 1
  config.run.eval_every = config.run.checkpoint_every = 0
  config.data.num_workers = 0
  for key, count in ("train_split", images), ("eval_split", scored):
    name, _, part = config.data[key].partition("[")
    # What is held out of a split is its end.
    ends = f"-{count}:" if part and not part.startswith(":") else f":{count}"
    config.data[key] = f"{name}[{ends}]"
  config.schedule.warmup_epochs = config.run.get_ref("epochs") * 0.1
  return config


def choose(name: str, value: str, choices: Mapping[str, T]) -> T:
  """choices[value].

  Args:
    name: name of the config's argument, for the message.
    value: its value.
    choices: what each valid value stands for.

  Raises:
    ValueError: the value is none of them; the message names the nearest.
  """
  check.known(f"config argument {name}", value, choices)
  return choices[value]


# The paper's weights as weights of a mean over tokens and channels, so that
# they hold on another grid; for teachers with its LayerScale.
_TOKENS, _WIDTH = 196, 384
PAPERS: dict[str, dict[str, Any]] = dict(
  vitkd=dict(
    reduction="mean",
    weights=dict(
      mimic=3e-5 * _TOKENS * _WIDTH, generation=3e-6 * _TOKENS * _WIDTH
    ),
  ),
)

# Short names of the argument `method`.
_SETS = {"baseline": (), "both": ("vitkd", "nkd")}


def method_names(text: str) -> tuple[str, ...]:
  """The methods that the argument `method` names, such as "vitkd+nkd".

  Args:
    text: names of `METHODS` joined by "+", "both" (vitkd+nkd) or "baseline"
      (none).

  Raises:
    ValueError: a name is unknown or there twice.
  """
  if text in _SETS:
    return _SETS[text]
  names = tuple(text.split("+"))
  for name in names:
    if name not in published.METHODS:
      near = check.nearest(name, (*published.METHODS, *_SETS))
      known = ", ".join((*_SETS, *published.METHODS))
      raise ValueError(
        f"expected config argument method to be of {known}, joined by '+', got "
        f"{name!r}; {near}"
      )
    if names.count(name) > 1:
      raise ValueError(f"config argument method names {name!r} twice")
  return names


def methods(
  names: Sequence[str], **settings: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Section `methods`: every key of each method, so that all can be overridden.

  Args:
    names: of `METHODS`, or others whose settings have a `kind`.
    **settings: {name: keys that differ from their published values}; those of
      methods that are not in `names` are ignored.
  """
  config = ml_collections.ConfigDict()
  for name in names:
    own = settings.get(name, {})
    kind = method_sections.kind_of(name, own)
    config[name] = section(method_sections.Common)
    for key, (default, annotation) in method_sections.keys(kind).items():
      config[name][key] = _value(default, annotation)
    config[name].update({k: v for k, v in own.items() if k != "weights"})
    weights = method_sections.weights(name, own)
    config[name].weights = ml_collections.ConfigDict(weights)
  return config


def adamw(clip_norm: float) -> ml_collections.ConfigDict:
  """Section `optimizer`: AdamW as in both recipes.

  The keys of all optimisers are placeholders, so that another one, too, can be
  named and set from the command line.

  Args:
    clip_norm: largest global norm of the gradient; 0 for no clipping.
  """
  values = dict(name="adamw", weight_decay=0.05, clip_norm=clip_norm)
  return _placed(optimizer_section.every_key(), values)


def mmcls(config: ml_collections.ConfigDict, *, base: bool) -> None:
  """The paper's recipe, whose baselines are 74.42 / 80.55 / 81.76.

  Sets the sections `augment`, `schedule` and `optimizer`, and the recipe's keys
  in `run`, `data` and `student`.

  Args:
    config: has the sections `run`, `data` and `student`.
    base: regularise as for DeiT-Base, by drop path and a moving average.
  """
  config.run.ema_decay = 0.99996 if base else 0.0
  config.student.drop_path = 0.1 if base else 0.0
  config.augment = _augment()
  config.schedule = dict(kind="mmcls", peak=_peak(config), warmup_epochs=20.0)
  peak = config.schedule.get_ref("peak")
  config.schedule.update(warmup_start=peak * 1e-3, end=peak * 1e-2)
  config.optimizer = adamw(clip_norm=5.0)


def deit(config: ml_collections.ConfigDict, *, base: bool) -> None:
  """DeiT's recipe (arXiv:2012.12877), whose baselines are 72.2 / 79.9 / 81.8.

  It is the same for every size. DeiT's command line sets a colour jitter of
  0.3, which timm ignores beside RandAugment; config.augment.color_jitter=0.3
  turns it on.

  Args:
    config: see `mmcls`.
    base: ignored.
  """
  del base
  config.run.ema_decay = 0.99996
  config.data.repeats = 3
  config.student.drop_path = 0.1
  config.augment = _augment()
  config.schedule = dict(
    kind="deit",
    peak=_peak(config),
    warmup_epochs=5.0,
    warmup_start=1e-6,
    end=1e-5,
  )
  config.optimizer = adamw(clip_norm=0.0)


RECIPES = {"mmcls": mmcls, "deit": deit}


def _peak(config: ml_collections.ConfigDict) -> Any:
  return config.run.get_ref("batch_size").to_float() * (1e-3 / 1024)


def _augment() -> ml_collections.ConfigDict:
  """Flip, RandAugment, erasing, Mixup and CutMix, as in both recipes."""
  mean, std = variants.IMAGENET_MEAN_STD
  return section(
    augment.make_augment,
    flip=0.5,
    randaugment_ops=2,
    randaugment_magnitude=9.0,
    randaugment_std=0.5,
    fill=mean,
    erase=0.25,
    erase_mean=mean,
    erase_std=std,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    mix_prob=1.0,
    switch_prob=0.5,
    label_smoothing=0.1,
  )


def student(**values: Any) -> ml_collections.ConfigDict:
  """Section `student`: the given keys; the other fields are the variant's.

  The others are placeholders, so that each can be overridden.

  Args:
    **values: fields of the model, and keys of `fields.Own`.
  """
  return _placed(student_fields.FIELDS | student_fields.OWN, values)


def teacher(**values: Any) -> ml_collections.ConfigDict:
  """A section of `teachers` with every key, model fields included.

  Args:
    **values: the keys that differ from their defaults; `fields` are the model
      fields that differ from the variant's.
  """
  fields = values.pop("fields", {})
  config = section(sections.Teacher, **values)
  with config.ignore_type():
    config.fields = _placed(student_fields.FIELDS, fields)
  return config


def section(
  kind: Callable[..., object], **values: Any
) -> ml_collections.ConfigDict:
  """A section with every key, so that each can be overridden.

  Args:
    kind: the dataclass or function that the section goes to, which has the
      defaults.
    **values: the keys that differ from their defaults.
  """
  keys = {
    name: (parameter.default, parameter.annotation)
    for name, parameter in inspect.signature(kind).parameters.items()
    if parameter.default is not parameter.empty
  }
  config = ml_collections.ConfigDict()
  for name, (default, annotation) in keys.items():
    config[name] = _value(default, annotation)
  config.update(values)
  return config


def _placed(
  kinds: Mapping[str, Any], values: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """The values, and a placeholder for each other key."""
  config = ml_collections.ConfigDict(values)
  for name, kind in kinds.items():
    if name not in values:
      config[name] = ml_collections.config_dict.placeholder(kind)
  return config


def _value(default: Any, annotation: Any) -> Any:
  """A key's default; a placeholder of its type for None."""
  if default is not None:
    return default
  kind = next(t for t in typing.get_args(annotation) if t is not type(None))
  sequence = typing.get_origin(kind) in (Sequence, tuple)
  return ml_collections.config_dict.placeholder(tuple if sequence else kind)
