"""What the step benchmark times: our step in its forms, and the peer's."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cases
from vitkd_jax.cluster import sharding
from vitkd_jax.training import steps as train_steps

# Dense bfloat16 FLOP/s by the makers' datasheets, by JAX's name of the device.
PEAKS = {
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989.4e12,
  "NVIDIA H200": 989.4e12,
}


class Ours:
  """Our step, compiled, with its state.

  Args:
    parts: the experiment, from `cases.build`.
    state: the initial one; it is copied.
    frozen: the teachers' parameters, see `cases.teacher`.
    options: of the compiler, beside the step's own.
  """

  def __init__(self, parts, state, frozen, options=None):
    self.parts, self.teacher_params = parts, frozen
    self.state = jax.tree.map(jnp.copy, state)
    self.batch = sharding.global_batch(cases.batch(self.parts), self.parts.mesh)
    lowered = self.parts.make_train_step().lower(
      self.state, self.teacher_params, self.batch
    )
    start = time.perf_counter()
    self.compiled = lowered.compile(compiler_options=options)
    self.compile_seconds = time.perf_counter() - start

  def first(self) -> dict[str, float]:
    """Makes the first step and returns its metrics."""
    self.step()
    metrics = jax.device_get(self.metrics["metrics"])
    return {name: float(total) for name, (total, _) in metrics.items()}

  def step(self):
    """One update, not waited for."""
    self.state, self.metrics = self.compiled(
      self.state, self.teacher_params, self.batch
    )

  def wait(self):
    """Waits for the device."""
    jax.block_until_ready((self.state, self.metrics))

  def peak_bytes(self):
    """The compiler's figure for the step's memory."""
    memory = self.compiled.memory_analysis()
    return (
      memory.temp_size_in_bytes
      + memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
    )

  def repeats(self) -> bool:
    """Whether two runs of the step from one state agree bit for bit."""
    start = jax.tree.map(jnp.copy, self.state)
    ends = []
    for _ in range(2):
      self.state = jax.tree.map(jnp.copy, start)
      self.step()
      ends.append(jax.device_get(self.state.params))
    return all(
      np.array_equal(*leaves)
      for leaves in zip(*map(jax.tree.leaves, ends), strict=True)
    )


class Theirs:
  """The peer's step on a fixed batch."""

  def __init__(self, peer, batch):
    self.peer, self.tensors = peer, peer.tensors(batch)
    before = peer.allocated_bytes()
    start = time.perf_counter()
    self.step()
    self.wait()
    self.compile_seconds = time.perf_counter() - start
    self.peak = None
    if before is not None:
      peer.reset_peak()
      self.step()
      self.wait()
      self.peak = peer.peak_bytes() - before + peer.own_bytes()
      peer.release()

  def step(self):
    """One update, not waited for."""
    self.peer.step(*self.tensors)

  def wait(self):
    """Waits for the device."""
    self.peer.wait()

  def peak_bytes(self):
    """Peak memory of its tensors in a step; None on a CPU."""
    return self.peak


def first_loss(parts, batch, peer) -> float:
  """The peer's loss of the batch and mask of our first step, untrained.

  Args:
    parts: the experiment, without augmentation.
    batch: from `cases.batch`.
    peer: a `peer_torch.Peer` that has made no step.
  """
  import torch

  _, key, _ = train_steps.keys(parts.run.seed, 0)
  draws = parts.objective.draws(key, parts.run.batch_size)
  mask = torch.from_numpy(np.array(draws["vitkd"]["mask"])).to(peer.device)
  with torch.no_grad():
    return float(peer.loss(*peer.tensors(batch), mask))


def in_turns(contestants, rounds, steps):
  """{name: [seconds a step in each round]}."""
  times = {name: [] for name in contestants}
  for _ in range(rounds):
    for name, contestant in contestants.items():
      contestant.step()
      contestant.wait()
      start = time.perf_counter()
      for _ in range(steps):
        contestant.step()
      contestant.wait()
      times[name].append((time.perf_counter() - start) / steps)
  return times


def ratio(times, ours, theirs):
  """The median of theirs / ours over the rounds."""
  pairs = zip(times[theirs], times[ours], strict=True)
  return statistics.median(b / a for b, a in pairs)


def matmul_rate(dtype: str, side: int) -> float:
  """FLOP/s of square products of random matrices, the best of five runs.

  Args:
    dtype: of the matrices.
    side: rows and columns of the matrices.
  """
  x = jax.random.normal(jax.random.key(0), (side, side), dtype) / side**0.5
  product = jax.jit(lambda a, b: a @ b)
  jax.block_until_ready(product(x, x))
  best = float("inf")
  for _ in range(5):
    start = time.perf_counter()
    y = x
    for _ in range(4):
      y = product(y, x)
    jax.block_until_ready(y)
    best = min(best, (time.perf_counter() - start) / 4)
  return 2 * side**3 / best
