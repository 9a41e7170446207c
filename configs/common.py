"""What the configs share: their argument and the two recipes."""

import difflib
import inspect
import typing

import ml_collections

from vitkd_jax.data import augment
from vitkd_jax.distill import terms as loss_terms
from vitkd_jax.models import variants
from vitkd_jax.training import fields as student_fields


def parse_arg(arg: str | None, **defaults):
  """The argument behind `config.py:` as a dict, e.g. "method=both,epochs=3".

  Args:
    arg: comma-separated name=value; a bare name is True.
    **defaults: every known name with its default, whose type is the value's.

  Raises:
    ValueError: an unknown name, or a value of another type.
  """
  values = dict(defaults)
  for part in filter(None, (arg or "").split(",")):
    name, _, text = part.partition("=")
    if name not in defaults:
      near = difflib.get_close_matches(name, defaults, n=1, cutoff=0.0)[0]
      raise ValueError(
        f"unknown config argument {name!r}; the nearest is {near!r}"
      )
    kind = type(defaults[name])
    if kind is bool:
      if text not in ("", "True", "False"):
        raise ValueError(
          f"config argument {name}={text!r}: wanted True or False"
        )
      values[name] = text != "False"
      continue
    try:
      values[name] = kind(text)
    except ValueError:
      raise ValueError(
        f"config argument {name}={text!r}: wanted {kind.__name__}"
      ) from None
  return values


def choose(name: str, value: str, choices):
  """choices[value]; raises ValueError that lists them."""
  if value not in choices:
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.0)[0]
    raise ValueError(
      f"config argument {name}={value!r}; the nearest is {near!r}, all are "
      + ", ".join(choices)
    )
  return choices[value]


def loss_weights(**terms: float) -> dict[str, float]:
  """Section `weights`: the task's 1, the terms given, 0 for all others."""
  return dict.fromkeys(loss_terms.TERMS, 0.0) | dict(task=1.0) | terms


def adamw(clip_norm: float) -> ml_collections.ConfigDict:
  """Section `optimizer`: AdamW of both recipes; clip_norm=0 does not clip."""
  return ml_collections.ConfigDict(
    dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, clip_norm=clip_norm)
  )


def mmcls(config, *, base: bool) -> None:
  """The paper's recipe, whose baselines are 74.42 / 80.55 / 81.76.

  Fills the sections `augment`, `schedule` and `optimizer`, and what belongs to
  the recipe in `run`, `data` and `student`.

  Args:
    config: with the sections `run`, `data` and `student`.
    base: regularises as for DeiT-Base, by drop path and an average.
  """
  config.run.ema_decay = 0.99996 if base else 0.0
  config.student.drop_path = 0.1 if base else 0.0
  config.augment = _augment()
  config.schedule = dict(kind="mmcls", peak=_peak(config), warmup_epochs=20.0)
  peak = config.schedule.get_ref("peak")
  config.schedule.update(warmup_start=peak * 1e-3, end=peak * 1e-2)
  config.optimizer = adamw(clip_norm=5.0)


def deit(config, *, base: bool) -> None:
  """DeiT's recipe (arXiv:2012.12877), whose baselines are 72.2 / 79.9 / 81.8.

  The same for every size. Its command line names a colour jitter of 0.3, which
  timm leaves out beside RandAugment; config.augment.color_jitter=0.3 has it.

  Args:
    config: see `mmcls`.
    base: changes nothing.
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


def _peak(config):
  return config.run.get_ref("batch_size").to_float() * (1e-3 / 1024)


def _augment():
  """Flip, RandAugment, erasing, Mixup or CutMix: the same in both recipes."""
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


def student(**fields) -> ml_collections.ConfigDict:
  """Section `student`: the fields given; all others are the variant's.

  Those are there without a value, so that each can be overridden.
  """
  config = ml_collections.ConfigDict(fields)
  for name, kind in student_fields.FIELDS.items():
    if name not in fields:
      config[name] = ml_collections.config_dict.placeholder(kind)
  return config


def section(kind, **values) -> ml_collections.ConfigDict:
  """A section with every key there is, so that each can be overridden.

  Args:
    kind: the dataclass or the function that the section goes to; where a key
      is not given its default is taken.
    **values: the keys that differ.
  """
  keys = {
    name: (parameter.default, parameter.annotation)
    for name, parameter in inspect.signature(kind).parameters.items()
    if parameter.default is not parameter.empty
  }
  config = ml_collections.ConfigDict()
  for name, (default, annotation) in keys.items():
    if default is None:
      types = [t for t in typing.get_args(annotation) if t is not type(None)]
      default = ml_collections.config_dict.placeholder(types[0])
    config[name] = default
  config.update(values)
  return config
