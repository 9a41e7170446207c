"""Which weights and images, for the commands that run a model on a split."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import flags

from vitkd_jax.commandline import command
from vitkd_jax.runs import reading


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


def define() -> None:
  """Defines the flags; not on import, as other commands have some of them."""
  command.define_path(
    "weights",
    None,
    "file or folder of weights, a workdir, shipped:NAME or hf:OWNER/NAME",
  )
  flags.DEFINE_string(
    "variant", None, "name of the model; default: as the weights state"
  )
  flags.DEFINE_string(
    "data", None, "dataset name; default: the workdir's, else fashion_mini"
  )
  flags.DEFINE_string(
    "split", None, "split of the dataset; default: the workdir's, else test"
  )
  command.define_path(
    "data-dir", None, "folder of prepared datasets; default: TFDS's own"
  )


def asked(given: Mapping[str, Any]) -> Asked:
  """What the flags say, completed by the run of a workdir.

  Args:
    given: values of the flags by name.
  """
  run = reading.record_of(given["weights"]) or {}
  config = run.get("config", {})
  data = config.get("data") or {}
  return Asked(
    name=given["data"] or data.get("name", "fashion_mini"),
    split=given["split"] or data.get("eval_split", "test"),
    data_dir=given["data-dir"] or data.get("data_dir"),
    exif=data.get("exif", False),
    config=config,
  )
