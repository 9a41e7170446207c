r"""CIFAR-10 or CIFAR-100: a small ViT, alone or taught.

  python -m vitkd_jax.prepare cifar10 --source FOLDER_OF_THE_ARCHIVE
  python -m vitkd_jax.train --config configs/cifar.py:student=ti \
      --workdir runs/cifar10/teacher
  python -m vitkd_jax.train \
      --config configs/cifar.py:teacher=runs/cifar10/teacher \
      --workdir runs/cifar10/both

Arguments: data=cifar10|cifar100, and all others of configs/folder.py: teacher,
method, student, init, patch, epochs, batch_size, seed, ... Images are whole,
with patches of 4 pixels (64 tokens), padded by 4, cropped and flipped; the
student is `nano` (96 wide, 6 blocks) for 27 epochs of batches of 128.
"""

import ml_collections

from vitkd_jax.configs import choices, common, folder

CLASSES = {"cifar10": 10, "cifar100": 100}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The config of one student.

  Args:
    arg: what follows the colon of --config, see above.
  """
  args = common.parse_arg(arg, **folder.ARGUMENTS | dict(data="cifar10"))
  classes = common.choose("data", args["data"], CLASSES)
  return folder.recipe(
    choices.Images(args["data"], classes, (32, 32), 50_000), args
  )
