"""The training steps that the benchmarks and the regression guard measure."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from vitkd_jax import weights
from vitkd_jax.cluster import sharding
from vitkd_jax.configs import common, quickstart, vitkd_i1k
from vitkd_jax.data import augment, datasets
from vitkd_jax.models import variants, vit
from vitkd_jax.training import experiment, inputs

PAIRS = tuple(vitkd_i1k.PAIRS)
CASES = ("quickstart", *PAIRS)


def config(
  case: str,
  *,
  batch: int,
  dtype: str = "float32",
  teacher_dtype: str | None = None,
  augmented: bool = False,
  accumulate: int = 1,
) -> ml_collections.ConfigDict:
  """The config of a case.

  Args:
    case: one of `CASES`.
    batch: images per step, over all devices.
    dtype: dtype of matrix products.
    teacher_dtype: dtype of the teacher's parameters and products; `dtype` by
      default.
    augmented: keep the config's augmentation; otherwise images are unchanged.
    accumulate: gradient-accumulation steps per step.
  """
  if case == "quickstart":
    config = quickstart.get_config("method=both")
  else:
    config = vitkd_i1k.get_config(f"pair={case}")
    # The peer draws drop path differently, and keeps no moving average.
    config.student.drop_path = config.run.ema_decay = 0.0
  config.run.batch_size, config.run.accumulate = batch, accumulate
  if not augmented:
    smoothing = config.augment.label_smoothing
    config.augment = common.section(augment.make_augment)
    config.augment.label_smoothing = smoothing
  config.student.dtype_mm = dtype
  config.teachers.teacher.dtype = teacher_dtype or dtype
  return config


def augmentation() -> ml_collections.ConfigDict:
  """The augmentation of the paper's recipe."""
  return vitkd_i1k.get_config("pair=s3-ti").augment


def build(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> experiment.Experiment:
  """The parts of a training; reads neither images nor a teacher's file.

  Args:
    config: from `config`.
    devices: devices to train on, or described ones; all by default.
  """
  known = variants.get(config.student.variant)
  classes, train = (10, 8_000) if known.image_size == 28 else (1000, 1_281_167)
  size = (known.image_size, known.image_size)
  info = datasets.Info(
    name="planned",
    num_classes=classes,
    image_size=size,
    num_examples={"train": train},
    class_names=tuple(map(str, range(classes))),
  )
  planned = inputs.Planned(info, size, train)
  return experiment.build(config, devices, planned)


def batch(parts: experiment.Experiment) -> dict[str, np.ndarray]:
  """Random images, uint8 [B, H, W, 3], and labels, int32 [B].

  Args:
    parts: from `build`.
  """
  rng, size = np.random.default_rng(0), parts.run.batch_size
  image = rng.integers(0, 256, (size, *parts.image_shape), np.uint8)
  label = rng.integers(0, parts.info.num_classes, size, np.int32)
  return {"image": image, "label": label}


def teacher(
  config: ml_collections.ConfigDict, parts: experiment.Experiment
) -> tuple[Any, Any]:
  """A random teacher's parameters in timm's form, and the train step's.

  LayerScale is random and far from zero, so that it matters.

  Args:
    config: from `config`.
    parts: from `build`.
  """
  variant = config.teachers.teacher.variant
  model = vit.Model(parts.info.num_classes, variant=variant)
  image = jnp.zeros((1, *parts.image_shape))
  params = jax.jit(model.init)(jax.random.key(1), image)["params"]
  rng = np.random.default_rng(1)

  def shake(path, leaf):
    if not path[-1].key.startswith("layerscale_"):
      return leaf
    return jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), leaf.dtype)

  params = jax.tree_util.tree_map_with_path(shake, params)
  frozen = params
  if model.layerscale_init is not None:
    frozen = weights.fold_layerscale(params)
  frozen = jax.tree.map(
    lambda x, like: x.astype(like.dtype),
    {"teacher": frozen},
    parts.teacher_params,
  )
  return params, jax.device_put(frozen, sharding.replicated(parts.mesh))
