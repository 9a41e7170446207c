"""Which parts of two models are compared."""

from typing import Any

import jax

from vitkd_jax.evaluation import running, scoring


def grid(model: scoring.Scored) -> tuple[int, int]:
  """Rows and columns of a model's patch tokens.

  Args:
    model: the model.
  """
  return model.model.grid(*model.images.size)


def outputs(
  model: scoring.Scored, params: Any, image: jax.Array
) -> tuple[jax.Array, Any]:
  """Logits and maps of images, with q, k and v where a model has them.

  Args:
    model: the model.
    params: its parameters.
    image: [B, H, W, 3] uint8.
  """
  shows = model.model.with_qkv() if model.model.qkv_heads else model.model
  stats = model.images.mean, model.images.std
  return running.outputs(shows, *stats, params, image)
