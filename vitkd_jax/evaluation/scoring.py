"""Scores a model on every example of a split."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vitkd_jax.data import datasets, preprocess
from vitkd_jax.evaluation import running, scorer
from vitkd_jax.models import backbones, checks, protocol, variants
from vitkd_jax.runs import students
from vitkd_jax.weights import processors, resolve


@dataclasses.dataclass(frozen=True)
class Scored:
  """A model with its parameters.

  Attributes:
    model: linen module, images [B, H, W, 3] -> (logits [B, C], out).
    params: its parameters.
    images: the preprocessing of its images.
  """

  model: protocol.Backbone
  params: Any
  images: preprocess.Preprocess

  def logits(self, params: Any, image: jax.Array) -> jax.Array:
    """Logits of images.

    Args:
      params: parameters of the model.
      image: [B, H, W, 3] uint8.

    Returns:
      [B, C] float32.
    """
    stats = self.images.mean, self.images.std
    return running.logits(self.model, *stats, params, image)

  def logits_and_features(
    self, params: Any, image: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Logits, and what the head reads: pooled, after the last LayerNorm.

    Args:
      params: parameters of the model.
      image: [B, H, W, 3] uint8.

    Returns:
      [B, C] and [B, D] float32.
    """
    stats = self.images.mean, self.images.std
    logits, out = running.outputs(self.model, *stats, params, image)
    return logits, jnp.float32(out["head_input"])


def load(
  path: str,
  info: datasets.Info,
  *,
  variant: str | None = None,
  which: str | None = None,
  step: str | int | None = None,
  image_size: int = 0,
  eval_resize: int = 0,
  like: preprocess.Preprocess | None = None,
) -> Scored:
  """A model from weights, for the images and classes of a dataset.

  Images are preprocessed as the run, the exported file or another library's
  folder states. For other weights they are used whole if all have one size, no
  larger than the model's, and otherwise as for the published model.

  Args:
    path: file or folder of weights, a workdir, "shipped:NAME" or
      "hf:OWNER/NAME".
    info: of the dataset.
    variant: name of the model; None for the one that the weights state.
    which: "student" or "ema" of a workdir's checkpoint, see `students.load`.
    step: of the checkpoint, see `students.load`.
    image_size: side of the crop in pixels; 0 for the default above.
    eval_resize: short side in pixels before the crop; 0 for the default above.
    like: preprocessing to use in place of the model's own, except for mean and
      standard deviation.

  Raises:
    ValueError: the weights do not fit, their variant is unknown, their classes
      are in another order, or `eval_resize` is given without a crop.
  """
  said = _stated(path, variant)
  assert said.variant is not None  # refused by `_stated`
  images = _images(info, said, image_size, eval_resize)
  if like is not None:
    images = dataclasses.replace(like, mean=images.mean, std=images.std)
  loaded = students.load(
    path,
    variant=said.variant,
    num_classes="file",
    image_size=images.size,
    which=which,
    step=step,
    **said.fields,
  )
  others = _check_classes(path, loaded.num_classes, said, info)
  for note in (*loaded.notes, *others):
    print(f"{path}: {note}")
  model = backbones.make_model(
    info.num_classes, variant=said.variant, **loaded.fields
  )
  checks.check_patches("model", model.patch_size, *images.size)
  return Scored(model, loaded.params, images)


def _images(
  info: datasets.Info, said: resolve.Stated, image_size: int, eval_resize: int
) -> preprocess.Preprocess:
  """What is asked for, else what the weights state, else what is published."""
  assert said.variant is not None  # refused by `_stated`
  published = processors.published(variants.get(said.variant), said.image_size)
  images = said.preprocess or published
  if image_size:
    images = images.at((image_size, image_size))
  elif said.preprocess is None or images.whole:
    # Larger images, though of one size, are cropped to the model's size.
    size = info.image_size
    if size and (images.whole or max(size) <= max(images.size)):
      images = dataclasses.replace(images, size=size, short_side=None)
    elif images.whole:
      images = dataclasses.replace(images, short_side=min(images.size))
  if not eval_resize:
    return images
  if images.whole and not image_size:
    raise ValueError(
      f"eval_resize={eval_resize} needs image_size, the side of the crop, as "
      f"images of {info.name} are used whole"
    )
  return dataclasses.replace(images, short_side=eval_resize)


def evaluate(
  student: Scored,
  source: datasets.Source,
  info: datasets.Info,
  *,
  batch_size: int = 256,
  teacher: Scored | None = None,
  advance: Callable[[int], None] = lambda number: None,
) -> dict[str, Any]:
  """The results of a model on every example of a source, each counted once.

  Args:
    student: the model to score; the teacher gets the same images.
    source: see `datasets.load`, with label sets if `info` has them.
    info: of the dataset.
    batch_size: see `scorer.Scorer`.
    teacher: model to compare the student with.
    advance: called with the number of images of each batch.

  Returns:
    Results by name, see `scorer.Scorer.score`.

  Raises:
    ValueError: a batch size below 1, or an empty source.
    loader.InputError: too many records cannot be read.
  """
  taught = {} if teacher is None else {"teacher": teacher}
  made = scorer.Scorer(student, taught, scorer.fitting(batch_size, [source]))
  return made.score(scorer.Split(source, info, student.images), advance)


def images_of(
  student: Scored,
  path: str,
  info: datasets.Info,
  *,
  variant: str | None = None,
  image_size: int = 0,
  eval_resize: int = 0,
) -> preprocess.Preprocess:
  """How a loaded model's images of one more dataset are preprocessed.

  Args:
    student: from `load`, with the same options.
    path: its weights.
    info: of the other dataset.
    variant: see `load`.
    image_size: see `load`.
    eval_resize: see `load`.

  Raises:
    ValueError: the model does not fit its classes, or its images have another
      size than those the model was loaded for.
  """
  said = _stated(path, variant)
  _check_classes(path, student.model.num_classes, said, info)
  images = _images(info, said, image_size, eval_resize)
  if images.size != student.images.size:
    raise ValueError(
      f"expected images of one size, got {_sides(student.images)} pixels and, "
      f"of {info.name}, {_sides(images)}; give --image-size, or evaluate on "
      f"{info.name} alone"
    )
  return images


def _sides(images: preprocess.Preprocess) -> str:
  return "x".join(map(str, images.size))


def _stated(path: str, variant: str | None) -> resolve.Stated:
  """What weights say of their model, or the variant that is asked for."""
  said = students.stated(path)
  if variant not in (None, said.variant):
    said = dataclasses.replace(said, variant=variant, fields={})
  if said.variant is None:
    raise ValueError(
      f"{path} does not state its model; give the variant, such as "
      "deit_tiny_patch16_224"
    )
  return said


def _check_classes(
  path: str, classes: int | None, said: resolve.Stated, info: datasets.Info
) -> tuple[str, ...]:
  """Notes on a model's classes, which must be as many as a dataset's."""
  if classes != info.num_classes:
    raise ValueError(
      f"{path} has {classes or 'no'} classes, {info.name} has "
      f"{info.num_classes}; choose a dataset with the model's classes (--data)"
    )
  return compare_classes(path, said.class_names, info)


def compare_classes(
  who: str, names: Sequence[str] | None, info: datasets.Info
) -> tuple[str, ...]:
  """Notes on how a model's class names differ from a dataset's.

  Args:
    who: the model, for messages.
    names: its class names in the order of its logits; None if unknown.
    info: of the dataset, which has as many classes.

  Raises:
    ValueError: the classes are the same, in another order.
  """
  own = info.class_names
  if not names or resolve.nameless(own) or tuple(names) == tuple(own):
    return ()
  first = next(i for i, name in enumerate(names) if name != own[i])
  differing = (
    f"class {first} is {names[first]!r}, in the dataset {own[first]!r}"
  )
  if sorted(names) == sorted(own):
    raise ValueError(
      f"{who} has the classes of {info.name} in another order: {differing}; "
      "reorder them with python -m vitkd_jax.convert --classes"
    )
  return (f"its class names differ from {info.name}'s: {differing}",)
