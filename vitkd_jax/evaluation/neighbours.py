"""Votes of the nearest training images, as in DINO's evaluation."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import numpy as np

from vitkd_jax.cluster import sharding

# Images whose similarities to all training images are held at a time.
_AT_A_TIME = 64
# Norm below which features are not divided by it, as in PyTorch.
_LEAST = 1e-12
_ROWS = P(("data", "fsdp"))


def place(x: np.ndarray, label: np.ndarray, mesh: Mesh) -> dict[str, Any]:
  """Training features of norm 1, split over the devices.

  Args:
    x: [N, D] float32.
    label: [N] int32.
    mesh: from `sharding.make_mesh`.

  Returns:
    "x" [M, D] and "label" [M], -1 in the rows beyond N.
  """
  missing = -len(x) % mesh.size
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  x = np.pad(x / np.maximum(norm, _LEAST), ((0, missing), (0, 0)))
  label = np.pad(np.int32(label), (0, missing), constant_values=-1)
  return sharding.place({"x": x, "label": label}, sharding.batch(mesh))


def votes(
  x: jax.Array,
  bank: dict[str, jax.Array],
  mesh: Mesh,
  *,
  neighbours: Sequence[int],
  temperature: float,
  num_classes: int,
) -> list[jax.Array]:
  """The votes for each class, of each number of neighbours.

  A neighbour's vote is exp(cosine similarity / temperature), as in
  `eval_knn.py` of DINO (arXiv:2104.14294). Of equally near ones the first
  votes, on any number of devices.

  Args:
    x: [B, D] float32, features.
    bank: from `place`.
    mesh: that it is placed on.
    neighbours: numbers of neighbours, at most N.
    temperature: > 0.
    num_classes: C.

  Returns:
    [B, C] float32 for each of `neighbours`.
  """
  most = max(neighbours)

  def nearest_here(
    x: jax.Array, others: jax.Array, label: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    near = jnp.matmul(x, others.T, precision="highest")
    near = jnp.where(label >= 0, near, -jnp.inf)
    near, at = jax.lax.top_k(near, min(most, len(label)))
    return near, label[at]

  nearest = jax.shard_map(
    nearest_here,
    mesh=mesh,
    in_specs=(P(), _ROWS, _ROWS),
    out_specs=(P(None, *_ROWS), P(None, *_ROWS)),
  )

  def of_some(x: jax.Array) -> jax.Array:
    near, label = nearest(x, bank["x"], bank["label"])
    near, at = jax.lax.top_k(near, most)  # of all devices
    label = jnp.take_along_axis(label, at, axis=1)
    weight = jnp.exp(near / temperature)
    by_class = jax.nn.one_hot(label, num_classes)
    counts = jnp.arange(most) < jnp.array(neighbours)[:, None]
    return jnp.einsum(
      "bk,mk,bkc->bmc", weight, jnp.float32(counts), by_class,
      precision="highest",
    )  # fmt: skip

  norm = jnp.linalg.norm(x, axis=1, keepdims=True)
  x = x / jnp.maximum(norm, _LEAST)
  missing = -len(x) % _AT_A_TIME
  parts = jnp.pad(x, ((0, missing), (0, 0)))
  parts = parts.reshape(-1, _AT_A_TIME, x.shape[1])
  found = jax.lax.map(of_some, parts)
  found = found.reshape(-1, *found.shape[2:])[: len(x)]
  return [found[:, i] for i in range(len(neighbours))]
