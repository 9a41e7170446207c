"""Compiling for slices that are not here; the CPU's compiler stands in.

Where libtpu is installed the TPU's own compiler is asked, too.
"""

import importlib.util
import json
import math

import drawn
import jax
import pytest

from vitkd_jax.estimate import hlo, topology
from vitkd_jax.training import experiment

LIBTPU = importlib.util.find_spec("libtpu") is not None


@pytest.fixture(autouse=True)
def off_cloud(monkeypatch):
  """What libtpu is told of the machine ends with each test."""
  for name, value in topology._OFF_CLOUD.items():
    monkeypatch.setenv(name, value)


def edited(config, **runs):
  config = config.copy_and_resolve_references()
  config.teachers.teacher.weights = "/nowhere/teacher.safetensors"
  config.augment = dict(label_smoothing=0.1)
  for name, value in runs.items():
    config.run[name] = value
  return config


@pytest.mark.parametrize(
  "name, slice_, chips",
  [  # the shapes of cloud.google.com/tpu/docs/v5e and v4
    ("v5e-1", "v5e:1x1", 1),
    ("v5e-4", "v5e:2x2", 4),
    ("v5e-8", "v5e:2x4", 8),
    ("v5litepod-16", "v5e:4x4", 16),
    ("v5e-32", "v5e:4x8", 32),
    ("v5e-128", "v5e:8x16", 128),
    ("v5e-256", "v5e:16x16", 256),
    ("v6e-64", "v6e:8x8", 64),
    ("v4-8", "v4:2x2x1", 4),
    ("v4-16", "v4:2x2x2", 8),
    ("v4-32", "v4:2x2x4", 16),
    ("v4-64", "v4:2x4x4", 32),
    ("v4-128", "v4:4x4x4", 64),
    ("v4-1024", "v4:8x8x8", 512),
    ("v5p-32", "v5p:2x2x4", 16),
    ("v5e:4x8", "v5e:4x8", 32),
    ("v4:4x4x8", "v4:4x4x8", 128),
  ],
)
def test_a_name_is_a_slice(name, slice_, chips):
  found = topology.find(name)
  assert str(found) == slice_
  assert found.chips == chips


@pytest.mark.parametrize(
  "name, said",
  [
    ("h100", "expected a TPU topology such as"),
    ("v3-8", "of v4, v5e, v5p, v6e"),
    ("v5e:", "expected a TPU topology such as"),
    ("v5e-12", "a power of two >= 1 "),
    ("v4-4", "a power of two >= 8 "),
    ("v4:4x4", "expected 3 sides"),
    ("v5e:2x0", "expected 2 sides"),
  ],
)
def test_other_names_are_refused(name, said):
  with pytest.raises(ValueError, match=said):
    topology.find(name)


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_libtpu_one_sentence_says_what_to_install(tiny_config):
  with pytest.raises(ValueError, match=r'pip install "jax\[tpu\]==\d') as info:
    topology.plan(tiny_config, topology.find("v5e-8"))
  assert "\n" not in str(info.value)


def plan(config):
  return experiment.build(config, jax.devices(), topology.planned(config))


def test_a_plan_has_the_shapes_of_the_real_training(tiny_config):
  real = experiment.build(tiny_config)
  state, teacher, batch = plan(edited(tiny_config)).step_shapes()
  assert all(
    isinstance(leaf, jax.ShapeDtypeStruct)
    for leaf in jax.tree.leaves((state, teacher, batch))
  )

  def what(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)

  # Folded LayerScale and the teacher's dtype included.
  assert what(teacher) == what(real.teacher_params)
  assert what(state) == what(drawn.state(real))
  first = next(real.inputs.train(0))
  assert {n: (x.shape, x.dtype) for n, x in batch.items()} == {
    n: (x.shape, x.dtype) for n, x in first.items()
  }


def test_imagenet_is_known_without_being_prepared(tiny_config):
  config = edited(tiny_config)
  config.data.name, config.data.train_split = "imagenet2012", "train[:99%]"
  config.student.variant = "deit_tiny_patch16_224"
  found = topology.planned(config)
  assert found.info.num_classes == 1000
  assert found.num_train == 1_268_355  # 99 %, as TFDS rounds
  assert found.image_size == (224, 224)
  with config.unlocked():
    config.data.image_size = 160
  assert topology.planned(config).image_size == (160, 160)
  config.data.train_split = "trian"
  with pytest.raises(ValueError, match=r"a slice of .*, got 'trian'"):
    topology.planned(config)


def size(tree):
  return sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def test_held_counts_one_devices_share(tiny_config):
  parts = plan(edited(tiny_config))
  state, teacher, _ = parts.step_shapes()
  held = topology.held(parts)
  assert held["student"] == size(state.params["student"])
  assert held["methods"] == size(state.params["methods"])
  assert held["moving average"] == held["student"]
  assert held["teachers"] == size(teacher)
  # Two moments and the schedule's counters.
  moments = 2 * (held["student"] + held["methods"])
  assert moments < held["optimiser"] <= moments + 16
  assert held["batch"] == 16 // 8 * (28 * 28 * 3 + 4)
  shared = topology.held(plan(edited(tiny_config, fsdp=8)))
  assert shared["optimiser"] < held["optimiser"] / 3
  assert shared["batch"] == held["batch"]


def moved(parts, compiled, kind):
  """Shapes, without ones, and bytes of all that a kind of collective moves."""
  found = [
    one for one in hlo.collectives(compiled.as_text()) if one.kind == kind
  ]
  shapes = [squeezed(shape) for one in found for _, shape in one.arrays]
  return shapes, sum(one.bytes * one.times for one in found)


def squeezed(shape):
  return tuple(n for n in shape if n != 1)


def compiled(config, devices, fsdp):
  config = edited(config, fsdp=fsdp)
  parts = experiment.build(config, devices, topology.planned(config))
  return parts, topology.compile_step(parts)


def check_data_parallel(parts, program):
  assert moved(parts, program, "all-gather") == ([], 0)
  _, summed = moved(parts, program, "all-reduce")
  state, _, _ = parts.step_shapes()
  gradients = size(state.params)
  # In float32, or in bfloat16 where a product's gradient is; and the means.
  assert gradients / 2 < summed < gradients + 1024


def check_fsdp(parts, program):
  state, teacher, _ = parts.step_shapes()
  shapes, gathered = moved(parts, program, "all-gather")
  wanted = {squeezed(x.shape) for x in jax.tree.leaves((state.params, teacher))}
  assert shapes
  assert set(shapes) <= wanted
  assert gathered < 2 * size(state.params)


def test_data_parallel_moves_gradients_alone(tiny_config):
  parts, program = compiled(tiny_config, jax.devices(), fsdp=1)
  check_data_parallel(parts, program)
  report = topology.describe(parts, program)
  assert report["devices"] == 8
  assert report["images_per_device"] == 2
  assert report["memory"]["padding"] < 1024  # a CPU has no tiles
  assert report["memory"]["activations and gradients"] > 0
  held = topology.held(parts)
  assert {k: report["memory"][k] for k in held} == held
  assert report["memory_total"] == sum(report["memory"].values())
  assert report["flops"] > 1e6
  json.dumps(report)


def test_fsdp_gathers_parameters_alone(tiny_config):
  check_fsdp(*compiled(tiny_config, jax.devices(), fsdp=8))


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed")
@pytest.mark.parametrize(
  "fsdp, check", [(1, check_data_parallel), (8, check_fsdp)]
)
def test_the_tpus_compiler_agrees(fsdp, check, tiny_config):
  with tiny_config.unlocked():
    tiny_config.student.dtype_mm = "bfloat16"
  devices = topology.devices(topology.find("v5e-8"))
  parts, program = compiled(tiny_config, devices, fsdp)
  check(parts, program)
  report = topology.describe(parts, program)
  assert report["cycles"] > 10_000
  assert 0 < report["memory_total"] < topology.GIB


@pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed")
def test_v4_has_one_device_a_chip():
  assert len(topology.devices(topology.find("v4-8"))) == 4
