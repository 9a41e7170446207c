"""Scores a model on a split, exactly: any batch size, any number of devices."""

import contextlib
import dataclasses
import math
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import ml_collections

from vitkd_jax.data import augment, datasets, loader
from vitkd_jax.data import crop as crops
from vitkd_jax.models import variants, vit
from vitkd_jax.reporting import counting
from vitkd_jax.training import inputs, runs, sharding, teachers
from vitkd_jax.weights import loading, places


@dataclasses.dataclass(frozen=True)
class Scored:
  """A model with its parameters.

  Attributes:
    model: linen module, images [B, H, W, 3] -> (logits [B, C], out).
    params: its parameters.
    mean: per channel, of images in [0, 1], that the model wants removed.
    std: likewise, the standard deviation.
    crop: what makes its images from a data set's files; None where they are
      taken whole.
  """

  model: vit.ViT
  params: Any
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  crop: crops.CentreCrop | None = None

  def logits(self, params: Any, image: jax.Array) -> jax.Array:
    """[B, C] float32 of images uint8 [B, H, W, 3]."""
    image = augment.normalize(jnp.float32(image) / 255, self.mean, self.std)
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
) -> Scored:
  """A model from weights, for the images and classes of a data set.

  Images are cropped as the run was evaluated that the workdir or the exported
  file comes from; for other weights they are taken whole where they have one
  size, and else as the model was published.

  Args:
    path: file or folder of weights, a workdir, or "shipped:NAME".
    info: of the data set.
    variant: the model's name; None takes what the file or workdir says.
    which: "student" or "ema" of a workdir's checkpoint, see `loading.load`.
    step: of the checkpoint, likewise.
    image_size: pixels of a side of the crop, if another is wanted.
    eval_resize: pixels of the short side before the crop, likewise.

  Raises:
    ValueError: the weights do not fit, their variant is unknown, or there is
      a size before the crop, but no crop.
  """
  said = places.stated(path)
  if said is None or variant not in (None, said.variant):
    if not variant:
      raise ValueError(
        f"{path} does not say which model it is for; give its variant, such as "
        "deit_tiny_patch16_224"
      )
    said = places.Stated(variant)
  config = workdir_config(path)
  known = variants.get(said.variant)
  data = None if config is None else config.data
  crop = _crop(info, said, data, image_size, eval_resize)
  size = (crop.size, crop.size) if crop else info.image_size
  loaded = loading.load_with_notes(
    path,
    variant=said.variant,
    num_classes="file",
    image_size=size,
    which=which,
    step=step,
    **said.fields,
  )
  if loaded.num_classes != info.num_classes:
    raise ValueError(
      f"{path} has {loaded.num_classes or 'no'} classes, {info.name} has "
      f"{info.num_classes}; take a data set of the model's classes (--data)"
    )
  for note in loaded.notes:
    print(f"{path}: {note}")
  model = vit.Model(info.num_classes, variant=said.variant, **said.fields)
  teachers.check_patches("model", model, *size)
  return Scored(model, loaded.params, known.mean, known.std, crop)


def _crop(info, said, data, image_size, eval_resize):
  """The crop that is asked for, else a run's, else the published one.

  Args:
    info: of the data set.
    said: what the weights say of themselves.
    data: section `data` of the workdir's run, None for other weights.
    image_size: that is asked for, or 0.
    eval_resize: likewise.
  """
  asked = eval_resize
  if data and not image_size:
    image_size = data.get("image_size", 0)
    eval_resize = eval_resize or data.get("eval_resize", 0)
  elif said.eval_resize and not image_size:
    image_size = said.image_size[0]
    eval_resize = eval_resize or said.eval_resize
  known = variants.get(said.variant)
  if not image_size and info.image_size is None:
    image_size = said.image_size[0] if said.image_size else known.image_size
  if asked and not image_size:
    raise ValueError(
      f"eval_resize={asked} needs image_size, the size of the crop: images of "
      f"{info.name} are taken whole"
    )
  if data is None and not eval_resize:  # timm's rule for its weights
    eval_resize = math.floor(image_size / known.crop_pct)
  return inputs.centre_crop(image_size, eval_resize)


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
    student: what is scored; its crop makes the images, the teacher's too.
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
    crop=student.crop,
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
