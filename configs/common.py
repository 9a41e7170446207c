"""What the configs share: their argument and the blocks of both recipes."""

import difflib

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


def data(
  name: str, train_split: str, eval_split: str, cache: bool = False
) -> ml_collections.ConfigDict:
  """Section `data`; data_dir=None is the package and TFDS's own folder."""
  section = ml_collections.ConfigDict(
    dict(name=name, train_split=train_split, eval_split=eval_split, cache=cache)
  )
  section.data_dir = ml_collections.config_dict.placeholder(str)
  section.num_workers = 0
  return section
