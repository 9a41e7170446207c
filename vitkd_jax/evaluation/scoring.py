"""Scores a model on a split, exactly: any batch size, any number of devices."""

from collections.abc import Sequence
import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vitkd_jax.cluster import sharding
from vitkd_jax.data import augment, crop, datasets, loader, preprocess
from vitkd_jax.evaluation import agreement, classification, running
from vitkd_jax.models import checks, protocol, variants, vit
from vitkd_jax.runs import students
from vitkd_jax.weights import resolve


@dataclasses.dataclass(frozen=True)
class Scored:
  """A model with its parameters.

  Attributes:
    model: linen module, images [B, H, W, 3] -> (logits [B, C], out).
    params: its parameters.
    images: what makes its images from a dataset's files.
  """

  model: protocol.Backbone
  params: Any
  images: preprocess.Preprocess

  def logits(self, params: Any, image: jax.Array) -> jax.Array:
    """[B, C] float32 of images uint8 [B, H, W, 3]."""
    stats = self.images.mean, self.images.std
    image = augment.normalize(jnp.float32(image) / 255, *stats)
    return jnp.float32(self.model.apply({"params": params}, image)[0])


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
  """A model from weights, for the images and classes of a data set.

  Images are made as the run, the exported file or another library's folder
  says; for other weights they are taken whole where they have one size that is
  no larger than the model's, and else as for the published model.

  Args:
    path: file or folder of weights, a workdir, or "shipped:NAME".
    info: of the data set.
    variant: the model's name; None takes what the file or workdir says.
    which: "student" or "ema" of a workdir's checkpoint, see `students.load`.
    step: of the checkpoint, likewise.
    image_size: pixels of a side of the crop, if another is wanted.
    eval_resize: pixels of the short side before the crop, likewise.
    like: what makes the images that the model gets, whatever it says itself;
      its own are mean and standard deviation alone.

  Raises:
    ValueError: the weights do not fit, their variant is unknown, they have
      the classes in another order, or there is a size before the crop, but no
      crop.
  """
  said = students.stated(path)
  if variant not in (None, said.variant):
    said = dataclasses.replace(said, variant=variant, fields={})
  if said.variant is None:
    raise ValueError(
      f"{path} does not say which model it is for; give its variant, such as "
      "deit_tiny_patch16_224"
    )
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
  if loaded.num_classes != info.num_classes:
    raise ValueError(
      f"{path} has {loaded.num_classes or 'no'} classes, {info.name} has "
      f"{info.num_classes}; take a data set of the model's classes (--data)"
    )
  others = compare_classes(path, said.class_names, info)
  for note in (*loaded.notes, *others):
    print(f"{path}: {note}")
  model = vit.Model(info.num_classes, variant=said.variant, **loaded.fields)
  checks.check_patches("model", model.patch_size, *images.size)
  return Scored(model, loaded.params, images)


def _images(info, said, image_size, eval_resize) -> preprocess.Preprocess:
  """What is asked for, else what the weights say, else what is published.

  Args:
    info: of the dataset.
    said: what the weights say of themselves.
    image_size: that is asked for, or 0.
    eval_resize: likewise.
  """
  published = resolve.published(variants.get(said.variant), said.image_size)
  images = said.preprocess or published
  if image_size:
    images = images.at((image_size, image_size))
  elif said.preprocess is None or images.whole:
    # Photographs of one size are no input of a model that states a smaller.
    fits = info.image_size is not None and (
      images.whole or max(info.image_size) <= max(images.size)
    )
    if fits:
      images = dataclasses.replace(
        images, size=info.image_size, short_side=None
      )
    elif images.whole:
      images = dataclasses.replace(images, short_side=min(images.size))
  if not eval_resize:
    return images
  if images.whole and not image_size:
    raise ValueError(
      f"eval_resize={eval_resize} needs image_size, the size of the crop: "
      f"images of {info.name} are taken whole"
    )
  return dataclasses.replace(images, short_side=eval_resize)


def evaluate(
  student: Scored,
  source: datasets.Source,
  info: datasets.Info,
  *,
  batch_size: int = 256,
  teacher: Scored | None = None,
) -> dict[str, Any]:
  """What the evaluators say of a model on every example of a source, each once.

  Args:
    student: what is scored; its images are the teacher's, too.
    source: see `datasets.load`, with label sets where `info` has them.
    info: of the data set.
    batch_size: over all devices, at most the source's length; rounded up to
      a multiple of the devices' number.
    teacher: what it is compared with.

  Raises:
    ValueError: a batch size below 1, or an empty source.
    loader.InputError: too many records cannot be read.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size}: wanted at least 1")
  mesh = sharding.make_mesh()
  replicated = sharding.replicated(mesh)
  classes = info.scored_classes
  evaluators = {
    "student": classification.Classification(
      classes, info.class_names, info.label_sets
    )
  }
  models = {"student": student}
  if teacher is not None:
    models["teacher"] = teacher
    evaluators["teacher"] = agreement.Agreement(classes)
  step = jax.jit(
    running.make_step({n: m.logits for n, m in models.items()}, evaluators),
    out_shardings=replicated,
  )
  zeros = jax.device_put(running.zero_sums(evaluators), replicated)
  params = {name: model.params for name, model in models.items()}
  params = jax.device_put(params, replicated)
  batches = loader.eval_batches(
    source,
    batch_size=-(-min(batch_size, len(source)) // mesh.size) * mesh.size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    crop=crop.centre(student.images),
  )
  with contextlib.closing(batches):
    sums = running.run(step, zeros, {"all": params}, batches, mesh)["all"]
  found = evaluators["student"].compute(sums["student"])
  large = {name: found.pop(name) for name in ("classes", "confusion")}
  if teacher is not None:
    found |= evaluators["teacher"].compute(sums["teacher"])
  if classes:
    found["scored_classes"] = len(classes)
  return found | large  # last, since they are long


def compare_classes(
  who: str, names: Sequence[str] | None, info: datasets.Info
) -> tuple[str, ...]:
  """Notes on a model's class names beside the dataset's.

  Args:
    who: the model, for the message.
    names: its class names; None where they are not known.
    info: of the dataset, of as many classes.

  Raises:
    ValueError: the same classes in another order.
  """
  own = info.class_names
  if not names or resolve.nameless(own) or tuple(names) == tuple(own):
    return ()
  first = next(i for i, name in enumerate(names) if name != own[i])
  differing = f"class {first} is {names[first]!r} there and {own[first]!r} here"
  if sorted(names) == sorted(own):
    raise ValueError(
      f"{who} has the classes of {info.name} in another order: {differing}; "
      "python -m vitkd_jax.convert --classes puts them in this one"
    )
  return (f"its class names are not {info.name}'s: {differing}",)
