"""One mesh ("data", "fsdp"), what goes where on it, global batches."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None):
  """The mesh of all devices: ("data", "fsdp").

  Args:
    fsdp: devices that share one copy of the state; 1 is data parallel.
    devices: all of them by default.

  Raises:
    ValueError: the number of devices is not a multiple of `fsdp`.
  """
  devices = list(devices or jax.devices())
  if fsdp < 1 or len(devices) % fsdp:
    raise ValueError(
      f"fsdp={fsdp} does not divide the number of devices, {len(devices)}"
    )
  # Auto axes: linen's sharding constraints fail under Explicit ones, which
  # are jax.make_mesh's default.
  return jax.make_mesh(
    (len(devices) // fsdp, fsdp),
    ("data", "fsdp"),
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, P())


def batch(mesh: Mesh) -> NamedSharding:
  """The first axis is split over all devices."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def tree(shapes: Any, mesh: Mesh, *, split: bool = False) -> Any:
  """The sharding of each leaf of a tree of shapes.

  Args:
    shapes: tree of arrays or ShapeDtypeStructs.
    mesh: from `make_mesh`.
    split: FSDP: each leaf is split along its largest axis that the mesh's axis
      "fsdp" divides, and replicated where there is none. Otherwise all leaves
      are replicated.
  """

  def of_leaf(leaf):
    spec = _split_largest(leaf.shape, mesh) if split else P()
    return NamedSharding(mesh, spec)

  return jax.tree.map(of_leaf, shapes)


def place(values: Any, where: Any) -> Any:
  """Arrays of the host on the devices, or shapes with their shardings.

  Args:
    values: tree of NumPy arrays, equal on all processes, or of
      ShapeDtypeStructs.
    where: a sharding, or a tree of them.
  """
  if isinstance(where, NamedSharding):
    where = jax.tree.map(lambda _: where, values)

  def place_leaf(x, s):
    if isinstance(x, jax.ShapeDtypeStruct):
      return x.update(sharding=s)
    x = np.asarray(x)
    # `device_put` would compare the values of all processes first.
    return jax.make_array_from_callback(x.shape, s, lambda index: x[index])

  return jax.tree.map(place_leaf, values, where)


def _split_largest(shape, mesh):
  parts = mesh.shape["fsdp"]
  # A small leaf costs more to gather than it saves.
  axes = [i for i, n in enumerate(shape) if n % parts == 0]
  if parts == 1 or not axes or math.prod(shape) < 2**12:
    return P()
  largest = max(axes, key=lambda i: shape[i])
  return P(*("fsdp" if i == largest else None for i in range(len(shape))))


def global_batch(local: Mapping[str, np.ndarray], mesh: Mesh):
  """This process's part of a batch, as global arrays split over the mesh."""
  split = batch(mesh)
  return {
    name: jax.make_array_from_process_local_data(split, value)
    for name, value in local.items()
  }


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
  """Raises ValueError unless each device gets whole, equal micro-batches."""
  parts = mesh.size * accumulate
  if batch_size <= 0 or batch_size % parts:
    near = max(round(batch_size / parts), 1) * parts
    raise ValueError(
      f"batch_size={batch_size} is not a positive multiple of {parts} "
      f"({mesh.size} devices x accumulate={accumulate}); the nearest is {near}"
    )


def limit_dispatch(mesh: Mesh, before: Any, latest: Any) -> None:
  """Lets the host be one program ahead of the devices and no more.

  On several CPU devices none: their collectives wait in the threads of one
  pool, where a second program starves the first until XLA aborts both.

  Args:
    mesh: that the programs run on.
    before: result of the program before the latest, or None.
    latest: result of the latest program.
  """
  alone = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
  jax.block_until_ready(latest if alone else before)
