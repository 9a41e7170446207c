"""What a training of a lab takes, before it has run."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import ml_collections

from vitkd_jax.estimate import flops, topology
from vitkd_jax.labs.description import Lab
from vitkd_jax.training import experiment


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a training takes.

  Attributes:
    images: that it sees, repeats included.
    flops: of matrix products.
    chip_hours: on the lab's chip; None where its speed is not known.
  """

  images: int
  flops: float
  chip_hours: float | None


def of(lab: Lab, config: Mapping[str, Any]) -> Cost:
  """The cost of one training of an arm; neither data nor weights are read.

  Args:
    lab: the lab.
    config: of the arm, completed.

  Raises:
    ValueError: the config cannot be built.
  """
  whole = ml_collections.ConfigDict(config)
  parts = experiment.build(
    whole, jax.devices()[:1], topology.planned(whole), trace=False
  )
  images = parts.total_steps * parts.run.batch_size
  work = images * flops.per_image(parts.objective)["total"]
  hours = work / (lab.chip_tflops * 1e12) / 3600 if lab.chip_tflops else None
  return Cost(images, work, hours)


def in_words(flops: float) -> str:
  """A number of FLOPs with its unit, such as "4.54 TFLOP".

  Args:
    flops: the number.
  """
  units = ("FLOP", "KFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP")
  power = 0
  while flops >= 1000 and power < len(units) - 1:
    flops, power = flops / 1000, power + 1
  return f"{flops:.3g} {units[power]}"
