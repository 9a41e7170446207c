"""What the configs share: their argument and the blocks of both recipes."""

import difflib
import inspect
import typing

import ml_collections


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


def adamw(clip_norm: float) -> ml_collections.ConfigDict:
  """Section `optimizer`: AdamW of both recipes."""
  return ml_collections.ConfigDict(
    dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, clip_norm=clip_norm)
  )


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
