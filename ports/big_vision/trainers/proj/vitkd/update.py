"""What a trainer of big_vision needs to distil, without importing big_vision.

`install.py` makes the trainer: big_vision's own `train.py`, which calls
`make` and the methods of `Distillation`. Of a config it reads, beside what
`train.py` reads:

  teachers: {NAME: {model_name, model, init, load, num_classes, mean, std,
    scale, image_size, dtype, resample}}; mean and std are of images in [0, 1],
    and 0.5 where images are in [-1, 1].
  methods: {NAME: {kind, teacher, weights, ...}}: a published method, and its
    fields. A weight is 0 where the section has none and the method needs one.
  task_weight: of the loss between logits and labels; 1 by default.
  augment: options of `data.augment.make_augment`. The batch then has uint8
    images and, as "labels", the indices of the classes; otherwise images in
    [-1, 1] and a row for each label.
  label_smoothing: of labels that were made without `augment`.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vitkd_jax import check
from vitkd_jax.data import augment as augmentation
from vitkd_jax.distill import methods as published
from vitkd_jax.distill import objective as objectives
from vitkd_jax.distill import sides, terms

_STATS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # of images in [-1, 1]
# Fields of a section `teachers.NAME`.
_TEACHER = (
  "model_name",
  "model",
  "init",
  "load",
  "num_classes",
  "mean",
  "std",
  "scale",
  "image_size",
  "dtype",
  "resample",
)


@dataclasses.dataclass(frozen=True)
class Distillation:
  """A training's objective and what surrounds it.

  Attributes:
    objective: models, methods and loss weights.
    image_size: (H, W) of a batch in pixels.
    augment: of uint8 images; None where the input pipeline does it.
    load: {name of a teacher: makes its parameters}.
  """

  objective: objectives.Objective
  image_size: tuple[int, int]
  augment: Callable | None
  load: Mapping[str, Callable[[], Any]]

  def init(self, key: jax.Array) -> dict[str, Any]:
    """{"student": ..., "methods": {name: ...}}, initialised.

    Args:
      key: PRNG key.
    """
    return self.objective.init_params(key, (1, *self.image_size, 3))

  def teachers(self) -> dict[str, Any]:
    """{name: its parameters}, on the host."""
    return {name: load() for name, load in self.load.items()}

  def gradients(
    self,
    params: Any,
    teachers: Mapping[str, Any],
    key: jax.Array,
    step: jax.Array,
    images: jax.Array,
    labels: jax.Array,
  ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """The loss of a batch, its gradients, and what else is measured.

    Args:
      params: {"student": ..., "methods": {name: ...}}.
      teachers: {name: its parameters}.
      key: of this step, which differs from every other step's.
      step: int32 scalar, updates done.
      images: uint8 [B, H, W, 3] with `augment`, otherwise float32 in [-1, 1].
      labels: int [B] with `augment`, otherwise float32 [B, C].

    Returns:
      A scalar, a tree like `params`, and {name: scalar}.
    """
    key_augment, key_draws, key_drop = jax.random.split(key, 3)
    if self.augment is not None:
      images, labels = self.augment(key_augment, images, labels)
    else:
      images = (images + 1) / 2
    micro = {
      "image": images,
      "target": labels,
      "draws": self.objective.draws(key_draws, len(images)),
      "key": key_drop,
    }
    grads, means = objectives.gradients(
      self.objective,
      params,
      teachers,
      self.objective.weights_at(step),
      micro,
    )
    loss = means.pop("loss")
    return loss, grads, {f"training_{k}": x for k, x in means.items()}

  def comparisons(self) -> dict[str, Callable]:
    """{"compare_NAME": predicts with student and teacher}, for evaluators."""

    def compare(name: str) -> Callable:
      teacher = self.objective.teachers[name]

      def predict(train_state: Any, batch: Mapping[str, jax.Array]) -> Any:
        image = batch["image"]  # in [-1, 1], as for big_vision's evaluators
        own = self.objective.student.apply(
          {"params": train_state["params"]["student"]}, image
        )
        theirs = teacher.model.apply(
          {"params": train_state["teachers"][name]},
          teacher.images((image + 1) / 2),
        )
        return (own, self.objective.student_side), (theirs, teacher.side)

      return predict

    return {
      f"compare_{name}": compare(name) for name in self.objective.teachers
    }


def make(
  config: Mapping[str, Any],
  student: Any,
  image_shape: tuple[int, ...],
  find_module: Callable[[str], Any],
) -> Distillation:
  """What a config says.

  Args:
    config: of the trainer, see above.
    student: the model.
    image_shape: (B, H, W, 3) of a batch.
    find_module: returns a module of big_vision's models by its name, such as
      "vit", with `Model` and `load`.

  Raises:
    ValueError: the config cannot be trained; one sentence says why.
  """
  if (loss := config.get("loss")) != "softmax_xent":
    raise ValueError(f"expected config.loss='softmax_xent', got {loss!r}")
  mixup = config.get("mixup") or {}
  if config.get("augment") is not None and mixup.get("p"):
    raise ValueError(
      "expected config.mixup or config.augment, got both; config.augment has "
      "mixup_alpha and cutmix_alpha"
    )
  image_size = tuple(image_shape[1:3])
  side = sides.of(student, image_size)
  teachers, load = {}, {}
  for name, values in (config.get("teachers") or {}).items():
    teachers[name], load[name] = _teacher(
      name, values, config["num_classes"], image_size, find_module
    )
  if not teachers:
    raise ValueError("expected a teacher in config.teachers, got none")
  methods = {}
  for name, values in (config.get("methods") or {}).items():
    made = _method(name, values, side, teachers)
    if made.weights:
      methods[name] = made
  learned = {method.teacher for method in methods.values()}
  if unused := sorted(teachers.keys() - learned):
    raise ValueError(
      f"no method learns from config.teachers.{unused[0]}: remove it, or name "
      "it as the teacher of one in config.methods"
    )
  for name, method in methods.items():
    if method.teacher is None:
      continue
    classes = teachers[method.teacher].side.num_classes
    if method.taught.logits and classes != config["num_classes"]:
      raise ValueError(
        f"expected a teacher of {config['num_classes']} classes for the logits "
        f"of config.methods.{name}, got {classes or 'no'} classes in "
        f"config.teachers.{method.teacher}"
      )
    resample = config["teachers"][method.teacher].get("resample")
    if method.taught.maps and not resample:
      taught = teachers[method.teacher].side
      sides.check_grids(name, side, method.teacher, taught)
  for name, teacher in teachers.items():
    if any(m.taught.qkv for m in methods.values() if m.teacher == name):
      model = _with_qkv(f"teachers.{name}", teacher.model)
      teachers[name] = dataclasses.replace(teacher, model=model)
  if any(method.needs.student.qkv for method in methods.values()):
    student = _with_qkv("model", student)
  options = config.get("augment")
  augment = None
  smoothing = config.get("label_smoothing", 0.0)
  if options is not None:
    options = dict(options)
    augment = augmentation.make_augment(
      num_classes=config["num_classes"], **options
    )
    smoothing = options.get("label_smoothing", 0.0)
  found = objectives.Objective(
    student=student,
    student_stats=_STATS,
    student_side=side,
    task_weight=config.get("task_weight", 1.0),
    teachers=teachers,
    methods=methods,
    label_smoothing=smoothing,
  )
  return Distillation(found, image_size, augment, load)


def _teacher(
  name: str,
  values: Mapping[str, Any],
  num_classes: int,
  image_size: tuple[int, int],
  find_module: Callable[[str], Any],
) -> tuple[objectives.Teacher, Callable[[], Any]]:
  """A teacher, and what makes its parameters."""
  key = f"config.teachers.{name}"
  for field in values:
    check.known(f"a field of {key}", field, _TEACHER)
  if not values.get("init"):
    raise ValueError(f"expected {key}.init, a file of weights, got none")
  module = find_module(values.get("model_name", "vit"))
  fields = dict(values.get("model") or {})
  model = module.Model(
    num_classes=values.get("num_classes", num_classes), **fields
  )
  side = values.get("image_size")
  size = (side, side) if side else image_size
  shapes, dtype = _shapes(model, size), values.get("dtype", "float32")

  def freeze(params: Any) -> tuple[Any, Any]:
    if hasattr(model, "frozen"):  # of this package
      return model.frozen(params, dtype)
    cast = lambda leaf: jnp.asarray(leaf, dtype)  # noqa: E731
    return model, jax.tree.map(cast, params)

  def load() -> Any:
    options = dict(values.get("load") or {})
    params = module.load(shapes, values["init"], fields, **options)
    with jax.transfer_guard("allow"):
      return jax.device_get(freeze(params)[1])

  frozen = model

  def trace(params: Any) -> Any:
    nonlocal frozen
    frozen, params = freeze(params)
    return params

  jax.eval_shape(trace, shapes)
  stats = tuple(
    tuple(values.get(name) or default)
    for name, default in zip(("mean", "std"), _STATS, strict=True)
  )
  teacher = objectives.Teacher(
    frozen, stats, sides.of(frozen, size), size, values.get("scale", 1.0)
  )
  return teacher, load


def _shapes(model: Any, image_size: tuple[int, int]) -> Any:
  image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
  with jax.transfer_guard("allow"):
    key = jax.random.key(0)
  return jax.eval_shape(model.init, key, image)["params"]


def _method(
  name: str,
  values: Mapping[str, Any],
  student: Any,
  teachers: Mapping[str, objectives.Teacher],
) -> objectives.Method:
  """A method of the config; without weights where all of them are zero."""
  key = f"config.methods.{name}"
  kind = terms.kind(name, values)
  check.known(f"the method of {key}", kind, published.METHODS)
  cls: Any = published.METHODS[kind]
  given = dict(values.get("weights") or {})
  for term in given:
    check.known(f"a term of {key}.weights", term, cls.terms)
  chosen = {k: w for k, w in {**cls.terms, **given}.items() if w}
  fields = {
    k: tuple(v) if isinstance(v, list) else v
    for k, v in values.items()
    if k not in ("kind", "teacher", "weights")
  }
  known = [x.name for x in dataclasses.fields(cls)]
  own = [x for x in known if x not in ("parent", "name", "only")]
  for field in fields:
    check.known(f"a field of {key}", field, own)
  if "only" in known:
    fields["only"] = tuple(chosen)
  teacher = values.get("teacher") or ""
  if not teacher and len(teachers) > 1:
    raise ValueError(
      f"{key}.teacher is missing, and there are several teachers: "
      f"{', '.join(teachers)}"
    )
  teacher = teacher or next(iter(teachers))
  check.known(f"{key}.teacher", teacher, teachers)
  taught = (teacher, teachers[teacher].side)
  try:
    return objectives.Method.make(
      name, cls(**fields), chosen, student, taught, kind
    )
  except ValueError as error:
    raise ValueError(f"{key}: {error}") from None


def _with_qkv(key: str, model: Any) -> Any:
  if not hasattr(model, "with_qkv"):
    raise ValueError(
      f"a method compares queries, keys and values, which config.{key} does "
      "not show: build it with model_name='proj.vitkd.model'"
    )
  return model.with_qkv()
