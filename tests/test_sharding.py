"""The mesh, the rules, and what goes where."""

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


def test_first_matching_rule_wins_and_all_leaves_are_covered():
  mesh = sharding.make_mesh(fsdp=4)
  tree = {
    "big": {"kernel": shape(64, 256)},
    "other": {"kernel": shape(64, 256)},
    "odd": shape(63, 257),
    "small": shape(8, 8),
  }
  rules = (("big/.*", "replicate"), (".*", "fsdp"))
  specs = jax.tree.map(lambda s: s.spec, sharding.tree(tree, mesh, rules))
  assert specs["big"]["kernel"] == P()
  assert specs["other"]["kernel"] == P(None, "fsdp")
  assert specs["odd"] == P()  # nothing that four divides
  assert specs["small"] == P()  # not worth a gather


@pytest.mark.parametrize(
  "rules, said",
  [
    ((("b", "fsdp"),), "no sharding rule matches a"),
    (((".*", "split"),), "wanted 'replicate' or 'fsdp'"),
  ],
)
def test_rules_that_do_not_fit_are_refused(rules, said):
  with pytest.raises(ValueError, match=said):
    sharding.tree({"a": shape(4)}, sharding.make_mesh(), rules)


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
