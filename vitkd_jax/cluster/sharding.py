"""The mesh ("data", "fsdp"), shardings of state and batches."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np


def make_mesh(
  fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh of all devices: ("data", "fsdp").

  Args:
    fsdp: number of devices that share one copy of the state; 1 is data
      parallel.
    devices: all of them by default.

  Raises:
    ValueError: the number of devices is not divisible by `fsdp`.
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
  """The sharding in which every device holds the whole array.

  Args:
    mesh: from `make_mesh`.
  """
  return NamedSharding(mesh, P())


def batch(mesh: Mesh) -> NamedSharding:
  """The sharding that splits the first axis over all devices.

  Args:
    mesh: from `make_mesh`.
  """
  return NamedSharding(mesh, P(("data", "fsdp")))


def tree(shapes: Any, mesh: Mesh, *, split: bool = False) -> Any:
  """The sharding of each leaf of a tree.

  Args:
    shapes: tree of arrays or ShapeDtypeStructs.
    mesh: from `make_mesh`.
    split: FSDP: split each leaf along its largest axis that the size of mesh
      axis "fsdp" divides, and replicate small leaves and those without such an
      axis. Otherwise replicate all leaves.

  Returns:
    A tree of NamedShardings.
  """
  return jax.tree.map(
    lambda leaf: NamedSharding(
      mesh, _split_largest(leaf.shape, mesh) if split else P()
    ),
    shapes,
  )


def place(values: Any, where: Any) -> Any:
  """Host arrays on the devices, or shapes with their shardings.

  Args:
    values: tree of NumPy arrays, equal on all processes, or of
      ShapeDtypeStructs.
    where: a sharding, or a tree of them.

  Returns:
    A tree of global jax.Arrays, or of ShapeDtypeStructs with shardings.
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


def _split_largest(shape: tuple[int, ...], mesh: Mesh) -> P:
  parts = mesh.shape["fsdp"]
  # A small leaf costs more to gather than it saves.
  axes = [i for i, n in enumerate(shape) if n % parts == 0]
  if parts == 1 or not axes or math.prod(shape) < 2**12:
    return P()
  largest = max(axes, key=lambda i: shape[i])
  return P(*("fsdp" if i == largest else None for i in range(len(shape))))


def global_batch(
  local: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
  """The global batch of which each process holds a part.

  Args:
    local: this process's examples, [B / number of processes, ...] by name;
      jax.Arrays are global already.
    mesh: from `make_mesh`.

  Returns:
    Global arrays [B, ...], split over all devices of the mesh.
  """
  split = batch(mesh)
  return {
    name: value
    if isinstance(value, jax.Array)
    else jax.make_array_from_process_local_data(split, value)
    for name, value in local.items()
  }


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
  """Refuses a batch that does not split evenly.

  Args:
    batch_size: B, over all devices.
    mesh: from `make_mesh`.
    accumulate: gradient-accumulation steps.

  Raises:
    ValueError: B is not a positive multiple of devices x `accumulate`.
  """
  parts = mesh.size * accumulate
  if batch_size <= 0 or batch_size % parts:
    near = max(round(batch_size / parts), 1) * parts
    raise ValueError(
      f"expected batch_size to be a positive multiple of {parts} "
      f"({mesh.size} devices x accumulate={accumulate}), got {batch_size}; the "
      f"nearest is {near}"
    )


def limit_dispatch(mesh: Mesh, before: Any, latest: Any) -> None:
  """Blocks until the host is at most one program ahead of the devices.

  On several CPU devices it must not be ahead at all: collectives wait in the
  threads of one pool, where a second program starves the first until XLA
  aborts both.

  Args:
    mesh: the mesh that the programs run on.
    before: result of the program before the latest, or None.
    latest: result of the latest program.
  """
  alone = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
  jax.block_until_ready(latest if alone else before)
