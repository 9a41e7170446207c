"""Which probes `evaluate` fits, on which images."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import flags

from vitkd_jax.commandline import split_flags
from vitkd_jax.evaluation import probes


def define() -> None:
  """Defines the flags."""
  own = probes.Options
  flags.DEFINE_string(
    "probe",
    None,
    "classifiers of the frozen features, separated by commas: "
    f"{', '.join(probes.NAMES)}; default: none",
  )
  flags.DEFINE_string(
    "train-data",
    None,
    "dataset that probes are fitted on; default: the first of --data",
  )
  flags.DEFINE_string(
    "train-split", None, "its split; default: the workdir's, else train"
  )
  flags.DEFINE_string(
    "neighbours",
    ",".join(map(str, own.neighbours)),
    "numbers of nearest neighbours of the probe knn",
  )
  flags.DEFINE_float("temperature", own.temperature, "of the neighbours' votes")
  flags.DEFINE_string(
    "shots",
    ",".join(map(str, own.shots)),
    "training images a class of the probe fewshot",
  )
  flags.DEFINE_integer(
    "seeds", own.seeds, "draws of these images, which are averaged"
  )
  flags.DEFINE_integer("sgd-steps", own.sgd_steps, "updates of the probe sgd")


def asked(given: Mapping[str, Any]) -> probes.Options | None:
  """The probes that the flags ask for; None without --probe.

  Args:
    given: values of the flags by name.

  Raises:
    ValueError: a value is unknown or out of range.
  """
  if not given["probe"]:
    return None
  return probes.Options(
    which=tuple(given["probe"].split(",")),
    neighbours=_integers("neighbours", given),
    temperature=given["temperature"],
    shots=_integers("shots", given),
    seeds=given["seeds"],
    sgd_steps=given["sgd-steps"],
  )


def training(
  given: Mapping[str, Any], first: split_flags.Asked
) -> split_flags.Asked:
  """The images that the probes are fitted on.

  Args:
    given: values of the flags by name.
    first: the first dataset that the model is scored on.
  """
  data = first.config.get("data") or {}
  name = given["train-data"] or first.name
  own = data.get("train_split") if data.get("name") == name else None
  split = given["train-split"] or own or "train"
  return dataclasses.replace(first, name=name, split=split)


def _integers(name: str, given: Mapping[str, Any]) -> tuple[int, ...]:
  try:
    return tuple(int(each) for each in given[name].split(","))
  except ValueError:
    raise ValueError(
      f"expected integers separated by commas, got --{name}={given[name]}"
    ) from None
