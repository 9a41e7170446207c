"""The pass over a split that adds up the sums of evaluators."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vitkd_jax.cluster import sharding
from vitkd_jax.data import augment
from vitkd_jax.evaluation import contract
from vitkd_jax.models import protocol

Sums = dict[str, contract.Sums]


def outputs(
  model: protocol.Backbone,
  mean: Sequence[float],
  std: Sequence[float],
  params: Any,
  image: jax.Array,
) -> tuple[jax.Array, Any]:
  """What a model returns for images as batches have them.

  Args:
    model: the model.
    mean: of images in [0, 1], as it normalises them, per channel.
    std: likewise.
    params: its parameters.
    image: [B, H, W, 3] uint8.

  Returns:
    Logits [B, C] float32, and its maps, see `protocol.Backbone.apply`.
  """
  image = augment.normalize(jnp.float32(image) / 255, mean, std)
  found, out = model.apply({"params": params}, image)
  return jnp.float32(found), out


def logits(
  model: protocol.Backbone,
  mean: Sequence[float],
  std: Sequence[float],
  params: Any,
  image: jax.Array,
) -> jax.Array:
  """A model's logits of images as batches have them.

  Args:
    model: the model.
    mean: of images in [0, 1], as it normalises them, per channel.
    std: likewise.
    params: its parameters.
    image: [B, H, W, 3] uint8.

  Returns:
    [B, C] float32.
  """
  return outputs(model, mean, std, params, image)[0]


def make_update(
  evaluators: Mapping[str, contract.Evaluator],
) -> Callable[[Sums, contract.Logits, contract.Batch], Sums]:
  """The function (sums, logits by model, batch) -> sums, to be jitted.

  Args:
    evaluators: by name; each receives the logits of all models.

  Returns:
    The function. Its first sums are those of `zero_sums`; a batch has the
    arrays that `contract.Evaluator` documents.
  """

  def update(
    sums: Sums, logits: contract.Logits, batch: contract.Batch
  ) -> Sums:
    return {
      name: evaluator.update(sums[name], logits, batch)
      for name, evaluator in evaluators.items()
    }

  return update


def make_step(
  models: Mapping[str, Callable[[Any, jax.Array], jax.Array]],
  evaluators: Mapping[str, contract.Evaluator],
) -> Callable[[Sums, Mapping[str, Any], contract.Batch], Sums]:
  """The function (sums, {model: params}, batch) -> sums, to be jitted.

  Args:
    models: functions (params, image [B, H, W, 3] uint8) -> logits [B, C]
      float32, by name.
    evaluators: by name; each receives the logits of all models.

  Returns:
    The step, as from `make_update`; a batch has "image", too.
  """
  update = make_update(evaluators)

  def step(
    sums: Sums, params: Mapping[str, Any], batch: contract.Batch
  ) -> Sums:
    logits = {
      name: model(params[name], batch["image"])
      for name, model in models.items()
    }
    return update(sums, logits, batch)

  return step


def zero_sums(evaluators: Mapping[str, contract.Evaluator]) -> Sums:
  """The sums before the first batch.

  Args:
    evaluators: by name, as for `make_step`.
  """
  return {name: evaluator.init() for name, evaluator in evaluators.items()}


def run(
  step: Callable[..., Sums],
  zeros: Sums,
  models: Mapping[str, Mapping[str, Any]],
  batches: Iterable[Mapping[str, Any]],
  mesh: Mesh,
  after_batch: Callable[[dict[str, Sums]], None] = lambda sums: None,
) -> dict[str, Any]:
  """The sums of several sets of parameters, in one pass over the images.

  Args:
    step: from `make_step`, jitted.
    zeros: from `zero_sums`, or the sums of batches before; on the mesh.
    models: `params` of the step, by name, such as {"ema": {"student": ...}}.
    batches: this process's part of each batch, NumPy arrays by name, or global
      batches.
    mesh: the mesh that the step runs on.
    after_batch: called with the sums, on the mesh, after each batch; may
      raise.

  Returns:
    Sums on the host, by the names of `models`.
  """
  sums = dict.fromkeys(models, zeros)
  for batch in batches:
    batch = sharding.global_batch(batch, mesh)
    for name, params in models.items():
      before = sums[name]
      sums[name] = step(before, params, batch)
      sharding.limit_dispatch(mesh, before, sums[name])
    after_batch(sums)
  return jax.device_get(sums)
