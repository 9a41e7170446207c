"""The mesh, and what goes where."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from vitkd_jax.cluster import sharding


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, np.float32)


def test_mesh_has_both_axes_and_all_devices():
  mesh = sharding.make_mesh(fsdp=2)
  assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
  assert mesh.size == 8


@pytest.mark.parametrize("fsdp", [0, 3])
def test_mesh_refuses_what_does_not_divide(fsdp):
  with pytest.raises(ValueError, match=f"fsdp={fsdp} does not divide"):
    sharding.make_mesh(fsdp=fsdp)


def test_large_leaves_are_split_along_their_largest_axis():
  mesh = sharding.make_mesh(fsdp=4)
  tree = {
    "kernel": shape(64, 256),
    "tall": shape(256, 64),
    "indivisible": shape(63, 257),
    "second": shape(257, 64),
    "small": shape(8, 8),
  }
  specs = jax.tree.map(lambda s: s.spec, sharding.tree(tree, mesh, split=True))
  assert specs == {
    "kernel": P(None, "fsdp"),
    "tall": P("fsdp", None),
    "indivisible": P(),
    "second": P(None, "fsdp"),
    "small": P(),  # not worth a gather
  }
  whole = sharding.tree(tree, mesh)
  assert {s.spec for s in jax.tree.leaves(whole)} == {P()}


def test_global_batch_is_split_over_all_devices_in_order():
  mesh = sharding.make_mesh(fsdp=2)
  images = np.arange(16 * 3, dtype=np.uint8).reshape(16, 3)
  batch = sharding.global_batch({"image": images}, mesh)["image"]
  np.testing.assert_array_equal(batch, images)
  assert {s.data.shape for s in batch.addressable_shards} == {(2, 3)}


@pytest.mark.parametrize(
  "size, accumulate, nearest", [(12, 1, 16), (0, 1, 8), (24, 2, 32), (-8, 1, 8)]
)
def test_batch_sizes_that_do_not_divide_name_the_nearest(
  size, accumulate, nearest
):
  mesh = sharding.make_mesh()
  with pytest.raises(ValueError, match=f"nearest is {nearest}"):
    sharding.check_batch_size(size, mesh, accumulate)
