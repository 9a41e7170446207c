"""From the section `data` to this process's batches."""

from collections.abc import Sequence
import dataclasses
import functools
import math

import jax

from vitkd_jax.data import (
  crop,
  datasets,
  decode,
  loader,
  order,
  preprocess,
  resident,
)
from vitkd_jax.training import placement, sections

# More worker processes than this are a typing error.
_MOST_WORKERS = 1000


@dataclasses.dataclass(frozen=True)
class Planned:
  """The images of a training without a dataset at hand.

  Attributes:
    info: dataset description.
    image_size: (H, W) of a batch, in pixels.
    num_train: number of examples in the training split.
  """

  info: datasets.Info
  image_size: tuple[int, int]
  num_train: int


class Inputs:
  """The images of a training: their size, number and batches.

  Args:
    data: section `data`.
    batch_size: examples in a global batch.
    seed: seed of the order and the crops.

  Attributes:
    info: dataset description.
    image_size: (H, W) of a batch, in pixels.
    num_train: number of examples in the training split.
    num_eval: number of examples in the evaluation split.

  Raises:
    ValueError: the section is wrong, or the dataset or a split is missing.
  """

  def __init__(self, data: sections.Data, *, batch_size: int, seed: int):
    check(data)
    self._data, self._batch_size, self._seed = data, batch_size, seed
    self.info = datasets.info(data.name, data.data_dir)
    placement.check(data, self.info)
    self.image_size = crop_size(data.image_size, self.info)
    self._eval_crop: crop.CentreCrop | None = None
    short = preprocess.short_side(data.image_size, data.eval_resize)
    if short is not None:
      self._eval_crop = crop.CentreCrop(data.image_size, short)
    self.num_train = self._count(data.train_split)
    self.num_eval = self._count(data.eval_split)

  def train(self, start_step: int) -> loader.Batches:
    """This process's batches, without end; close() stops their workers.

    Args:
      start_step: index of the first batch.

    Returns:
      {"image": uint8 [B, H, W, 3], "label": int32 [B]}, B of this process.
    """
    data, random_crop = self._data, None
    if data.image_size:
      random_crop = crop.RandomCrop(
        data.image_size, _pair(data.crop_area), _pair(data.crop_ratio)
      )
    return loader.train_batches(
      self._train_source,
      batch_size=self._batch_size,
      seed=self._seed,
      start_step=start_step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      # Each worker process would hold its own copy of the cache.
      num_workers=0 if data.cache else data.num_workers,
      crop=random_crop,
      repeats=data.repeats,
      max_bad_share=data.max_bad_share,
    )

  def check_fits(self, mesh: jax.sharding.Mesh) -> None:
    """Refuses images that are too many for the devices they are placed on.

    Args:
      mesh: of devices at hand.

    Raises:
      ValueError: see `placement.check_fits`.
    """
    if self._data.placement == "device":
      placement.check_fits(mesh, self.image_size, self.num_train, self.num_eval)

  def order(self) -> order.Order:
    """Which example is at which row of `train`'s batches."""
    return order.Order(self.num_train, self._seed, self._data.repeats)

  def whole(self) -> resident.Arrays:
    """The training split of a dataset whose images are used whole.

    Raises:
      loader.InputError: too many records are bad.
    """
    return resident.read(
      self._train_source, self.image_size, self._data.max_bad_share
    )

  def evaluation(self) -> loader.Batches:
    """This process's batches of the evaluation split, each example once.

    Returns:
      {"image": uint8 [B, H, W, 3], "label": int32 [B], "weight": float32 [B]},
      weight 0 where the last batch is padded.
    """
    return loader.eval_batches(
      self._eval_source,
      batch_size=self._batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      crop=self._eval_crop,
      max_bad_share=self._data.max_bad_share,
    )

  def eval_images(
    self, mean: tuple[float, float, float], std: tuple[float, float, float]
  ) -> preprocess.Preprocess:
    """The evaluation's preprocessing, for whoever scores the student.

    Args:
      mean: the student's mean of images in [0, 1], see `variants`.
      std: the student's standard deviation.
    """
    short = None if self._eval_crop is None else self._eval_crop.short_side
    return preprocess.Preprocess(self.image_size, short, mean, std)

  def open(self) -> None:
    """Opens both splits now, and decodes them if they are cached."""
    _ = self._train_source, self._eval_source

  @functools.cached_property
  def _train_source(self) -> datasets.Source:
    # Images on the devices are read once.
    cache = self._data.cache and self._data.placement == "host"
    return self._load(self._data.train_split, cache=cache)

  @functools.cached_property
  def _eval_source(self) -> datasets.Source:
    return self._load(self._data.eval_split, cache=self._data.cache)

  def _load(self, split: str, cache: bool = False) -> datasets.Source:
    data = self._data
    return datasets.load(
      data.name,
      split,
      data_dir=data.data_dir,
      cache=cache,
      crop_size=data.image_size,
      exif=data.exif,
    )

  def _count(self, split: str) -> int:
    size = len(self._load(split))
    if not size:
      raise ValueError(
        f"expected at least one example in split {split!r} of "
        f"{self._data.name}, got none"
      )
    return size


def crop_size(image_size: int, info: datasets.Info) -> tuple[int, int]:
  """(H, W) of a batch's images, in pixels.

  Args:
    image_size: side of the crop in pixels; 0 for whole images.
    info: dataset description.

  Raises:
    ValueError: whole images of several sizes.
  """
  if image_size:
    return image_size, image_size
  if info.image_size is None:
    raise ValueError(
      f"the images of {info.name} differ in size; set the size of the crop "
      "(config.data.image_size, or --image-size), such as 224"
    )
  return info.image_size


def check(data: sections.Data) -> None:
  """Checks the ranges of a section `data`.

  Args:
    data: the section.

  Raises:
    ValueError: a value is out of its range, or needs another key.
  """
  _check_least(0, data, "num_workers", "image_size", "eval_resize")
  _check_least(1, data, "repeats")
  if data.num_workers > _MOST_WORKERS:
    raise ValueError(
      f"expected config.data.num_workers <= {_MOST_WORKERS}, got "
      f"{data.num_workers}; one per core of the machine is enough"
    )
  if data.image_size**2 > decode.MOST_DECODED:
    raise ValueError(
      "expected config.data.image_size <= "
      f"{math.isqrt(decode.MOST_DECODED)}, the largest image that is decoded, "
      f"got {data.image_size}"
    )
  if not 0 <= data.max_bad_share <= 1:
    raise ValueError(
      f"expected 0 <= config.data.max_bad_share <= 1, got {data.max_bad_share}"
    )
  low, high = data.crop_area
  if not 0 < low <= high <= 1:
    raise ValueError(
      "expected config.data.crop_area to be the smallest and the largest share "
      f"of an image's area, in (0, 1], got {tuple(data.crop_area)}"
    )
  low, high = data.crop_ratio
  if not 0 < low <= high:
    raise ValueError(
      "expected config.data.crop_ratio to be the smallest and the largest "
      f"width / height, both > 0, got {tuple(data.crop_ratio)}"
    )
  if data.eval_resize and not data.image_size:
    raise ValueError(
      f"config.data.eval_resize={data.eval_resize} needs"
      " config.data.image_size, the size of the crop"
    )
  if data.eval_resize and data.eval_resize < data.image_size:
    raise ValueError(
      f"expected config.data.eval_resize >= image_size={data.image_size}, the "
      f"crop, got {data.eval_resize}"
    )
  if data.eval_resize:
    preprocess.check_crop(data.image_size, data.eval_resize)
  for name in ("crop_area", "crop_ratio"):
    value = tuple(getattr(data, name))
    if not data.image_size and value != getattr(sections.Data, name):
      raise ValueError(
        f"config.data.{name}={value} needs config.data.image_size, the size of"
        " the random crop; without it images are used whole"
      )


def _check_least(least: int, data: sections.Data, *names: str) -> None:
  for name in names:
    value = getattr(data, name)
    if value < least:
      raise ValueError(f"expected config.data.{name} >= {least}, got {value}")


def _pair(values: Sequence[float]) -> tuple[float, float]:
  """A config's sequence of two numbers, which may be a list, as a tuple."""
  low, high = values
  return low, high
