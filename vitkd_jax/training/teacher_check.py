"""Whether a teacher whose logits are learned from knows the classes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.cluster import sharding
from vitkd_jax.data import augment
from vitkd_jax.distill import terms as loss_terms
from vitkd_jax.training import experiment


@dataclasses.dataclass(frozen=True)
class Score:
  """A teacher's accuracy on a few training images.

  Attributes:
    top1: part of them that it classifies as labelled.
    chance: what guessing reaches.
  """

  top1: float
  chance: float

  @property
  def good(self) -> bool:
    """Well above chance; a wrong class order or normalisation is not."""
    return self.top1 > self.chance + (1 - self.chance) / 4

  def __str__(self):
    return (
      f"{self.top1:.1%} on the first training batch, unaugmented, where chance "
      f"is {self.chance:.1%}"
    )


def compares_logits(parts: experiment.Experiment) -> bool:
  """Whether a loss takes the teacher's classes for the dataset's."""
  return any(term in loss_terms.LOGIT_TERMS for term in parts.objective.terms)


def lines(score: Score) -> list[str]:
  """What a training says of it, loudly where it is near chance."""
  said = [f"teacher's accuracy: {score}"]
  if not score.good:
    said.append(
      "WARNING: the teacher hardly knows these classes, and its logits are "
      "learned from: see that its variant, the normalisation of its images and "
      "the order of its classes are the dataset's (python -m vitkd_jax.doctor)"
    )
  return said


def score(
  parts: experiment.Experiment, batch: dict[str, jax.Array], every: int = 1
) -> Score:
  """The teacher's accuracy on a batch; all processes call it together.

  It runs once, so that what counts is the compilation: the teacher's blocks
  are scanned, which compiles as one block does, and a CPU's code is not
  optimised.

  Args:
    parts: of the training, with a teacher of the dataset's classes.
    batch: "image" uint8 [B, H, W, 3] and "label" int32 [B], on the mesh.
    every: takes each `every`-th example; with gradient accumulation's number
      it needs no more memory than a step.
  """
  objective = parts.objective
  teacher = objective.teacher

  def compute(params, image, label):
    image = jnp.float32(image[::every]) / 255
    image = augment.normalize(image, *objective.teacher_stats)
    model, params = teacher.quick_to_compile(params)
    logits, _ = model.apply({"params": params}, image)
    return jnp.mean(jnp.argmax(logits, -1) == label[::every])

  on_cpu = parts.mesh.devices.flat[0].platform == "cpu"
  compute = jax.jit(
    compute,
    out_shardings=sharding.replicated(parts.mesh),
    compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None,
  )
  top1 = compute(parts.teacher_params, batch["image"], batch["label"])
  return Score(float(np.asarray(top1)), 1 / parts.info.num_classes)
