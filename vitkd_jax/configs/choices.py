"""What configs/folder.py chooses from a dataset's number and size of images."""

import dataclasses
import math
import os

from vitkd_jax.data import datasets

_MOST_WHOLE = 96  # pixels; larger images are cropped
_FEWEST_TOKENS, _MOST_TOKENS = 49, 256  # of whole images
_EVALUATION = ("validation", "val", "valid", "test")  # the first one is taken


@dataclasses.dataclass(frozen=True)
class Images:
  """What the defaults depend on.

  Attributes:
    name: of the dataset.
    num_classes: number of classes.
    size: (H, W) in pixels of all images; None if sizes differ.
    count: number of images in `train_split`.
    train_split: in TFDS's notation.
    eval_split: in TFDS's notation.
    eval_count: number of images in `eval_split`.
  """

  name: str
  num_classes: int
  size: tuple[int, int] | None
  count: int
  train_split: str = "train"
  eval_split: str = "test"
  eval_count: int = 10_000


def read(name: str, data_dir: str | None) -> Images:
  """What is known of a prepared dataset.

  Args:
    name: of the dataset.
    data_dir: folder of datasets; None for TFDS's own.

  Raises:
    ValueError: there is no such dataset, or too few images to train and to
      evaluate on.
  """
  if not name:
    raise ValueError(
      "expected config argument data, the name of a prepared dataset, got"
      " none: folder:data=NAME"
    )
  if os.sep in name:
    base = os.path.basename(os.path.normpath(name)) or "NAME"
    raise ValueError(
      f"expected config argument data to be the name of a prepared dataset, got"
      f" {name!r}; prepare a folder with: python -m vitkd_jax.prepare {base}"
      f" --source {name}"
    )
  info = datasets.info(name, data_dir)
  splits = list(info.num_examples)
  train = next((s for s in splits if "train" in s.lower()), splits[0])
  others = [s for s in splits if s != train]
  known = [s for s in _EVALUATION if s in others]
  scored = next(iter(known + others), "")
  parts = (train, scored) if scored else (f"{train}[:90%]", f"{train}[90%:]")
  try:
    counts = [datasets.examples_in(part, info.num_examples) for part in parts]
  except ValueError:  # a slice of no image
    raise ValueError(
      f"expected enough images in {train} of {name} to leave out a tenth for"
      f" the evaluation, got {info.num_examples[train]}; prepare more, or a"
      " split validation"
    ) from None
  size = info.image_size
  return Images(name, info.num_classes, size, counts[0], *parts, counts[1])


def crop(images: Images) -> int:
  """The side of the crops in pixels; 0 to use images whole.

  Args:
    images: what is known of the dataset.
  """
  if images.size is None or whole_patch(images.size):
    return 0 if images.size else 224
  # The largest multiple of 16 that images do not have to be enlarged for.
  return max(32, min(224, min(images.size) // 16 * 16))


def whole_patch(size: tuple[int, int]) -> int:
  """The side of the patches of whole images; 0 if they should be cropped.

  Args:
    size: (H, W) in pixels.
  """
  if max(size) > _MOST_WHOLE:
    return 0
  return next(
    (
      patch
      for patch in range(16, 1, -1)
      if size[0] % patch == size[1] % patch == 0
      and _FEWEST_TOKENS <= size[0] * size[1] // patch**2 <= _MOST_TOKENS
    ),
    0,
  )


def batch_size(count: int) -> int:
  """A power of two near a hundredth of the images, from 16 to 128.

  Args:
    count: number of training images; fewer than 16 make a smaller batch.
  """
  most = 2 ** int(math.log2(count))
  return min(128, most, max(16, 2 ** round(math.log2(count / 100))))


def epochs(count: int, *, started: bool) -> float:
  """100 epochs for 1,000 images, 46 for 10,000, 22 for 100,000.

  Args:
    count: number of training images.
    started: from weights, which takes a third of them.
  """
  number = 100 * (1000 / max(count, 1000)) ** (1 / 3)
  return float(round(number / 3 if started else number))


def student(images: Images, size: tuple[int, int]) -> str:
  """The short name of a student for so many images of this size.

  Args:
    images: what is known of the dataset.
    size: (H, W) in pixels of what the student gets.
  """
  if max(size) > _MOST_WHOLE or images.count >= 100_000:
    return "ti"
  return "pico" if images.count < 20_000 else "nano"


def crop_patch(side: int) -> int:
  """The side of the patches of a crop: 16 pixels, or less for enough tokens.

  Args:
    side: of the crop, in pixels.
  """
  return next((p for p in (16, 8, 4) if (side // p) ** 2 >= _FEWEST_TOKENS), 4)
