"""Sample images: where models look, and what a student lacks there."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.diagnostics import attention, fit, matching
from vitkd_jax.distill import tokens
from vitkd_jax.evaluation import scoring

# Images that are shown.
MOST = 6


def make(
  models: Mapping[str, scoring.Scored],
  images: np.ndarray,
  total: Mapping[str, Any],
  found: Mapping[str, Any],
) -> dict[str, Any]:
  """What some images show.

  Args:
    models: {"student", "teacher"}, or the student alone.
    images: uint8 [K, H, W, 3].
    total: sums over all images, see `running`.
    found: the result of the inspection.

  Returns:
    "image", as given; for models with attention "attention" and "last", {model:
    float32 [K, h, w]}: of what the feature that its head reads is made of
    (rollout, the largest being 1), and the attention in the last block, the
    mean over its heads, alike; and with a teacher "lacking", float32
    [K, h, w]: the squared error of the linear layer for the blocks ("student",
    "teacher") of which most is missing, in shares of the variance of a token of
    the teacher's.
  """
  shown: dict[str, Any] = {"image": images, "attention": {}, "last": {}}
  maps = {}
  for name, each in models.items():
    _, out = jax.jit(functools.partial(matching.outputs, each))(
      each.params, images
    )
    maps[name] = out
    if each.model.qkv_heads:
      shown["attention"][name], shown["last"][name] = _looked_at(each, out)
  pairs = found.get("pairs")
  if not pairs:
    return shown
  place = max(range(len(pairs)), key=lambda i: pairs[i]["missing"])
  pair, count = pairs[place], found["images"]
  student, teacher = models["student"], models["teacher"]
  own, theirs = (
    np.asarray(
      tokens.patches(
        maps[name], pair[name], "+mlp", models[name].model.num_prefix_tokens
      ),
      np.float32,
    )
    for name in ("student", "teacher")
  )
  grids = matching.grid(teacher), matching.grid(student)
  theirs = np.asarray(tokens.resample(jnp.asarray(theirs), *grids))
  count *= int(np.prod(grids[1]))
  block = total["student"]["blocks"][pair["student"]]
  other = total["both"]["resampled"][pair["teacher"]]
  crossed = total["both"]["crossed"][place]
  covariance, both, variances = fit.covariances(block, crossed, other, count)
  solved, variance = fit.layer(covariance, both), np.trace(variances)
  made = (own - block["sum"] / count) @ solved + other["sum"] / count
  error = np.square(theirs - made).sum(-1) / max(variance, 1e-30)
  shown["lacking"] = error.reshape(len(images), *grids[1]).astype(np.float32)
  shown["student"], shown["teacher"] = pair["student"], pair["teacher"]
  return shown


def made(
  found: Sequence[Mapping[str, Any]],
  errors: Mapping[str, Mapping[str, np.ndarray]],
  grid: tuple[int, int],
) -> dict[str, np.ndarray]:
  """Where what methods make fails, float32 [K, h, w] by name.

  Args:
    found: from `findings.made`.
    errors: from `generation.Trained.errors` of the images of `make`.
    grid: (h, w).

  Returns:
    Squared errors in shares of the variance of a token of the teacher's.
  """
  return {
    each["name"]: np.asarray(
      errors[each["name"]]["error"].reshape(-1, *grid) / each["variance"],
      np.float32,
    )
    for each in found
  }


def _looked_at(
  each: scoring.Scored, out: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
  """Rollout of the feature that a head reads, and the last block's attention.

  Returns:
    Two arrays [K, h, w].
  """
  weights = [attention.of_block(out, i) for i in range(each.model.depth)]
  return (
    _of_patches(each, attention.rollout(jnp.stack(weights))),
    _of_patches(each, jnp.mean(weights[-1], axis=1)),
  )


def _of_patches(each: scoring.Scored, rows: jax.Array) -> np.ndarray:
  """What the feature that a head reads has of each patch; 1 for the most."""
  prefix = each.model.num_prefix_tokens
  # The CLS token, or the mean of the patches.
  rows = rows[:, :1] if each.model.has_class_token else rows[:, prefix:]
  seen = np.asarray(jnp.mean(rows, axis=1)[:, prefix:], np.float32)
  seen = seen / seen.max(axis=1, keepdims=True)
  return seen.reshape(len(seen), *matching.grid(each))
