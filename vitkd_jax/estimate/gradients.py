"""One batch's loss terms and gradients, before any update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vitkd_jax.distill import objective
from vitkd_jax.training import experiment


class Found(NamedTuple):
  """Of one batch.

  Attributes:
    means: {term: mean over the batch, unweighted}.
    weighted: {term: the mean times its weight}.
    student_norms: {term: norm of the student's gradient of the weighted term}.
    leaf_norms: {"student", "methods"}: norm of each parameter's gradient of the
      total loss.
  """

  means: dict[str, Any]
  weighted: dict[str, Any]
  student_norms: dict[str, Any]
  leaf_norms: dict[str, Any]


def make(parts: experiment.Experiment) -> Callable[[Any, Any], Found]:
  """A function (params, batch) -> Found that computes as the train step does.

  The parameters are {"student", "methods"}; a batch has "image" uint8
  [B, H, W, 3] and "label" int32 [B], on the mesh.

  Args:
    parts: the training.
  """
  found = parts.objective
  weights = found.weights_at(jnp.int32(0))

  @jax.jit
  def compute(
    params: Any, teacher_params: Any, image: jax.Array, label: jax.Array
  ) -> Found:
    keys = jax.random.split(jax.random.key(parts.run.seed), 3)
    image, target = parts.augment(keys[0], image, label)
    draws = found.draws(keys[1], image.shape[0])
    views = found.teacher_views(teacher_params, image)

    def weighted(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
      values, _ = found.losses(
        params, views, image, target, draws, weights, keys[2]
      )
      means = {term: jnp.mean(value) for term, value in values.items()}
      each = [weights[term] * means[term] for term in found.terms]
      return jnp.stack(each), means

    each, back, means = jax.vjp(weighted, params, has_aux=True)
    (total,) = back(jnp.ones_like(each))
    # One after the other, so that they need the memory of one.
    norms = jax.lax.map(
      lambda row: optax.tree.norm(back(row)[0]["student"]), jnp.eye(len(each))
    )
    return Found(
      means,
      dict(zip(found.terms, each, strict=True)),
      dict(zip(found.terms, norms, strict=True)),
      {part: jax.tree.map(_norm, total[part]) for part in objective.PARTS},
    )

  return lambda params, batch: jax.device_get(
    compute(params, parts.teacher_params, batch["image"], batch["label"])
  )


def _norm(leaf: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(leaf * leaf))
