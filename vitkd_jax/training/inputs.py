"""From the section `data` to this process's batches."""

from collections.abc import Iterator
import functools
import math
from typing import Any

import jax

from vitkd_jax.data import crop, datasets, decode, loader, preprocess
from vitkd_jax.training import sections

Batches = Iterator[dict[str, Any]]

# More processes than that on one machine are a slip of a digit.
_MOST_WORKERS = 1000


class Inputs:
  """The images of a training: their size, number and batches.

  Args:
    data: section `data`.
    batch_size: examples of a global batch.
    seed: of the order and the crops.

  Attributes:
    info: of the data set.
    image_size: (H, W) of a batch, in pixels.
    num_train: examples of the training split.

  Raises:
    ValueError: the data set or a split is not there, or does not fit.
  """

  def __init__(self, data: sections.Data, *, batch_size: int, seed: int):
    check(data)
    self._data, self._batch_size, self._seed = data, batch_size, seed
    self.info = datasets.info(data.name, data.data_dir)
    self.image_size = crop_size(data.image_size, self.info)
    self._eval_crop = None
    if data.image_size:
      short = preprocess.short_side(data.image_size, data.eval_resize)
      self._eval_crop = crop.CentreCrop(data.image_size, short)
    self.num_train = self._count(data.train_split)
    self._count(data.eval_split)

  def train(self, start_step: int) -> Batches:
    """Endless batches from number `start_step` on; close() ends them."""
    data, random_crop = self._data, None
    if data.image_size:
      random_crop = crop.RandomCrop(
        data.image_size, tuple(data.crop_area), tuple(data.crop_ratio)
      )
    return loader.train_batches(
      self._train_source,
      batch_size=self._batch_size,
      seed=self._seed,
      start_step=start_step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      # Worker processes would hold a copy of what is cached each.
      num_workers=0 if data.cache else data.num_workers,
      crop=random_crop,
      repeats=data.repeats,
      max_bad_share=data.max_bad_share,
    )

  def evaluation(self) -> Batches:
    """Batches that hold every example of the evaluation split once."""
    return loader.eval_batches(
      self._eval_source,
      batch_size=self._batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      crop=self._eval_crop,
      max_bad_share=self._data.max_bad_share,
    )

  def eval_images(self, mean, std) -> preprocess.Preprocess:
    """What makes the evaluation's images, for whoever scores the student.

    Args:
      mean: that the student's variant wants subtracted, see `variants`.
      std: and divided by.
    """
    short = self._eval_crop and self._eval_crop.short_side
    return preprocess.Preprocess(self.image_size, short, mean, std)

  def open(self) -> None:
    """Opens both splits now, and decodes them where they are cached."""
    _ = self._train_source, self._eval_source

  @functools.cached_property
  def _train_source(self):
    return self._load(self._data.train_split, cache=self._data.cache)

  @functools.cached_property
  def _eval_source(self):
    return self._load(self._data.eval_split, cache=self._data.cache)

  def _load(self, split, cache=False):
    data = self._data
    return datasets.load(
      data.name,
      split,
      data_dir=data.data_dir,
      cache=cache,
      crop_size=data.image_size,
      exif=data.exif,
    )

  def _count(self, split):
    size = len(self._load(split))
    if not size:
      raise ValueError(f"split {split!r} of {self._data.name} is empty")
    return size


def crop_size(image_size: int, info: datasets.Info) -> tuple[int, int]:
  """(H, W) of the images that come, in pixels.

  Args:
    image_size: pixels of a side that they are cropped to; 0 for whole ones.
    info: of the data set.

  Raises:
    ValueError: whole images of several sizes.
  """
  if image_size:
    return image_size, image_size
  if info.image_size is None:
    raise ValueError(
      f"the images of {info.name} differ in size; set the size that they are"
      " cropped to (config.data.image_size, or --image-size), such as 224"
    )
  return info.image_size


def check(data: sections.Data) -> None:
  """Raises ValueError for a value of section `data` that is out of range."""
  _check_least(0, data, "num_workers", "image_size", "eval_resize")
  _check_least(1, data, "repeats")
  if data.num_workers > _MOST_WORKERS:
    raise ValueError(
      f"config.data.num_workers={data.num_workers}: wanted at most "
      f"{_MOST_WORKERS}; as many as the machine has cores suffice"
    )
  if data.image_size**2 > decode.MOST_DECODED:
    raise ValueError(
      f"config.data.image_size={data.image_size}: wanted at most "
      f"{math.isqrt(decode.MOST_DECODED)}, the largest images that are decoded"
    )
  if not 0 <= data.max_bad_share <= 1:
    raise ValueError(
      f"config.data.max_bad_share={data.max_bad_share} is not in [0, 1]"
    )
  low, high = data.crop_area
  if not 0 < low <= high <= 1:
    raise ValueError(
      f"config.data.crop_area={tuple(data.crop_area)}: wanted the least and the"
      " greatest part of the image's area, in (0, 1]"
    )
  low, high = data.crop_ratio
  if not 0 < low <= high:
    raise ValueError(
      f"config.data.crop_ratio={tuple(data.crop_ratio)}: wanted the least and"
      " the greatest width / height, both positive"
    )
  if data.eval_resize and not data.image_size:
    raise ValueError(
      f"config.data.eval_resize={data.eval_resize} needs"
      " config.data.image_size, the size of the crop"
    )
  if data.eval_resize and data.eval_resize < data.image_size:
    raise ValueError(
      f"config.data.eval_resize={data.eval_resize} is less than"
      f" image_size={data.image_size}, which is cut out of it"
    )
  if data.eval_resize:
    preprocess.check_crop(data.image_size, data.eval_resize)
  for name in ("crop_area", "crop_ratio"):
    value = tuple(getattr(data, name))
    if not data.image_size and value != getattr(sections.Data, name):
      raise ValueError(
        f"config.data.{name}={value} needs config.data.image_size, the size of"
        " the random crop; without it images are taken whole"
      )


def _check_least(least, data, *names):
  for name in names:
    value = getattr(data, name)
    if value < 0:
      raise ValueError(f"config.data.{name}={value} is negative")
    if value < least:
      raise ValueError(f"config.data.{name}={value}: wanted at least {least}")
