"""Eight virtual devices for every test, and a tiny teacher."""

import functools
import gc
import os

import quick

# Before the first import of jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    quick.FLAGS,
  ]
)


import drawn
import forked
import jax
import leaks
import ml_collections
import pytest

from vitkd_jax import weights
from vitkd_jax.training import experiment

# Tracing makes objects by the million that live on: to look for garbage among
# them as often as Python does by default takes time and finds little.
gc.set_threshold(100_000, 20, 100)

TINY = dict(variant="test/7", pool_type="tok", head_zeroinit=False)
# The files that take longest, of few tests: they go first, or one worker would
# be at them alone at the end.
LONGEST = (
  "test_steps",
  "test_packing",
  "test_optimizers",
  "test_train",
  "test_configs",
)


def pytest_collection_modifyitems(items):
  items.sort(
    key=lambda item: (
      LONGEST.index(item.path.stem)
      if item.path.stem in LONGEST
      else len(LONGEST)
    )
  )


def pytest_collection_finish():
  gc.freeze()  # all that was imported


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory):
  """Each process compiles equal programs once, in whatever test they are."""
  folder = tmp_path_factory.mktemp("programs")
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  # XLA's own caches would be part of a program's key.
  jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


@pytest.fixture(scope="session")
def forks():
  """Runs command lines, see `forked.Server`."""
  server = forked.Server()
  yield server
  server.close()


@pytest.fixture(autouse=True)
def leaves_nothing():
  """Fails a test that leaves a process, a variable, a handler or a setting."""
  watch = leaks.Watch()
  yield
  watch.check()


@pytest.fixture(scope="module")
def collected():
  """Collects garbage after a module, and not in whatever test runs next."""
  yield
  gc.collect()


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory):
  """A teacher of 10 classes for 28 px images, every parameter random."""
  variant = "deit3_pico_patch4_28"
  params = drawn.params(10, 7, deviation=0.1, variant=variant)
  path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
  weights.save(path, params, variant=variant, format="flat")
  return str(path)


@pytest.fixture
def tiny_config(teacher_file):
  """A training that exercises every part and takes seconds."""
  return ml_collections.ConfigDict(
    dict(
      run=dict(
        seed=3,
        epochs=12 * 16 / 64,
        batch_size=16,
        ema_decay=0.9,
        log_every=2,
        eval_every=6,
        checkpoint_every=3,
      ),
      data=dict(
        name="fashion_mini",
        train_split="train[:64]",
        eval_split="test[:24]",
        cache=True,
      ),
      augment=dict(
        flip=0.5,
        shift=2,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        label_smoothing=0.1,
      ),
      student=dict(
        variant="test/7",
        pool_type="tok",
        head_zeroinit=False,
        drop_path=0.2,
        scan=True,
      ),
      teachers=dict(
        teacher=dict(
          weights=teacher_file,
          variant="deit3_pico_patch4_28",
          dtype="float32",
          resample=True,
        ),
      ),
      methods=dict(
        vitkd=dict(
          reduction="mean",
          mask_ratio=0.5,
          low_blocks=(0, 1),
          weights=dict(mimic=2.0, generation=0.5),
        ),
        nkd=dict(temperature=1.0, gamma=1.0, weights=dict(nkd=1.0)),
      ),
      task=dict(weight=1.0),
      schedule=dict(
        kind="mmcls", peak=1e-3, warmup_epochs=1.0, warmup_start=1e-6, end=1e-5
      ),
      optimizer=dict(
        b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, clip_norm=5.0
      ),
    )
  )


@pytest.fixture
def one_device(monkeypatch):
  """Experiments are built for one device, whose programs compile sooner."""
  build = functools.partial(experiment.build, devices=jax.devices()[:1])
  monkeypatch.setattr(experiment, "build", build)


@pytest.fixture
def student_alone(tiny_config, one_device):
  """A student alone, on one device: quickly compiled, and saved."""
  tiny_config.methods = tiny_config.teachers = {}
  tiny_config.augment = dict(flip=0.5)
  return tiny_config


@pytest.fixture
def plain(tiny_config):
  """The same without what makes two runs' draws differ."""
  tiny_config.student.drop_path = 0.0
  tiny_config.augment = dict(label_smoothing=0.1)
  return tiny_config


@pytest.fixture
def untraced(monkeypatch):
  """Experiments are built without their steps, which other tests trace."""
  monkeypatch.setattr(experiment.Experiment, "check", lambda self: None)


@pytest.fixture
def drawn_state(monkeypatch):
  """Trainings start from what `drawn.state` draws, which compiles quickly."""
  monkeypatch.setattr(experiment.Experiment, "create_state", drawn.state)
