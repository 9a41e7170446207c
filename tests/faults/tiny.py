"""A training of every part whose start costs as little as possible."""

import ml_collections

from vitkd_jax.configs import common
from vitkd_jax.data import augment
from vitkd_jax.training import sections

EXAMPLES, BATCH, STEPS = 320, 16, 60


def get_config(teacher):
  """60 steps: three epochs of 320 images in batches of 16.

  Args:
    teacher: path of its weights, behind the colon.
  """
  config = ml_collections.ConfigDict()
  config.run = common.section(
    sections.Run,
    seed=3,
    epochs=STEPS * BATCH / EXAMPLES,
    batch_size=BATCH,
    ema_decay=0.9,
    log_every=1,
    eval_every=30,
    checkpoint_every=5,
  )
  config.data = common.section(
    sections.Data,
    name="fashion_mini",
    train_split=f"train[:{EXAMPLES}]",
    eval_split="test[:64]",
  )
  config.augment = common.section(
    augment.make_augment, mixup_alpha=0.8, cutmix_alpha=1.0
  )
  config.student = dict(
    variant="test/7", head_zeroinit=False, drop_path=0.1, scan=True
  )
  config.teachers = dict(
    teacher=common.section(
      sections.Teacher,
      weights=teacher,
      variant="test/7",
      dtype="float32",
    )
  )
  config.methods = common.methods(
    ("vitkd", "nkd"),
    vitkd=dict(reduction="mean", weights=dict(mimic=0.2, generation=1.0)),
  )
  config.schedule = dict(
    kind="mmcls", peak=3e-4, warmup_epochs=1.0, warmup_start=1e-6, end=1e-5
  )
  config.optimizer = common.adamw(clip_norm=5.0)
  return config
