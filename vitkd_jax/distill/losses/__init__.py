"""Distillation and task losses: pure, one value per example, in float32.

A loss knows nothing of weights and batch means: both are applied once, in the
train step. No loss sends a gradient to the teacher.
"""

from vitkd_jax.distill.losses.classes import standardise
from vitkd_jax.distill.losses.correlation import dist
from vitkd_jax.distill.losses.decoupled import dkd
from vitkd_jax.distill.losses.logits import (
  GAMMA,
  TEMPERATURE,
  deit_soft,
  hard_distillation,
  kl,
  nkd,
  soft_cross_entropy,
  ttm,
  wsld,
  wttm,
)
from vitkd_jax.distill.losses.maps import (
  MASK_RATIO,
  REDUCTION,
  REDUCTIONS,
  generation,
  mimic,
)
from vitkd_jax.distill.losses.teacher_free import uskd

__all__ = [
  "GAMMA",
  "MASK_RATIO",
  "REDUCTION",
  "REDUCTIONS",
  "TEMPERATURE",
  "deit_soft",
  "dist",
  "dkd",
  "generation",
  "hard_distillation",
  "kl",
  "mimic",
  "nkd",
  "soft_cross_entropy",
  "standardise",
  "ttm",
  "uskd",
  "wsld",
  "wttm",
]
