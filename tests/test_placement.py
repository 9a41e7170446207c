"""Images on the devices: the same batches, steps and runs as from the host."""

import collections
import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest
from saved import last_states
from test_train import metrics

from vitkd_jax import doctor, errors, train
from vitkd_jax.cluster import sharding
from vitkd_jax.data import datasets, decode, memory, sources
from vitkd_jax.estimate import hlo, topology
from vitkd_jax.training import experiment, feeds, inputs, loop, placement


def on_device(config):
  config = config.copy_and_resolve_references()
  config.data.placement = "device"
  return config


@pytest.fixture
def reads(monkeypatch):
  """Counts how often each record of a split, by its length, is read."""
  found = collections.Counter()
  read = sources.Records.read

  def counting(self, index, crop):
    found[len(self), int(index)] += 1
    return read(self, index, crop)

  monkeypatch.setattr(sources.Records, "read", counting)
  return found


@pytest.fixture
def damage(monkeypatch):
  """Makes records of the training split unreadable."""
  read = sources.Records.read

  def make(indices):
    def broken(self, index, crop):
      if len(self) == 64 and index in indices:
        raise decode.BadRecordError(f"record {index}: made to fail")
      return read(self, index, crop)

    monkeypatch.setattr(sources.Records, "read", broken)

  return make


@pytest.fixture
def alone(tiny_config, untraced):
  """A student alone that is never compiled."""
  tiny_config.methods = tiny_config.teachers = {}
  tiny_config.data.cache = False
  return tiny_config


def batches(config, first, count):
  """The batches of the steps after `first`, and an image's sharding."""
  parts = experiment.build(config)
  with contextlib.closing(feeds.start(parts, first)) as feed:
    found = [feed.batch(feed.next()) for _ in range(count)]
  return jax.device_get(found), found[0]["image"].sharding


@pytest.mark.parametrize(
  "repeats, fsdp, first", [(1, 1, 0), (1, 4, 5), (3, 1, 7)]
)
def test_batches_are_the_hosts(
  alone, damage, monkeypatch, repeats, fsdp, first
):
  """64 images in batches of 24: over four windows, and over four epochs."""
  damage({5, 6, 63})
  monkeypatch.setattr(placement, "_ROWS", 3 * 24)
  alone.run.batch_size, alone.run.epochs, alone.run.fsdp = 24, 9.0, fsdp
  alone.data.repeats = repeats
  host, split = batches(alone, first, 13)
  device, own = batches(on_device(alone), first, 13)
  assert own.is_equivalent_to(split, 4)
  assert len(host) == len(device) == 13
  for one, other in zip(host, device, strict=True):
    for name in ("image", "label"):
      assert one[name].dtype == other[name].dtype
      np.testing.assert_array_equal(one[name], other[name])


def test_steps_of_a_window_need_no_host(alone, reads):
  """Each image is read once, and indices are sent once a window."""
  parts = experiment.build(on_device(alone))
  with contextlib.closing(feeds.start(parts, 2)) as feed:
    first = feed.next()
    with jax.transfer_guard("disallow_explicit"):
      others = [feed.next() for _ in range(9)]
  assert all(x is first["image"] for x in (given["image"] for given in others))
  assert all(x is first["rows"] for x in (given["rows"] for given in others))
  assert reads == {(64, i): 1 for i in range(64)}


def test_evaluation_reads_its_images_once(alone, monkeypatch):
  passes, read = [], inputs.Inputs.evaluation
  monkeypatch.setattr(
    inputs.Inputs, "evaluation", lambda self: passes.append(1) or read(self)
  )

  def passed(evaluations):
    return jax.device_get(list(evaluations.batches()))

  host = feeds.Evaluations(experiment.build(alone))
  wanted = passed(host)
  passed(host)
  assert len(passes) == len(wanted) == 2
  device = feeds.Evaluations(experiment.build(on_device(alone)))
  with contextlib.closing(device.batches()) as interrupted:
    next(interrupted)
  for _ in range(3):
    jax.tree.map(np.testing.assert_array_equal, passed(device), wanted)
  assert len(passes) == 2 + 2


def test_a_batch_is_gathered_where_it_is_used():
  """No image and no index passes from one device to another."""
  mesh = sharding.make_mesh(fsdp=2)
  shapes = placement.shapes(mesh, (28, 28, 3), 100, 16, 50)
  gather = functools.partial(
    placement.gather, image_shape=(28, 28, 3), mesh=mesh
  )
  step = jax.ShapeDtypeStruct((), np.int32, sharding=sharding.replicated(mesh))
  compiled = jax.jit(gather).lower(shapes, step).compile()
  assert hlo.collectives(compiled.as_text()) == []


def test_shapes_are_those_of_the_arrays(alone):
  """What is compiled for a slice, or by the doctor, is what training runs."""
  config = on_device(alone)
  planned = experiment.build(
    config, jax.devices(), planned=topology.planned(config)
  )
  parts = experiment.build(config)
  with contextlib.closing(feeds.start(parts, 0)) as feed:
    given = feed.next()

  def what(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), dict(tree))

  assert what(given) == what(parts.step_shapes()[2])
  assert what(given)["image"] == what(planned.step_shapes()[2])["image"]
  held = topology.held(parts)
  assert "batch" not in held
  size = parts.inputs.num_train * (28 * 28 * 3 + 4)
  rows = given["rows"].shape[0] * 16 // 8 * 4
  assert held["images"] == size + rows + 4


def test_runs_are_equal_and_may_change_places(
  tiny_config, tmp_path, monkeypatch, capsys
):
  # Of eight replicas Orbax would slice each leaf, in a program for each shape.
  build = functools.partial(experiment.build, devices=jax.devices()[:2])
  monkeypatch.setattr(experiment, "build", build)
  monkeypatch.setattr(placement, "_ROWS", 4 * 16)
  host, whole, broken = (str(tmp_path / x) for x in ("host", "whole", "broken"))
  train.train(tiny_config, host)
  lines = capsys.readouterr().out.splitlines()
  accuracy = [line for line in lines if "accuracy: " in line]
  assert accuracy
  device, save = on_device(tiny_config), loop.Loop._save

  def save_and_die(self, step, *args, **kwargs):
    save(self, step, *args, **kwargs)
    self._checkpoints.wait()
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(inputs.Inputs, "train", None)  # no batch of the host's
    train.train(device, whole)
    assert set(accuracy) <= set(capsys.readouterr().out.splitlines())
    with monkeypatch.context() as dying:
      dying.setattr(loop.Loop, "_save", save_and_die)
      with pytest.raises(KeyboardInterrupt):
        train.train(device, broken)  # at step 3, in mid-epoch
    train.train(device, broken)
  assert metrics(whole) == metrics(broken)
  one, other = last_states(device, whole, broken)
  jax.tree.map(np.testing.assert_array_equal, one, other)
  # The host's step is another program, which may round otherwise.
  for ours, theirs in zip(metrics(whole), metrics(host), strict=True):
    assert ours == pytest.approx(theirs, rel=1e-3)
  # A run goes on from the other place.
  train.train(tiny_config, whole)

  parts = experiment.build(device)
  said = {x.what: x for x in doctor._compiled(parts, parts.create_state())}
  assert "images 0.1 MiB" in said["arrays, unsharded"].found


def test_bad_files_end_the_run_before_its_first_step(alone, damage):
  damage(range(30, 50))
  parts = experiment.build(on_device(alone))
  with pytest.raises(errors.FailedError, match="20 consecutive records"):
    feeds.start(parts, 0)


@pytest.mark.parametrize(
  "edits, said",
  [
    ({"placement": "disk"}, "to be one of 'host', 'device', got 'disk'"),
    (
      {"image_size": 24},
      "expected whole images for config.data.placement='device', got "
      "config.data.image_size=24",
    ),
  ],
)
def test_what_cannot_be_placed_is_refused(alone, reads, edits, said):
  config = on_device(alone)
  with config.unlocked():
    config.data.update(edits)
  with pytest.raises(ValueError, match=r".") as refusal:
    experiment.build(config)
  assert said in str(refusal.value)
  assert "\n" not in str(refusal.value)
  assert not reads


def test_too_many_images_are_refused(alone, reads, monkeypatch):
  """64 images, and an eighth of 24, of 2,352 bytes, on each of 8 devices."""
  config, enough = on_device(alone), 2 * 67 * 2352 * 8
  monkeypatch.setattr(memory, "available", lambda: enough)
  experiment.build(config)
  monkeypatch.setattr(memory, "available", lambda: enough - 8)
  with pytest.raises(ValueError, match=r".") as refusal:
    experiment.build(config)
  assert str(refusal.value) == (
    "expected the images of config.data.placement='device' to need at most 50% "
    "of a device's memory of 0.3 MB, got 0.2 MB (67 images of 28x28 pixels); "
    "set placement='host'"
  )
  assert not reads


def test_images_of_several_sizes_are_refused(alone, monkeypatch):
  info = datasets.info("fashion_mini")
  monkeypatch.setattr(
    datasets, "info", lambda *_: dataclasses.replace(info, image_size=None)
  )
  config = on_device(alone)
  said = "images of one size .* those of fashion_mini differ"
  with pytest.raises(ValueError, match=said):
    experiment.build(config)
  with pytest.raises(ValueError, match=said):
    topology.planned(config)


def test_a_devices_own_limit_counts(monkeypatch):
  class Mesh:
    size = 4

    def __init__(self, *limits):
      self.local_devices = [Device(each) for each in limits]

  class Device:
    platform = "gpu"

    def __init__(self, limit):
      self._limit = limit

    def memory_stats(self):
      return self._limit and {"bytes_limit": self._limit}

  size, needed = (32, 32), 3072 * (50_000 + 2_500)
  placement.check_fits(Mesh(10**12, 2 * needed), size, 50_000, 10_000)
  placement.check_fits(Mesh(None, None), size, 50_000, 10_000)
  with pytest.raises(ValueError, match=r"322\.6 MB, got 161\.3"):
    placement.check_fits(Mesh(10**12, 2 * needed - 1), size, 50_000, 10_000)
