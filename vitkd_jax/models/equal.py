"""Equivalent models: a scale or normalisation folded away, blocks stacked."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def frozen(
  model: nn.Module, params: Mapping[str, Any], dtype: str
) -> tuple[Any, Any]:
  """The same function for a frozen model, without LayerScale.

  Args:
    model: a `vit.ViT` or `cait.CaiT`.
    params: its parameters.
    dtype: of the parameters and matrix products.

  Returns:
    The model, and its parameters in `dtype`.
  """
  # Exact for a frozen model, and saves a product in each branch.
  params = fold_layerscale(params)
  params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)
  return model.clone(layerscale_init=None, dtype_mm=dtype), params


def fold_layerscale(params: Mapping[str, Any]) -> dict[str, Any]:
  """Folds LayerScale into the projections before it.

  gamma * (W x + b) = (gamma W) x + (gamma b), so each gamma scales attention's
  `out` or the second dense layer. The result fits the model built with
  `layerscale_init=None`.

  Args:
    params: nested parameters, with or without LayerScale, scanned or not.

  Returns:
    Nested parameters; unchanged if there is no LayerScale.
  """
  leaves = traverse_util.flatten_dict(params, sep="/")
  for branch, layer, inputs in (
    ("sa", "MultiHeadDotProductAttention_0/out", 2),
    ("mlp", "MlpBlock_0/Dense_1", 1),
  ):
    for name in [n for n in leaves if n.endswith(f"/layerscale_{branch}")]:
      block = name.rpartition("/")[0]
      gamma = leaves.pop(name)  # [D], or [depth, D] of a scanned encoder
      kernel, bias = f"{block}/{layer}/kernel", f"{block}/{layer}/bias"
      leaves[bias] = leaves[bias] * gamma
      over_inputs = (*gamma.shape[:-1], *[1] * inputs, gamma.shape[-1])
      leaves[kernel] = leaves[kernel] * gamma.reshape(over_inputs)
  return traverse_util.unflatten_dict(leaves, sep="/")


def fold_normalization(
  params: Mapping[str, Any],
  stats: tuple[Sequence[float], Sequence[float]],
  other: tuple[Sequence[float], Sequence[float]],
) -> dict[str, Any]:
  """Parameters for images that are normalised otherwise: the same function.

  A pixel p in [0, 1] is (p - m) / s to the model, and y = (p - m') / s' to the
  new one: (p - m) / s = y s' / s + (m' - m) / s. The patches do not overlap and
  are not padded, so that kernel and bias of the embedding take both terms.

  Args:
    params: nested parameters.
    stats: (m, s), mean and std of each channel that the model was trained with.
    other: (m', s') in their place.
  """
  mean, std, new_mean, new_std = np.asarray([*stats, *other], np.float64)
  kernel = np.asarray(params["embedding"]["kernel"], np.float64)  # [h, w, 3, D]
  shift = np.einsum("hwcd,c->d", kernel, (new_mean - mean) / std)
  bias = np.asarray(params["embedding"]["bias"], np.float64) + shift
  scaled = kernel * (new_std / std)[:, None]
  embedding = {
    "kernel": scaled.astype(np.float32),
    "bias": bias.astype(np.float32),
  }
  return {**params, "embedding": embedding}


def stack_blocks(params: Mapping[str, Any]) -> Mapping[str, Any]:
  """Stacks the parameters of an encoder's blocks for a scanned encoder.

  Args:
    params: nested parameters with an entry for each block.

  Returns:
    Nested parameters with one entry, [depth, ...]; unchanged if there is one
    already.
  """
  blocks = params["Transformer"]
  names = [name for name in blocks if name.startswith("encoderblock_")]
  names.sort(key=lambda name: int(name.rpartition("_")[2]))
  if not names:
    return params
  rest = {name: leaf for name, leaf in blocks.items() if name not in names}
  rest["encoderblock"] = jax.tree.map(
    lambda *leaves: jnp.stack(leaves), *(blocks[name] for name in names)
  )
  return {**params, "Transformer": rest}
