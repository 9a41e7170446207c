r"""The quickstart's teacher: a small ViT on Fashion-MNIST's 60,000 images.

  python -m vitkd_jax.prepare fashion_mnist --source DIR
  python -m vitkd_jax.train --config configs/quickstart_teacher.py \
      --workdir runs/fashion_teacher

It never sees the 10,000 images of the quickstart. Arguments: epochs=N,
batch_size=N, seed=N, runlocal (a trial of 2 epochs of 64 images, 8 at a time).
"""

import ml_collections

from vitkd_jax.configs import common
from vitkd_jax.data import augment
from vitkd_jax.training import sections


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The config.

  Args:
    arg: what follows the colon of --config, see above.
  """
  args = common.parse_arg(
    arg, epochs=14.0, batch_size=128, seed=0, runlocal=False
  )
  config = ml_collections.ConfigDict()
  config.run = common.section(
    sections.Run,
    seed=args["seed"],
    epochs=args["epochs"],
    batch_size=args["batch_size"],
    ema_decay=0.998,
    log_every=67,
    eval_every=938,
    checkpoint_every=938,
  )
  config.data = common.section(
    sections.Data,
    name="fashion_mnist",
    train_split="train",
    eval_split="test",
    cache=True,
  )
  config.augment = common.section(augment.make_augment, shift=1, erase=0.25)
  config.student = common.student(variant="vit_nano_patch4_28", drop_path=0.05)
  config.task = common.section(sections.Task)
  config.schedule = dict(
    kind="mmcls",
    peak=config.run.get_ref("batch_size").to_float() * (1.5e-3 / 128),
    warmup_epochs=1.0,
    warmup_start=1e-6,
    end=1e-5,
  )
  config.optimizer = common.adamw(clip_norm=1.0)
  return common.trial(config) if args["runlocal"] else config
