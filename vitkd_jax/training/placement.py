"""Images on the devices for a whole training: config.data.placement="device".

The step then takes the training split's arrays, and the indices of some steps'
examples, in the place of a batch, and gathers its batch itself. The examples of
a batch are those that the host would have read.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vitkd_jax import check as checks
from vitkd_jax.cluster import sharding
from vitkd_jax.data import datasets, memory
from vitkd_jax.training import sections

Batch = dict[str, jax.Array]
# What a step takes in the place of a batch: "image" uint8 [n, H * W * 3] and
# "label" int32 [n], the training split; "rows" int32 [S, B], the examples of
# steps first, first + 1, ...; and "first" int32 [].
Held = Mapping[str, jax.Array]

# Examples whose indices are on the devices at a time: 256 KiB, and seconds of
# training between two transfers.
_ROWS = 2**16
# Largest share of a device's memory that images may take. The state, the
# teachers and the step's activations need the rest.
_MOST_OF_MEMORY = 0.5


def check(data: sections.Data, info: datasets.Info) -> None:
  """Refuses a placement that the images do not allow.

  Args:
    data: section `data`.
    info: description of its dataset.

  Raises:
    ValueError: the placement is unknown, or is "device" for images that the
      host crops or that differ in size.
  """
  checks.known("config.data.placement", data.placement, ("host", "device"))
  if data.placement == "host":
    return
  if data.image_size:
    raise ValueError(
      "expected whole images for config.data.placement='device', got "
      f"config.data.image_size={data.image_size}, by which the host crops "
      "them at random; set placement='host'"
      + (", or image_size=0" if info.image_size else "")
    )
  if info.image_size is None:
    raise ValueError(
      "expected images of one size for config.data.placement='device', but "
      f"those of {info.name} differ; set placement='host' and image_size"
    )


def check_fits(
  mesh: Mesh, image_size: tuple[int, int], num_train: int, num_eval: int
) -> None:
  """Refuses images that would fill the devices' memory; reads none.

  Args:
    mesh: of devices at hand. Each gets the whole training split, and its part
      of the evaluation split.
    image_size: (H, W) in pixels.
    num_train: examples in the training split.
    num_eval: examples in the evaluation split.

  Raises:
    ValueError: they need more than half of a device's memory, or of what a CPU
      has available; the message has the figures.
  """
  images = num_train + math.ceil(num_eval / mesh.size)
  needed = images * math.prod(image_size) * 3
  room = _memory(mesh)
  if room is not None and needed > _MOST_OF_MEMORY * room:
    height, width = image_size
    raise ValueError(
      "expected the images of config.data.placement='device' to need at most "
      f"{_MOST_OF_MEMORY:.0%} of a device's memory of {room / 1e6:,.1f} MB, "
      f"got {needed / 1e6:,.1f} MB ({images:,} images of {height}x{width} "
      "pixels); set placement='host'"
    )


def _memory(mesh: Mesh) -> int | None:
  """Bytes of memory of each of this process's devices; None if unknown."""
  local = mesh.local_devices
  stats = [each.memory_stats() or {} for each in local]
  limits = [each["bytes_limit"] for each in stats if "bytes_limit" in each]
  if len(limits) == len(local):
    return min(limits)
  free = memory.available() if local[0].platform == "cpu" else None
  return free and free // len(local)


def window(batch_size: int, total_steps: int) -> int:
  """S: number of steps whose examples' indices are on the devices.

  Args:
    batch_size: examples in a global batch.
    total_steps: number of steps in the run.
  """
  return min(math.ceil(_ROWS / batch_size), total_steps)


def shardings(mesh: Mesh) -> dict[str, NamedSharding]:
  """Of each array of a `Held`: every device has what its rows may need.

  Args:
    mesh: from `sharding.make_mesh`.
  """
  whole = sharding.replicated(mesh)
  rows = NamedSharding(mesh, P(None, *sharding.batch(mesh).spec))
  return {"image": whole, "label": whole, "rows": rows, "first": whole}


def shapes(
  mesh: Mesh,
  image_shape: tuple[int, int, int],
  num_train: int,
  batch_size: int,
  total_steps: int,
) -> dict[str, jax.ShapeDtypeStruct]:
  """A `Held` as sharded shapes.

  Args:
    mesh: from `sharding.make_mesh`.
    image_shape: (H, W, 3).
    num_train: examples in the training split.
    batch_size: examples in a global batch.
    total_steps: number of steps in the run.
  """
  of = jax.ShapeDtypeStruct
  held = {
    "image": of((num_train, math.prod(image_shape)), jnp.uint8),
    "label": of((num_train,), jnp.int32),
    "rows": of((window(batch_size, total_steps), batch_size), jnp.int32),
    "first": of((), jnp.int32),
  }
  return sharding.place(held, shardings(mesh))


def gather(
  held: Held, step: jax.Array, image_shape: tuple[int, int, int], mesh: Mesh
) -> Batch:
  """The batch of a step, split over the devices; nothing moves between them.

  Args:
    held: with the indices of this step.
    step: number of updates done, int32 [].
    image_shape: (H, W, 3).
    mesh: that `held` is on.

  Returns:
    {"image": uint8 [B, H, W, 3], "label": int32 [B]}.
  """
  rows = jax.lax.dynamic_index_in_dim(
    held["rows"], step - held["first"], keepdims=False
  )

  def of(values: jax.Array) -> jax.Array:
    return values.at[rows].get(mode="promise_in_bounds")

  image, label = of(held["image"]), of(held["label"])
  batch = {"image": image.reshape(-1, *image_shape), "label": label}
  # The rest compiles as it does for a batch that comes from the host.
  batch = jax.lax.optimization_barrier(batch)
  return jax.lax.with_sharding_constraint(batch, sharding.batch(mesh))


def from_held(
  step: Callable[[Any, Any, Batch], Any],
  image_shape: tuple[int, int, int],
  mesh: Mesh,
  now: Callable[[Any], jax.Array] = lambda state: state.step,
) -> Callable[[Any, Any, Held], Any]:
  """A train step that gathers its batch.

  Args:
    step: function (state, teacher_params, batch).
    image_shape: (H, W, 3).
    mesh: of the devices.
    now: from its first argument to the number of updates done.

  Returns:
    The same function of (state, teacher_params, held).
  """

  def gathering(state: Any, teacher_params: Any, held: Held) -> Any:
    batch = gather(held, now(state), image_shape, mesh)
    return step(state, teacher_params, batch)

  return gathering
