"""Scores a model on a split, exactly: any batch size, any number of devices."""

import contextlib
import dataclasses
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import ml_collections

from vitkd_jax.data import augment, crop, datasets, loader, preprocess
from vitkd_jax.models import variants, vit
from vitkd_jax.reporting import counting
from vitkd_jax.training import runs, sharding, teachers
from vitkd_jax.weights import loading, places


@dataclasses.dataclass(frozen=True)
class Scored:
  """A model with its parameters.

  Attributes:
    model: linen module, images [B, H, W, 3] -> (logits [B, C], out).
    params: its parameters.
    images: what makes its images from a dataset's files.
  """

  model: vit.ViT
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
    which: "student" or "ema" of a workdir's checkpoint, see `loading.load`.
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
  said = places.stated(path)
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
  loaded = loading.load_with_notes(
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
  others = teachers.compare_classes(path, said.class_names, info)
  for note in (*loaded.notes, *others):
    print(f"{path}: {note}")
  model = vit.Model(info.num_classes, variant=said.variant, **loaded.fields)
  teachers.check_patches("model", model, *images.size)
  return Scored(model, loaded.params, images)


def _images(info, said, image_size, eval_resize) -> preprocess.Preprocess:
  """What is asked for, else what the weights say, else what is published.

  Args:
    info: of the dataset.
    said: what the weights say of themselves.
    image_size: that is asked for, or 0.
    eval_resize: likewise.
  """
  published = places.published(variants.get(said.variant), said.image_size)
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


def workdir_config(path: str) -> ml_collections.ConfigDict | None:
  """The config of a workdir; None for any other path."""
  if path.startswith(places.SHIPPED) or not epath.Path(path).is_dir():
    return None
  try:
    config = runs.read_config(path)
  except ValueError:
    return None  # another library's config.json
  return config if config is not None and "student" in config else None


def evaluate(
  student: Scored,
  source: datasets.Source,
  info: datasets.Info,
  *,
  batch_size: int = 256,
  teacher: Scored | None = None,
) -> dict[str, Any]:
  """The `counting.results` of a model on every example of a source, each once.

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
  params = {"student": student.params}
  if teacher is not None:
    params["teacher"] = teacher.params
  params = jax.device_put(params, replicated)
  step = jax.jit(
    counting.make_step(
      student.logits, teacher and teacher.logits, info.scored_classes
    ),
    out_shardings=replicated,
  )
  sums = counting.zero_sums(
    info.num_classes,
    teacher is not None,
    with_subset=info.scored_classes is not None,
    label_sets=info.label_sets,
  )
  sums = jax.device_put(sums, replicated)
  batches = loader.eval_batches(
    source,
    batch_size=-(-min(batch_size, len(source)) // mesh.size) * mesh.size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    crop=crop.centre(student.images),
  )
  with contextlib.closing(batches):
    for batch in batches:
      before = sums
      sums = step(sums, params, sharding.global_batch(batch, mesh))
      sharding.keep_up(mesh, before, sums)
  found = counting.results(jax.device_get(sums), info.class_names)
  if info.scored_classes:
    found["scored_classes"] = len(info.scored_classes)
  return found
