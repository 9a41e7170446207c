"""From config to parts: what is read, and what is refused before a compile."""

import contextlib

import drawn
import jax
import ml_collections
import numpy as np
import pytest

from vitkd_jax import weights
from vitkd_jax.cluster import sharding
from vitkd_jax.distill import losses, objective
from vitkd_jax.models import vit
from vitkd_jax.training import experiment


def test_build_reads_every_section(tiny_config):
  parts = experiment.build(tiny_config)
  assert parts.total_steps == 12
  assert parts.steps_per_epoch == 4
  assert parts.image_shape == (28, 28, 3)
  assert parts.objective.terms == (
    "task",
    "vitkd/mimic",
    "vitkd/generation",
    "nkd",
  )
  assert parts.objective.student_side.grid == (4, 4)
  teacher = parts.objective.teachers["teacher"]
  assert teacher.side.grid == (7, 7)
  assert teacher.side.width == 64
  assert parts.objective.student.drop_path == 0.2
  assert parts.mesh.size == 8
  np.testing.assert_allclose(parts.schedule(0), 1e-6, rtol=1e-5)
  np.testing.assert_allclose(parts.schedule(12), 1e-5, rtol=1e-5)


def test_a_frozen_teacher_has_its_layerscale_folded(
  tiny_config, teacher_file, untraced
):
  parts = experiment.build(tiny_config)
  teacher = parts.objective.teachers["teacher"].model
  assert teacher.layerscale_init is None
  variant = tiny_config.teachers.teacher.variant
  params = weights.load(teacher_file, variant=variant, num_classes=10)
  block = parts.teacher_params["teacher"]["Transformer"]["encoderblock_0"]
  assert not [name for name in block if name.startswith("layerscale")]
  model = vit.Model(10, variant=variant)
  image = np.random.default_rng(0).uniform(-1, 1, (2, 28, 28, 3))
  plain, plain_out = jax.jit(model.apply)({"params": params}, image)
  folded, out = jax.jit(teacher.apply)(
    {"params": parts.teacher_params["teacher"]}, image
  )
  np.testing.assert_allclose(folded, plain, atol=1e-5)
  np.testing.assert_allclose(out["encoded"], plain_out["encoded"], atol=1e-5)


def edit(config, path, value):
  """A copy with one value; types as a config file may have them."""
  tree = node = config.to_dict()
  *parents, name = path.split(".")
  for parent in parents:
    node = node[parent]
  node[name] = value
  return ml_collections.ConfigDict(tree)


@pytest.mark.parametrize(
  "path, value, said",
  [
    (
      "tracher",
      {},
      "config section 'tracher'; the nearest is 'teachers'",
    ),
    ("run.epoch", 3, "unknown key config.run.epoch; the nearest is 'epochs'"),
    (
      "augment.mixup",
      1.0,
      "augment.mixup; the nearest is 'mixup_alpha'",
    ),
    ("augment.erase", 2.0, "erase"),
    ("student.dpth", 3, "unknown model field 'dpth'; the nearest is 'depth'"),
    ("student.variant", "deit_tiny", "nearest are deit_tiny"),
    ("methods.vitkdd", {}, "unknown method 'vitkdd'"),
    ("methods.nkd.teacher", "big", "names 'big', which is not in"),
    ("methods.nkd.ramp_epochs", -1.0, "nkd.ramp_epochs >= 0, got -1.0"),
    ("methods", {}, "no method learns from config.teachers.teacher"),
    ("task.weight", -1.0, "expected config.task.weight >= 0, got -1.0"),
    ("student.patch_size", (5, 5), "28x28 pixels are not divisible by"),
    (
      "methods.vitkd.weights.mimick",
      1.0,
      "weights.mimick; the nearest is 'mimic'",
    ),
    ("methods.vitkd.weights.mimic", -1.0, "vitkd.weights.mimic >= 0, got -1.0"),
    (
      "methods.vitkd.weights.mimic",
      float("nan"),
      "mimic to be a finite number, got nan",
    ),
    ("weights", dict(task=1.0), "either config.task or config.weights, which"),
    ("teachers", {}, "config.methods.vitkd needs a teacher"),
    ("teachers.teacher.weights", "no/such/file.safetensors", "no/such/file"),
    ("teachers.teacher.variant", "deit3_nano_patch4_28", "nearest are"),
    (
      "teachers.teacher.resample",
      False,
      "to be the student's 4x4 for config.methods.vitkd, got 7x7",
    ),
    ("methods.vitkd.ratio", 0.5, "vitkd.ratio; the nearest is 'mask_ratio'"),
    ("methods.vitkd.low_place", "+mlpp", "the nearest is '+mlp'"),
    ("methods.vitkd.low_blocks", (0, 7), "names block 7"),
    (
      "methods.vitkd.low_place",
      "encoded",
      "low_place in a block, such as",
    ),
    ("student.depth", 1, "names block 1, but a model has 1 block"),
    ("student.pool_type", "none", "same shape, got (16, 16, 10) and (16, 10)"),
    ("methods.nkd.tau", 2.0, "config.methods.nkd.tau; the nearest is"),
    ("schedule.kind", "linear", "to be one of 'mmcls', 'deit', got 'linear'"),
    ("schedule.warmup_epochs", 100.0, "a warm-up of at most 12 steps"),
    ("schedule.peak", None, "config.schedule.peak is missing"),
    ("optimizer.lr", 1.0, "config.optimizer.lr; the valid ones are"),
    ("run.batch_size", 12, "the nearest is 16"),
    (
      "run.batch_size",
      72,
      "batch_size <= 64, the images in 'train[:64]' of fashion_mini, got 72",
    ),
    ("run.fsdp", 3, "fsdp=3 does not divide"),
    (
      "run.attention",
      "flash",
      "to be one of 'auto', 'xla', 'cudnn', got 'flash'",
    ),
    (
      "run.attention",
      "cudnn",
      "cuDNN cannot compute the attention of config.student.dtype_mm='float32' "
      "for config.run.attention='cudnn': the devices here are of the platform "
      "cpu; use 'auto' or 'xla'",
    ),
    ("run.epochs", 0.0, "expected 0 < config.run.epochs <= 1000000, got 0.0"),
    ("run.ema_decay", 1.0, "expected 0 <= config.run.ema_decay < 1, got 1.0"),
    ("run.tracker", "wandbb", "tracker to be one of 'none', 'wandb', got"),
    ("run.profile_at", -1, "expected config.run.profile_at >= 0, got -1"),
    (
      "run.profile_at",
      13,
      "profile_at <= 12, the run's steps, got 13",
    ),
    ("run.batch_size", None, "config.run.batch_size is missing"),
    (
      "run.batch_size",
      "16",
      "expected config.run.batch_size to be an integer, got '16'",
    ),
    ("run.log_every", 2.5, "to be an integer, got 2.5"),
    ("run.ema_decay", None, "to be a finite number, got"),
    ("task.weight", None, "to be a finite number, got"),
    ("schedule.peak", 0.0, "peak > 0, warmup_start >= 0 and end >= 0, got 0.0"),
    ("schedule.peak", float("nan"), "to be a finite number, got"),
    ("optimizer.b1", 2.0, "expected 0 <= optimizer b1 < 1, got 2.0"),
    ("optimizer.clip_norm", -1.0, "expected a finite clip_norm >= 0, got -1.0"),
    ("optimizer.weight_decay", "x", "to be a finite number, got"),
    (
      "teachers.teacher.dtype",
      "float23",
      "one of 'float32', 'bfloat16', 'float16'",
    ),
    (
      "student.dtype_mm",
      "float23",
      "one of 'float32', 'bfloat16', 'float16'",
    ),
    ("student.patch_size", 7, "config.student.patch_size to be a sequence"),
    ("student.num_classes", 10, "comes from the dataset"),
    ("student.variant", None, "config.student.variant is missing"),
    (
      "methods.vitkd.low_blocks",
      (),
      "to be a sequence of one or more integers",
    ),
    ("methods.vitkd.low_blocks", 3, "to be a sequence of one or more integers"),
    (
      "methods.nkd.temperature",
      0.0,
      "> 0 and gamma >= 0, got 0.0 and 1.0",
    ),
    ("methods.nkd.gamma", float("nan"), "to be a finite number, got"),
    ("methods.vitkd.mask_ratio", 1.0, "0 <= mask_ratio < 1, got 1.0"),
    ("methods.vitkd.reduction", "max", "to be one of sum, mean, got 'max'"),
    ("data.num_workers", -1, "expected config.data.num_workers >= 0, got -1"),
    ("data.eval_split", "tst", "'test'"),
    ("data.name", "fashion_minni", "fashion_mini"),
    ("data.name", "fashion_mnist", "python -m vitkd_jax.prepare"),
    ("data.train_split", "training", "'train'"),
  ],
)
def test_what_does_not_fit_is_refused(
  tiny_config, path, value, said, tmp_path, monkeypatch
):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  config = edit(tiny_config, path, value)
  with pytest.raises(ValueError, match=r".") as refusal:
    experiment.build(config)
  assert said in str(refusal.value)
  assert "\n" not in str(refusal.value)


def test_a_teacher_of_other_classes_is_refused(tiny_config, tmp_path):
  variant = tiny_config.teachers.teacher.variant
  path = tmp_path / "seven.safetensors"
  params = drawn.params(7, variant=variant)
  weights.save(path, params, variant=variant, format="flat")
  tiny_config.teachers.teacher.weights = str(path)
  with pytest.raises(ValueError, match="7") as refusal:
    experiment.build(tiny_config)
  assert "10" in str(refusal.value)


def test_a_teacher_of_another_resolution_is_refused(
  tiny_config, tmp_path, untraced
):
  variant = tiny_config.teachers.teacher.variant
  path = tmp_path / "large.safetensors"
  params = drawn.params(10, image_size=56, variant=variant)
  weights.save(path, params, variant=variant, format="flat")
  tiny_config.teachers.teacher.weights = str(path)
  with pytest.raises(ValueError, match="resize_posemb=True"):
    experiment.build(tiny_config)
  tiny_config.teachers.teacher.resize_posemb = True
  params = experiment.build(tiny_config).teacher_params["teacher"]
  assert params["pos_embedding"].shape == (1, 49, 64)


def test_mixing_wants_pairs(tiny_config, untraced):
  tiny_config.run.batch_size = 9
  with pytest.raises(ValueError, match=r"expected an even .*batch_size"):
    experiment.build(tiny_config, jax.devices()[:1])
  tiny_config.augment.mixup_alpha = tiny_config.augment.cutmix_alpha = 0.0
  experiment.build(tiny_config, jax.devices()[:1])


def test_a_shallow_student_without_select_is_refused(tiny_config):
  """The default blocks are the method's, and may be more than it has."""
  tiny_config.student.depth = 1
  del tiny_config.methods.vitkd.low_blocks
  with pytest.raises(ValueError, match=r"a model has 1 block$"):
    experiment.build(tiny_config)
  tiny_config.methods = dict(kl={})  # no maps: any depth will do
  assert "kl" in experiment.build(tiny_config).objective.terms


def test_whatever_tracing_refuses_is_one_sentence(tiny_config, monkeypatch):
  def broken(*args, **kwargs):
    raise TypeError("no\nsuch thing")

  monkeypatch.setattr(losses, "nkd", broken)
  with pytest.raises(ValueError, match=r"^the training step .* TypeError: no$"):
    experiment.build(tiny_config)


def test_the_build_s_trace_is_the_one_that_is_compiled(
  tiny_config, monkeypatch
):
  """Seeing that a step can be traced costs a start nothing."""
  traced = []
  gradients = objective.gradients_by_views
  monkeypatch.setattr(
    objective,
    "gradients_by_views",
    lambda *args: traced.append(1) or gradients(*args),
  )
  parts = experiment.build(tiny_config)
  assert len(traced) == 1
  with contextlib.closing(parts.inputs.train(0)) as batches:
    batch = sharding.global_batch(next(batches), parts.mesh)
  state = drawn.state(parts)
  parts.make_train_step().lower(state, parts.teacher_params, batch)
  assert len(traced) == 1
