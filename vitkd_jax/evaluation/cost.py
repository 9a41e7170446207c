"""What a forward pass costs: parameters, FLOPs, and time."""

from collections.abc import Callable
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vitkd_jax.cluster import sharding

# Seconds for which a forward pass is repeated to be timed, or how often it is
# in each of several processes.
_TIMED, _PASSES = 1.0, 3


def of_image(scored: Any) -> dict[str, Any]:
  """What one image costs a model.

  Args:
    scored: a `scoring.Scored`.

  Returns:
    "parameters", their number, and "flops" of a forward pass: matrix products
    alone, two FLOPs per multiply-add.
  """
  grid = scored.model.grid(*scored.images.size)
  leaves = jax.tree.leaves(scored.params)
  return {
    "parameters": sum(math.prod(jnp.shape(leaf)) for leaf in leaves),
    "flops": sum(scored.model.forward_flops(grid)),
  }


def speed(
  forward: Callable[[jax.Array], Any],
  shape: tuple[int, ...],
  mesh: Mesh,
  *,
  compiled: bool = True,
) -> dict[str, Any]:
  """The speed of a compiled forward pass.

  The images are on the devices already: it is without reading and decoding.

  Args:
    forward: maps images uint8, split over the mesh, to anything.
    shape: (B, H, W, 3) of the images.
    mesh: that it runs on.
    compiled: False if this would be the first pass, which is then not timed.

  Returns:
    "images_per_second" on all devices, "batch_size", "devices", their number,
    and "device", their kind.
  """
  rows = sharding.batch(mesh)
  image = jax.jit(lambda: jnp.zeros(shape, jnp.uint8), out_shardings=rows)()
  jax.block_until_ready(image if compiled else forward(image))
  seconds: list[float] = []
  while not seconds or _goes_on(seconds):
    began = time.monotonic()
    jax.block_until_ready(forward(image))
    seconds.append(time.monotonic() - began)
  devices = mesh.devices.flat
  return {
    "images_per_second": shape[0] / min(seconds),
    "batch_size": shape[0],
    "devices": len(devices),
    "device": devices[0].device_kind,
  }


def _goes_on(seconds: list[float]) -> bool:
  """Whether to time one more pass: all processes must say the same."""
  if jax.process_count() > 1:
    return len(seconds) < _PASSES
  return sum(seconds) < _TIMED
