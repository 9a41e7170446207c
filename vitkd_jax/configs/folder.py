r"""A student on your own images, alone or taught: any prepared dataset.

  python -m vitkd_jax.prepare my_birds --source ROOT   # ROOT/train/CLASS/IMAGE
  python -m vitkd_jax.train --config configs/folder.py:data=my_birds \
      --workdir runs/my_birds

Arguments:

  data=NAME        of the prepared dataset
  data_dir=DIR     folder of datasets, if it is not TFDS's own
  teacher=PATH     weights of a teacher: a workdir, a folder, a file,
                   shipped:NAME or hf:OWNER/NAME; none trains the student alone
  teacher_variant=NAME   of a teacher whose weights do not state it
  method=NAME+NAME of docs/methods.md, baseline, or both (vitkd+nkd)
  student=NAME     pico, nano, ti, s, b, or a model's name
  init=PATH        weights that the student starts from, with a new head
  image_size=N     side of the crops in pixels
  patch=N          side of a patch in pixels; of a model that is named for the
                   size of the crops, that of its name
  epochs=N, batch_size=N, seed=N
  runlocal         a trial of 2 epochs of 64 images, 8 at a time

Everything but the dataset has a default, chosen from its number of images and
classes and their size. Small images of one size (up to 96 pixels) are used
whole, padded and cropped, with patches of which at least 7 x 7 cover an image;
others are cropped to 224 pixels at random. The epochs fall from 100 for 1,000
images to 22 for 100,000, a third of that with init. Without a split for the
evaluation, a tenth of the training images is left out for it.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
from typing import Any

import ml_collections

from vitkd_jax.configs import choices, common, quickstart
from vitkd_jax.data import augment
from vitkd_jax.models import variants
from vitkd_jax.runs import students
from vitkd_jax.training import sections
from vitkd_jax.weights import resolve

# Arguments and their defaults; an empty one is chosen from the dataset.
ARGUMENTS: dict[str, Any] = dict(
  data="",
  data_dir="",
  teacher="",
  teacher_variant="",
  method="",
  student="",
  init="",
  image_size=0,
  patch=0,
  epochs=0.0,
  batch_size=0,
  seed=0,
  runlocal=False,
)
# Short names of students: the variant, and the fields that differ from it.
_PICO = "deit_pico_patch4_28"
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
  "pico": (_PICO, {}),
  "nano": (_PICO, dict(width=96, depth=6, mlp_dim=384, num_heads=3)),
  "ti": ("deit_tiny_patch16_224", {}),
  "s": ("deit_small_patch16_224", {}),
  "b": ("deit_base_patch16_224", {}),
}
_CACHED = 2**30  # most bytes of decoded images that are kept in memory


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A teacher's weights, and what they state.

  Attributes:
    weights: see `sections.Teacher`.
    variant: name of the model.
    image_size: (H, W) in pixels that it was trained at.
    patch: side of its patches in pixels.
    num_classes: number of classes; None if it is unknown.
  """

  weights: str
  variant: str
  image_size: tuple[int, int]
  patch: int
  num_classes: int | None


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The config of a training on one dataset.

  Args:
    arg: what follows the colon of --config, see above.
  """
  args = common.parse_arg(arg, **ARGUMENTS)
  return recipe(choices.read(args["data"], args["data_dir"] or None), args)


def recipe(
  images: choices.Images, args: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """The config of a training on these images.

  Args:
    images: what is known of the dataset.
    args: values of `ARGUMENTS`.
  """
  teacher = _teacher(args) if args["teacher"] else None
  methods = common.method_names(args["method"] or _method(images, teacher))
  if methods and teacher is None:
    raise ValueError(
      f"expected config argument teacher beside method={args['method']}, got"
      " none; name a workdir or a file of weights: teacher=PATH"
    )
  side = args["image_size"] or choices.crop(images)
  if images.size == (side, side):
    side = 0
  height, width = (side, side) if side else images.size or (0, 0)
  init = args["init"]
  batch_size = args["batch_size"] or choices.batch_size(images.count)
  epochs = args["epochs"] or choices.epochs(images.count, started=bool(init))
  steps = math.ceil(images.count / batch_size)
  config = ml_collections.ConfigDict()
  config.run = common.section(
    sections.Run,
    seed=args["seed"],
    epochs=epochs,
    batch_size=batch_size,
    log_every=min(50, steps),
    eval_every=steps * math.ceil(epochs / 10),
    checkpoint_every=steps * math.ceil(epochs / 10),
    checkpoint_minutes=5.0,
  )
  crops: dict[str, Any] = dict(image_size=side, crop_area=(0.25, 1.0))
  config.data = common.section(
    sections.Data,
    name=images.name,
    train_split=images.train_split,
    eval_split=images.eval_split,
    data_dir=args["data_dir"] or None,
    **(crops | dict(num_workers=16) if side else {}),
    cache=not side and images.count * height * width * 3 <= _CACHED,
  )
  config.augment = common.section(
    augment.make_augment,
    flip=0.5,
    pad=0 if side else height // 8,
    label_smoothing=0.1,
  )
  dtype = "bfloat16" if side else "float32"
  config.student = _student(images, args, (height, width), dtype, teacher)
  config.task = common.section(sections.Task)
  config.teachers, config.methods = {}, {}
  if methods and teacher is not None:
    scaled = "layerscale_init" in variants.get(teacher.variant).fields
    settings = quickstart.METHODS | (common.PAPERS if scaled else {})
    config.methods = common.methods(methods, **settings)
    other = teacher.image_size != (height, width)
    patch = config.student.patch_size[0]
    grid = [side // patch for side in (height, width)]
    own = [side // teacher.patch for side in teacher.image_size]
    config.teachers.teacher = common.teacher(
      weights=teacher.weights,
      variant=teacher.variant,
      dtype=dtype,
      # It gets images of the size that it knows.
      image_size=teacher.image_size[0] if other else 0,
      resample=own != grid,
    )
  config.schedule = _schedule(config, started=bool(init))
  config.optimizer = common.adamw(clip_norm=5.0)
  if args["runlocal"]:
    few = (min(64, x) for x in (images.count, images.eval_count))
    return common.trial(config, *few)
  return config


def _method(images: choices.Images, teacher: Teacher | None) -> str:
  """The paper's methods; token maps alone if the classes may differ."""
  if teacher is None:
    return "baseline"
  return "both" if teacher.num_classes == images.num_classes else "vitkd"


def _teacher(args: Mapping[str, Any]) -> Teacher:
  path = os.path.expanduser(args["teacher"])
  said = students.stated(path)
  name = args["teacher_variant"] or _variant("teacher", path, said)
  named = variants.get(name)
  return Teacher(
    weights=path,
    variant=name,
    image_size=said.image_size or (named.image_size, named.image_size),
    patch=_side(said.fields or {}, named.fields),
    num_classes=None if said.class_names is None else len(said.class_names),
  )


def _side(*fields: Mapping[str, Any]) -> int:
  """The side of a model's patches: as the first of `fields` that has it."""
  given = (x["patch_size"][0] for x in fields if x.get("patch_size"))
  return next(given, 16)  # as in big_vision


def _variant(kind: str, path: str, said: resolve.Stated) -> str:
  """The name of the model that weights are of: stated, or the file's name."""
  name = os.path.basename(os.path.normpath(path)).removesuffix(".safetensors")
  if said.variant:
    return said.variant
  if name.partition(".")[0] in variants.NAMED:
    return name
  argument = "student" if kind == "init" else "teacher_variant"
  raise ValueError(
    f"expected {kind}={path} to state its model or to be named after it; add"
    f" config argument {argument}=NAME, such as deit3_small_patch16_224"
  )


def _student(
  images: choices.Images,
  args: Mapping[str, Any],
  size: tuple[int, int],
  dtype: str,
  teacher: Teacher | None,
) -> ml_collections.ConfigDict:
  """Section `student`."""
  fields: dict[str, Any] = {}
  init = os.path.expanduser(args["init"])
  patch = choices.whole_patch(size) or choices.crop_patch(min(size))
  if teacher and teacher.image_size == size:
    patch = teacher.patch  # token maps on one grid
  if args["student"] or not init:
    name = args["student"] or choices.student(images, size)
    variant, fields = STUDENTS.get(name) or _named_student(name)
    if name not in STUDENTS and size == (variants.get(name).image_size,) * 2:
      patch = _side(variants.get(name).fields)  # as the name says
  else:
    said = students.stated(init)
    variant, fields = _variant("init", init, said), said.fields
  named = variants.get(variant).fields
  if init:
    patch = _side(fields, named)
    fields = fields | dict(init=init, init_head="init")
  patch = args["patch"] or patch
  fields = fields | dict(patch_size=(patch, patch), dtype_mm=dtype)
  return common.student(variant=variant, **fields)


def _named_student(name: str) -> tuple[str, dict[str, Any]]:
  try:
    variants.get(name)
  except ValueError as error:
    raise ValueError(
      f"expected config argument student to be {', '.join(STUDENTS)} or a"
      f" model's name; {error}"
    ) from None
  return name, {}


def _schedule(config: ml_collections.ConfigDict, *, started: bool) -> Any:
  """The quickstart's peak for its width of 64, and less for a wider student.

  A twentieth of the run warms up; `started` from weights, the peak is a fifth.
  """
  student = config.student
  width = student.width or variants.get(student.variant).fields["width"]
  rate = 1.5e-3 / 64 * (64 / width) * (0.2 if started else 1.0)
  return dict(
    kind="mmcls",
    peak=config.run.get_ref("batch_size").to_float() * rate,
    warmup_epochs=config.run.get_ref("epochs") * 0.05,
    warmup_start=1e-6,
    end=1e-5,
  )
