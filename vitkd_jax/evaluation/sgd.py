"""Linear classifiers of features, by stochastic gradient descent.

As DINOv2's linear evaluation (`dinov2/eval/linear.py`): cross-entropy,
momentum, no weight decay, a learning rate that falls to 0 along a cosine, and
many rates trained at once on the same batches. It differs in that features are
whitened and of one crop, and in that the rate is chosen on held-out training
images.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from vitkd_jax.cluster import sharding
from vitkd_jax.evaluation import ridge

# Theirs. A rate is for 256 images; that of a batch is proportional to its size.
RATES = tuple(
  np.outer([1e-5, 1e-4, 1e-3, 1e-2], [1, 2, 5]).ravel().tolist() + [0.1]
)
BATCH = 1024
_MOMENTUM = 0.9
# Steps in a call of the program, whose batches are on the devices together.
_STEPS = 50

Advance = Callable[[int], None]


def fit(
  x: np.ndarray,
  label: np.ndarray,
  num_classes: int,
  mesh: Mesh,
  *,
  steps: int,
  rates: Sequence[float] = RATES,
  batch_size: int = BATCH,
  advance: Advance = lambda number: None,
) -> list[ridge.Linear]:
  """The classifier for each learning rate, from zeros.

  Args:
    x: [N, D] float32, features of the training images; equal on all processes.
    label: [N] int32.
    num_classes: C.
    mesh: from `sharding.make_mesh`.
    steps: number of updates.
    rates: of 256 images.
    batch_size: images of an update, at most N.
    advance: called with the number of updates done.
  """
  mean, std = ridge.statistics(x)
  size = min(batch_size, len(x))
  shape = len(rates), x.shape[1], num_classes
  zeros = {
    "kernel": np.zeros(shape, np.float32),
    "bias": np.zeros(shape[::2], np.float32),
  }
  replicated = sharding.replicated(mesh)
  params = sharding.place(zeros, replicated)
  state = params, params
  run = jax.jit(_run, out_shardings=replicated)
  split = NamedSharding(mesh, P(None, ("data", "fsdp")))
  over = 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
  scaled = np.outer(over, rates) * (size / 256)
  drawn = _drawn(len(x), size)
  for start in range(0, steps, _STEPS):
    done = min(_STEPS, steps - start)
    rows = np.stack([next(drawn) for _ in range(done)])
    # Updates of rate 0 fill the last call, and rows of weight 0 the devices.
    missing = (0, _STEPS - done), (0, -size % mesh.size)
    batches = {
      "x": np.pad(np.float32((x[rows] - mean) / std), (*missing, (0, 0))),
      "label": np.pad(label[rows].astype(np.int32), missing),
      "weight": np.pad(np.full(rows.shape, 1 / size, np.float32), missing),
    }
    now = np.pad(scaled[start : start + done], (missing[0], (0, 0)))
    state = run(state, sharding.place(batches, split), np.float32(now))
    advance(done)
  found = jax.tree.map(lambda a: np.asarray(a, np.float64), state[0])
  return [
    ridge.unwhitened(kernel, bias, mean, std)
    for kernel, bias in zip(found["kernel"], found["bias"], strict=True)
  ]


def _drawn(number: int, size: int) -> Iterator[np.ndarray]:
  """Rows of each batch: permutations of all, one after the other."""
  rng, left = np.random.default_rng(0), np.empty(0, np.int64)
  while True:
    while len(left) < size:
      left = np.concatenate([left, rng.permutation(number)])
    yield left[:size]
    left = left[size:]


def _run(state: Any, batches: dict[str, jax.Array], rates: jax.Array) -> Any:
  """State (parameters, velocities) of every rate after some updates."""

  def update(state: Any, given: Any) -> Any:
    (params, velocity), (batch, rate) = state, given
    gradient = jax.grad(_loss)(params, batch)
    velocity = jax.tree.map(lambda v, g: _MOMENTUM * v + g, velocity, gradient)
    params = jax.tree.map(
      lambda p, v: p - rate.reshape(-1, *(1,) * (p.ndim - 1)) * v,
      params,
      velocity,
    )
    return (params, velocity), None

  return jax.lax.scan(update, state, (batches, rates))[0]


def _loss(params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> Any:
  """The sum over rates, whose gradients are those of each rate alone."""
  logits = jnp.einsum(
    "bd,rdc->rbc", batch["x"], params["kernel"], precision="highest"
  )
  each = optax.softmax_cross_entropy_with_integer_labels(
    logits + params["bias"][:, None],
    jnp.broadcast_to(batch["label"], logits.shape[:2]),
  )
  return jnp.sum(each * batch["weight"])
