"""Distillation and task losses: pure, one value per example, in float32.

A loss knows nothing of weights and batch means: both are applied once, in the
train step. No loss sends a gradient to the teacher.
"""

from vitkd_jax.distill.losses.logits import (
  GAMMA,
  TEMPERATURE,
  hard_distillation,
  kl,
  nkd,
  soft_cross_entropy,
)
from vitkd_jax.distill.losses.maps import (
  MASK_RATIO,
  REDUCTION,
  REDUCTIONS,
  generation,
  mimic,
)

__all__ = [
  "GAMMA",
  "MASK_RATIO",
  "REDUCTION",
  "REDUCTIONS",
  "TEMPERATURE",
  "generation",
  "hard_distillation",
  "kl",
  "mimic",
  "nkd",
  "soft_cross_entropy",
]
