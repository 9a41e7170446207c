"""Which weights and images, for the commands that run a model on a split."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import flags

from vitkd_jax.commandline import command
from vitkd_jax.data import datasets
from vitkd_jax.runs import reading

# The first that a dataset has.
_EVALUATION = ("test", "validation", "val", "valid")


@dataclasses.dataclass(frozen=True)
class Asked:
  """Which images are meant.

  Attributes:
    name: of the dataset.
    split: of it.
    data_dir: folder of prepared datasets; None for TFDS's own.
    exif: rotate images as EXIF states, as the workdir's run does.
    config: sections of the run whose workdir the weights are; {} for others.
  """

  name: str
  split: str
  data_dir: str | None
  exif: bool
  config: Mapping[str, Any]


def define(several: bool = False) -> None:
  """Defines the flags; not on import, as other commands have some of them.

  Args:
    several: whether the command takes several datasets, see `asked_each`.
  """
  name = "dataset names, separated by commas" if several else "dataset name"
  split = "split, one for all or one for each" if several else "split"
  command.define_path(
    "weights",
    None,
    "file or folder of weights, a workdir, shipped:NAME or hf:OWNER/NAME",
  )
  flags.DEFINE_string(
    "variant", None, "name of the model; default: as the weights state"
  )
  flags.DEFINE_string(
    "data", None, f"{name}; default: the workdir's, else fashion_mini"
  )
  flags.DEFINE_string(
    "split",
    None,
    f"{split}; default: the workdir's, else test, else validation",
  )
  command.define_path(
    "data-dir", None, "folder of prepared datasets; default: TFDS's own"
  )


def asked(given: Mapping[str, Any]) -> Asked:
  """What the flags say, completed by the run of a workdir.

  Args:
    given: values of the flags by name.

  Raises:
    ValueError: the flags name several datasets.
  """
  found = asked_each(given)
  if len(found) > 1:
    raise ValueError(f"expected one dataset, got --data={given['data']}")
  return found[0]


def asked_each(given: Mapping[str, Any]) -> list[Asked]:
  """What the flags say of several datasets, whose names commas separate.

  Args:
    given: values of the flags by name.

  Raises:
    ValueError: a dataset is named twice, or is not prepared, or the splits are
      neither one nor as many.
  """
  run = reading.record_of(given["weights"]) or {}
  config = run.get("config", {})
  data = config.get("data") or {}
  own = data.get("name", "fashion_mini")
  names = given["data"].split(",") if given["data"] else [own]
  if len(set(names)) < len(names):
    raise ValueError(
      f"expected each dataset once, got --data={given['data']}; evaluate "
      "another split in a run of its own"
    )
  splits = given["split"].split(",") if given["split"] else []
  if len(splits) not in (0, 1, len(names)):
    raise ValueError(
      f"expected one split, or one for each of {len(names)} datasets, got "
      f"--split={given['split']}"
    )
  data_dir = given["data-dir"] or data.get("data_dir")
  if len(splits) < len(names):
    splits = splits * len(names) or [
      data["eval_split"]
      if name == own and "eval_split" in data
      else _usual(name, data_dir)
      for name in names
    ]
  return [
    Asked(name, split, data_dir, data.get("exif", False), config)
    for name, split in zip(names, splits, strict=True)
  ]


def _usual(name: str, data_dir: str | None) -> str:
  """The split that a dataset is for evaluation."""
  known = datasets.info(name, data_dir).num_examples
  return next((split for split in _EVALUATION if split in known), "test")
