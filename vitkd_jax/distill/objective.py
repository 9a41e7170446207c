"""What a training minimises: the only place where losses are weighted.

It needs no more than jax, flax, einops and numpy, and can be carried into
another trainer (docs/porting.md).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from vitkd_jax.data import augment as augmentation
from vitkd_jax.distill import frozen, losses, methods, terms, view
from vitkd_jax.distill.dropping import Dropping
from vitkd_jax.distill.parts import Method, Stats, Teacher, Weight
from vitkd_jax.models import protocol

# float32 [B, H, W, 3] in [0, 1]; or {"student", name of each teacher: the same
# images as that model takes them, normalised}.
Images = jax.Array | Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a training minimises: models, methods and loss weights.

  Attributes:
    student: the trained model.
    student_stats: the student's mean and std of images in [0, 1].
    student_side: what is known of the student.
    task_weight: weight >= 0 of the loss between its logits and the labels.
    teachers: the frozen models by name, each learned from by some method.
    methods: by name, in the order of reports.
    label_smoothing: of the targets, in [0, 1).
    dropping: leaves out teachers by image; None for the sum over all.
    frozen: names of the student's leaves that are not trained.
  """

  student: protocol.Backbone
  student_stats: Stats
  student_side: view.Side
  task_weight: float = 1.0
  teachers: Mapping[str, Teacher] = dataclasses.field(default_factory=dict)
  methods: Mapping[str, Method] = dataclasses.field(default_factory=dict)
  label_smoothing: float = 0.0
  dropping: Dropping | None = None
  frozen: frozenset[str] = frozenset()

  @property
  def weights(self) -> dict[str, Weight]:
    """{full name: weight} of every computed term, in the order of reports."""
    found: dict[str, Weight] = {}
    if self.task_weight:
      found[terms.TASK] = self.task_weight
    for method in self.methods.values():
      found |= method.weights
    return found

  @property
  def terms(self) -> tuple[str, ...]:
    """Full names of the computed terms, in the order of reports."""
    return tuple(self.weights)

  def described(self) -> dict[str, str]:
    """{full name: weight in words} of every computed term."""
    return {
      name: f"{weight(jnp.int32(0)):g} at first"
      if callable(weight)
      else f"{weight:g}"
      for name, weight in self.weights.items()
    }

  def weights_at(self, step: jax.Array) -> dict[str, Any]:
    """{full name: weight at a step}; constants are Python numbers.

    Args:
      step: int32 scalar, updates done.
    """
    return {
      name: weight(step) if callable(weight) else weight
      for name, weight in self.weights.items()
    }

  @property
  def metric_names(self) -> tuple[str, ...]:
    """Names of the metrics that a step accumulates."""
    names = ["loss", "accuracy", "learning_rate", "grad_norm"]
    names += [f"grad_norm_{part}" for part in PARTS]
    names += self.terms
    names += [f"weighted/{term}" for term in self.terms]
    return tuple(names)

  def learned_from(self, name: str) -> view.Taps:
    """All that the methods read of a teacher.

    Args:
      name: of the teacher.
    """
    taps = (x.taught for x in self.methods.values() if x.teacher == name)
    return functools.reduce(operator.or_, taps, view.Taps())

  def init_params(self, key: jax.Array, image_shape: tuple) -> dict[str, Any]:
    """{"student": ..., "methods": {name: ...}}, initialised.

    Args:
      key: typed PRNG key.
      image_shape: (1, H, W, 3).
    """
    key_student, key_methods = jax.random.split(key)
    image = jnp.zeros(image_shape, jnp.float32)
    params = self.student.init(key_student, image)["params"]
    label = view.Label(jnp.zeros((1, self.student_side.num_classes or 0)))
    found = {}
    for name, method in self.methods.items():
      own, teacher = methods.fold(key_methods, name), None
      if method.teacher:
        side = self.teachers[method.teacher].side
        teacher = view.zeros(side, method.taught)
      made = method.module.init(
        own,
        view.zeros(self.student_side, method.needs.student),
        teacher,
        label,
        self._draws(method, own, 1),
      )
      if "params" in made:
        found[name] = made["params"]
    return {"student": params, "methods": found}

  def _draws(self, method: Method, key: jax.Array, batch: int) -> Any:
    draws: Any = getattr(method.module, "draws", None)
    return draws(key, batch, self.student_side) if draws else {}

  def draws(self, key: jax.Array, batch: int) -> dict[str, Any]:
    """The randomness of each method, arrays [B, ...] by the method's name.

    Args:
      key: typed PRNG key.
      batch: B.
    """
    found = {
      name: self._draws(method, methods.fold(key, name), batch)
      for name, method in self.methods.items()
    }
    if self.dropping:
      found[_KEPT] = self.dropping.draw(
        methods.fold(key, _KEPT), batch, len(self.teachers)
      )
    return {name: drawn for name, drawn in found.items() if len(drawn)}

  def teacher_views(
    self, teacher_params: Mapping[str, Any], image: Images
  ) -> dict[str, view.View]:
    """What the methods read of each teacher, without gradient.

    Args:
      teacher_params: {name of the teacher: its parameters}.
      image: see `Images`.
    """
    views = {}
    for name, teacher in self.teachers.items():
      params, taps = teacher_params[name], self.learned_from(name)
      given = (
        image[name] if isinstance(image, Mapping) else teacher.images(image)
      )
      logits, out = teacher.model.apply({"params": params}, given)
      head = params["head"] if taps.head else None
      shown = view.make(teacher.side, taps, logits, out, head)
      views[name] = jax.lax.stop_gradient(shown.scaled(teacher.scale))
    return views

  def losses(
    self,
    params: Any,
    views: Mapping[str, view.View],
    image: Images,
    target: jax.Array,
    draws: Mapping[str, Any],
    weights: Mapping[str, Any],
    key_drop: jax.Array,
  ) -> tuple[dict[str, jax.Array], jax.Array]:
    """Every term of a batch, unweighted, and the student's logits.

    Args:
      params: {"student": ..., "methods": {name: ...}}.
      views: from `teacher_views`.
      image: see `Images`.
      target: float32 [B, C], mixed and smoothed.
      draws: from `draws`.
      weights: {term: weight}, from `weights_at`, by which the teachers that
        are dropped are chosen.
      key_drop: typed PRNG key for dropout and drop path.

    Returns:
      {term: [B] float32}, and the logits [B, C].
    """
    if isinstance(image, Mapping):
      image = image["student"]
    else:
      image = augmentation.normalize(image, *self.student_stats)
    logits, out = self.student.apply(
      {"params": frozen.held(params["student"], self.frozen)},
      image,
      train=True,
      rngs={"dropout": key_drop},
    )
    values = {}
    if self.task_weight:
      # The distillation token learns from the teacher, the CLS token from
      # labels.
      task_logits = out.get("logits_cls", logits)
      values[terms.TASK] = losses.soft_cross_entropy(task_logits, target)
    label = view.Label(target, self.label_smoothing)
    for name, method in self.methods.items():
      found: Any = method.module.apply(
        {"params": params["methods"].get(name, {})},
        view.make(self.student_side, method.needs.student, logits, out),
        views[method.teacher] if method.teacher else None,
        label,
        draws.get(name, {}),
      )
      values |= {full: found[term] for term, full in method.names.items()}
    if self.dropping:
      taught = [
        [
          term
          for x in self.methods.values()
          if x.teacher == name
          for term in x.weights
        ]
        for name in self.teachers
      ]
      values = self.dropping.apply(values, weights, taught, draws[_KEPT])
    return {term: values[term] for term in self.terms}, logits


# Of the draws; no method's name has a slash.
_KEPT = "teachers/kept"

# Trees of parameters that train together.
PARTS = ("student", "methods")


def together(objectives: Sequence[Objective]) -> Objective:
  """One whose `teacher_views` has what several read of their teachers.

  Args:
    objectives: of students that train side by side. Teachers of one name must
      be the same.
  """
  return dataclasses.replace(
    objectives[0],
    teachers={k: x for own in objectives for k, x in own.teachers.items()},
    methods={
      f"{index}/{name}": method
      for index, own in enumerate(objectives)
      for name, method in own.methods.items()
    },
  )


def gradients(
  objective: Objective,
  params: Any,
  teacher_params: Mapping[str, Any],
  weights: Mapping[str, Any],
  micro: Any,
) -> tuple[Any, dict[str, jax.Array]]:
  """Gradients of a batch's mean total loss, and the mean of each term.

  Args:
    objective: models, methods and loss weights.
    params: {"student": ..., "methods": {name: ...}}.
    teacher_params: {name of the teacher: its parameters}.
    weights: {term: weight}, from `Objective.weights_at`.
    micro: {"image": see `Images`, "target": float32 [B, C], "draws": from
      `Objective.draws`, "key": PRNG key for dropout}.

  Returns:
    A tree like `params`, and scalars {"loss", "accuracy", one per term}.
  """
  views = objective.teacher_views(teacher_params, micro["image"])
  return gradients_by_views(objective, params, views, weights, micro)


def gradients_by_views(
  objective: Objective,
  params: Any,
  views: Mapping[str, view.View],
  weights: Mapping[str, Any],
  micro: Any,
) -> tuple[Any, dict[str, jax.Array]]:
  """`gradients`, of what teachers were seen to show.

  Args:
    objective: models, methods and loss weights.
    params: {"student": ..., "methods": {name: ...}}.
    views: {name of the teacher: what the methods read of it, or more}, from
      `Objective.teacher_views`.
    weights: as for `gradients`.
    micro: as for `gradients`.

  Returns:
    As of `gradients`.
  """

  def loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    values, logits = objective.losses(
      params,
      views,
      micro["image"],
      micro["target"],
      micro["draws"],
      weights,
      micro["key"],
    )
    means = {term: jnp.mean(value) for term, value in values.items()}
    total: Any = sum(weights[term] * means[term] for term in means)
    hit = jnp.argmax(logits, -1) == jnp.argmax(micro["target"], -1)
    return total, {"loss": total, "accuracy": jnp.mean(hit), **means}

  return jax.grad(loss, has_aux=True)(params)
