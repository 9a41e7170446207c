"""Whether a teacher whose logits are learned knows the dataset's classes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.cluster import sharding
from vitkd_jax.distill import losses
from vitkd_jax.evaluation import running
from vitkd_jax.training import experiment


@dataclasses.dataclass(frozen=True)
class Score:
  """A teacher's accuracy on a few training images.

  Attributes:
    top1: share of them that it classifies as labelled, in [0, 1].
    chance: accuracy of guessing, in [0, 1].
  """

  top1: float
  chance: float

  @property
  def good(self) -> bool:
    """Whether it is well above chance, as no wrong class order is."""
    return self.top1 > self.chance + (1 - self.chance) / 4

  def __str__(self) -> str:
    return (
      f"{self.top1:.1%} on the first training batch, unaugmented, where chance "
      f"is {self.chance:.1%}"
    )


def with_classes(parts: experiment.Experiment) -> list[str]:
  """Names of the teachers whose classes a method takes for the dataset's.

  Args:
    parts: the training.
  """
  objective = parts.objective
  return [x for x in objective.teachers if objective.learned_from(x).logits]


def lines(name: str, score: Score) -> list[str]:
  """What the log says of a score, with a warning where it is near chance.

  Args:
    name: of the teacher.
    score: from `score`.
  """
  said = [f"{name}'s accuracy: {score}"]
  if not score.good:
    said.append(
      "WARNING: the teacher hardly knows these classes, but the student learns "
      "its logits: check its variant, its images' normalisation and the order "
      "of its classes (python -m vitkd_jax.doctor)"
    )
  return said


def scales(
  parts: experiment.Experiment, name: str, batch: dict[str, jax.Array]
) -> dict[tuple[int, str], float]:
  """PHI-S's scale of each token map that a method reads, on a batch.

  Args:
    parts: the training.
    name: of the teacher.
    batch: "image" uint8 [B, H, W, 3], on the mesh.

  Returns:
    {(block, place): scale}, of the maps as config.teachers.NAME.scale leaves
    them, see `losses.phi_s`.
  """
  objective = parts.objective
  alone = dataclasses.replace(
    objective, teachers={name: objective.teachers[name]}
  )

  @jax.jit
  def compute(params: Any, image: jax.Array) -> Any:
    shown = alone.teacher_views({name: params}, jnp.float32(image) / 255)[name]
    return {
      key: losses.phi_s(x.reshape(-1, x.shape[-1]))[1]
      for key, x in shown.maps.items()
    }

  found = compute(parts.teacher_params[name], batch["image"])
  return {key: float(value) for key, value in found.items()}


def score(
  parts: experiment.Experiment,
  name: str,
  batch: dict[str, jax.Array],
  every: int = 1,
) -> Score:
  """A teacher's accuracy on a batch; all processes call it together.

  It runs once, so that compile time dominates: the teacher's blocks are
  scanned, which compiles a single block, and code for a CPU is not optimised.

  Args:
    parts: the training.
    name: of a teacher that has the dataset's classes.
    batch: "image" uint8 [B, H, W, 3] and "label" int32 [B], on the mesh.
    every: use every `every`-th example; the number of gradient-accumulation
      steps keeps the memory at that of a training step.
  """
  teacher = parts.objective.teachers[name]

  def compute(params: Any, image: jax.Array, label: jax.Array) -> jax.Array:
    model, params = teacher.model.quick_to_compile(params)
    logits = running.logits(model, *teacher.stats, params, image[::every])
    return jnp.mean(jnp.argmax(logits, -1) == label[::every])

  on_cpu = parts.mesh.devices.flat[0].platform == "cpu"
  compute = jax.jit(
    compute,
    out_shardings=sharding.replicated(parts.mesh),
    compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None,
  )
  top1 = compute(parts.teacher_params[name], batch["image"], batch["label"])
  return Score(float(np.asarray(top1)), 1 / parts.info.num_classes)
