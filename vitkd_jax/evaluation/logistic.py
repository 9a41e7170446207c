"""Multinomial logistic regression on features, by L-BFGS on all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from vitkd_jax.cluster import sharding
from vitkd_jax.evaluation import ridge

# Images whose logits are held at a time, over all devices.
_ROWS = 2**15
# Iterations at most, and the largest entry of the gradient that ends them.
_MOST, _SMALL = 200, 1e-6

Parameters = dict[str, jax.Array]


class Regression:
  """The loss of a training split on the devices, and its minimum.

  The loss is the mean cross-entropy of whitened features, and half the squared
  norm of the kernel times a strength; the bias is free.

  Args:
    x: [N, D] float32, features of the training images.
    label: [N] int32.
    num_classes: C.
    mesh: from `sharding.make_mesh`.
  """

  def __init__(
    self, x: np.ndarray, label: np.ndarray, num_classes: int, mesh: Mesh
  ):
    self._mean, self._std = ridge.statistics(x)
    self._number, self._mesh = len(x), mesh
    shape = x.shape[1], num_classes
    self._rows = -(-min(_ROWS, len(x)) // mesh.size) * mesh.size
    data = {"x": x, "label": label.astype(np.int32)}
    self._data = {name: self._placed(each) for name, each in data.items()}
    zeros = {
      "kernel": np.zeros(shape, np.float32),
      "bias": np.zeros(num_classes, np.float32),
    }
    replicated = sharding.replicated(mesh)
    self._solver = optax.lbfgs()
    self._init = jax.jit(self._solver.init, out_shardings=replicated)
    self._step = jax.jit(self._iterate, out_shardings=replicated)
    self.params: Parameters = sharding.place(zeros, replicated)

  def _placed(self, each: np.ndarray) -> jax.Array:
    """Rows in blocks, each of which is split over the devices."""
    missing = -len(each) % self._rows
    each = np.pad(each, ((0, missing), *((0, 0),) * (each.ndim - 1)))
    each = each.reshape(-1, self._rows, *each.shape[1:])
    split = NamedSharding(self._mesh, P(None, ("data", "fsdp")))
    return sharding.place(each, split)

  def _loss(
    self, params: Parameters, strength: jax.Array, data: dict[str, jax.Array]
  ) -> jax.Array:
    mean, std = jnp.float32(self._mean), jnp.float32(self._std)

    @jax.checkpoint
    def add(total: jax.Array, block: dict[str, jax.Array]) -> Any:
      logits = (
        jnp.matmul((block["x"] - mean) / std, params["kernel"],
                   precision="highest")
        + params["bias"]
      )  # fmt: skip
      each = optax.softmax_cross_entropy_with_integer_labels(
        logits, block["label"]
      )
      return total + jnp.sum(each * block["weight"]), None

    total, _ = jax.lax.scan(add, jnp.zeros(()), data)
    norm = jnp.sum(jnp.square(params["kernel"]))
    return total / jnp.sum(data["weight"]) + strength / 2 * norm

  def _iterate(
    self,
    params: Parameters,
    state: Any,
    strength: jax.Array,
    data: dict[str, jax.Array],
  ) -> tuple[Parameters, Any, jax.Array]:
    def loss(params: Parameters) -> jax.Array:
      return self._loss(params, strength, data)

    value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
    updates, state = self._solver.update(
      grad, state, params, value=value, grad=grad, value_fn=loss
    )
    params = optax.apply_updates(params, updates)
    left = optax.tree.norm(optax.tree.get(state, "grad"), ord=jnp.inf)
    return params, state, left

  def minimise(
    self,
    strength: float,
    used: np.ndarray | None = None,
    advance: Callable[[int], None] = lambda number: None,
  ) -> tuple[ridge.Linear, int]:
    """The classifier at the minimum, from that of the call before.

    Args:
      strength: of the regularisation, > 0.
      used: [N] bool, the images that count; None for all.
      advance: called with 1 after each iteration.

    Returns:
      It, and the number of iterations.
    """
    weight = np.ones(self._number, bool) if used is None else used
    data = {**self._data, "weight": self._placed(weight.astype(np.float32))}
    state = self._init(self.params)
    left, done = np.inf, 0
    while float(left) > _SMALL and done < _MOST:
      done += 1
      self.params, state, left = self._step(
        self.params, state, np.float32(strength), data
      )
      advance(1)
    kernel, bias = (
      np.asarray(self.params[name], np.float64) for name in ("kernel", "bias")
    )
    return ridge.unwhitened(kernel, bias, self._mean, self._std), done
