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
  channel_mask,
  generation,
  mgd,
  mimic,
  spectral,
)
from vitkd_jax.distill.losses.norms import NORMS
from vitkd_jax.distill.losses.regression import (
  METRICS,
  orthogonal,
  phi_s,
  regression,
  srrl,
)
from vitkd_jax.distill.losses.relations import (
  MINILM_PAIRS,
  NUM_RANDOM_TOKENS,
  PAIRS,
  TOKEN_TEMPERATURE,
  cka,
  manifold_patch,
  manifold_rand,
  manifold_sample,
  qkv_relation,
  token_similarity,
  unbiased_cka,
)
from vitkd_jax.distill.losses.teacher_free import uskd
from vitkd_jax.distill.losses.teachers import (
  DROP_NORMALISATIONS,
  teacher_coefficients,
  teacher_drop,
)

__all__ = [
  "DROP_NORMALISATIONS",
  "GAMMA",
  "MASK_RATIO",
  "METRICS",
  "MINILM_PAIRS",
  "NORMS",
  "NUM_RANDOM_TOKENS",
  "PAIRS",
  "REDUCTION",
  "REDUCTIONS",
  "TEMPERATURE",
  "TOKEN_TEMPERATURE",
  "channel_mask",
  "cka",
  "deit_soft",
  "dist",
  "dkd",
  "generation",
  "hard_distillation",
  "kl",
  "manifold_patch",
  "manifold_rand",
  "manifold_sample",
  "mgd",
  "mimic",
  "nkd",
  "orthogonal",
  "phi_s",
  "qkv_relation",
  "regression",
  "soft_cross_entropy",
  "spectral",
  "srrl",
  "standardise",
  "teacher_coefficients",
  "teacher_drop",
  "token_similarity",
  "ttm",
  "unbiased_cka",
  "uskd",
  "wsld",
  "wttm",
]
