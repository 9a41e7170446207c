"""What a training minimises: the only place where loss weights meet."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from vitkd_jax.data import augment as augmentation
from vitkd_jax.distill import heads, losses, tokens
from vitkd_jax.distill import terms as loss_terms
from vitkd_jax.models import protocol

Stats = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a training minimises: models, what they are compared by, weights.

  Attributes:
    student: the trained model.
    student_stats: mean and std of images in [0, 1], as the student wants.
    loss_weights: {term: weight} of the terms that are computed, all in
      `terms.TERMS`.
    teacher: the frozen model, or None where no term needs it.
    teacher_stats: as the teacher wants.
    head: the modules trained beside the student, or None without features.
    select: keyword arguments of `tokens.select`.
    student_grid: rows and columns of the student's token map.
    teacher_grid: those of the teacher's map, which is resampled if they
      differ.
    temperature: of NKD and KL.
    gamma: of NKD.
  """

  student: protocol.Backbone
  student_stats: Stats
  loss_weights: Mapping[str, float]
  student_grid: tuple[int, int]
  teacher: protocol.Backbone | None = None
  teacher_stats: Stats | None = None
  teacher_grid: tuple[int, int] | None = None
  head: heads.ViTKD | None = None
  select: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  temperature: float = 1.0
  gamma: float = 1.0

  @property
  def terms(self) -> tuple[str, ...]:
    """The names of the terms, in the order of `terms.TERMS`."""
    return tuple(term for term in loss_terms.TERMS if term in self.loss_weights)

  @property
  def num_tokens(self) -> int:
    """Patch tokens of the student's maps."""
    return math.prod(self.student_grid)

  @property
  def num_low(self) -> int:
    """Shallow maps that are compared; two, as `tokens.select` has it."""
    return len(self.select.get("low_blocks", (0, 1)))

  @property
  def metric_names(self) -> tuple[str, ...]:
    """The names of the metrics that a step adds up."""
    names = ["loss", "accuracy", "learning_rate", "grad_norm"]
    names += [f"grad_norm_{part}" for part in ("student", "head")]
    names += [f"raw_{term}" for term in self.terms]
    names += [f"weighted_{term}" for term in self.terms]
    return tuple(names)

  def init_params(self, key: jax.Array, image_shape: tuple) -> dict[str, Any]:
    """{"student": ..., "head": ...} for images [1, H, W, 3]."""
    key_student, key_head = jax.random.split(key)
    image = jnp.zeros(image_shape, jnp.float32)
    params = self.student.init(key_student, image)["params"]
    if self.head is None:
      return {"student": params, "head": {}}
    number = self.num_tokens
    maps = [
      jnp.zeros((1, *shape))
      for width in (self.student.width, self.head.teacher_width)
      for shape in ((self.num_low, number, width), (number, width))
    ]
    mask = jnp.zeros((1, number), bool)
    head = self.head.init(key_head, *maps, mask)["params"]
    return {"student": params, "head": head}

  def student_logits(self, params: Any, image: jax.Array) -> jax.Array:
    """[B, C] float32 of an evaluation's images uint8 [B, H, W, 3]."""
    image = augmentation.normalize(
      jnp.float32(image) / 255, *self.student_stats
    )
    return jnp.float32(self.student.apply({"params": params}, image)[0])

  def teacher_view(self, teacher_params: Any, image: jax.Array) -> Any:
    """The frozen teacher's (logits, low, high); None without a teacher."""
    if self.teacher is None:
      return None
    image = augmentation.normalize(image, *self.teacher_stats)
    logits, out = self.teacher.apply({"params": teacher_params}, image)
    if self.head is None:
      return jax.lax.stop_gradient((logits, None, None))
    low, high = self._select(self.teacher, out)
    low, high = (
      tokens.resample(x, self.teacher_grid, self.student_grid)
      for x in (low, high)
    )
    return jax.lax.stop_gradient((logits, low, high))

  def losses(
    self, params, view, image, target, mask, key_drop
  ) -> tuple[dict[str, jax.Array], jax.Array]:
    """{term: [B] float32}, unweighted, and the student's logits [B, C]."""
    image = augmentation.normalize(image, *self.student_stats)
    logits, out = self.student.apply(
      {"params": params["student"]},
      image,
      train=True,
      rngs={"dropout": key_drop},
    )
    # A distillation token learns from the teacher, the CLS token from labels.
    task_logits = out.get("logits_cls", logits)
    taught_logits = out.get("logits_dist", logits)
    values = {"task": losses.soft_cross_entropy(task_logits, target)}
    if view is not None:
      teacher_logits, low, high = view
      values |= self._logit_losses(taught_logits, teacher_logits, target)
    if self.head is not None:
      values |= self.head.apply(
        {"params": params["head"]},
        *self._select(self.student, out),
        low,
        high,
        mask,
      )
    return {term: values[term] for term in self.terms}, logits

  def _logit_losses(self, student, teacher, target):
    temperature = self.temperature
    functions = {
      "nkd": lambda: losses.nkd(
        student, teacher, target, temperature=temperature, gamma=self.gamma
      ),
      "kl": lambda: losses.kl(student, teacher, temperature=temperature),
      "hard": lambda: losses.hard_distillation(student, teacher),
    }
    return {
      term: functions[term]()
      for term in loss_terms.LOGIT_TERMS
      if term in self.loss_weights
    }

  def _select(self, model, out):
    prefix = model.num_prefix_tokens
    return tokens.select(out, num_prefix_tokens=prefix, **self.select)


def gradients(
  objective: Objective, params: Any, teacher_params: Any, micro: Any
) -> tuple[Any, dict[str, jax.Array]]:
  """Gradients of a batch's mean total loss, and its mean terms.

  Args:
    objective: models, losses and weights.
    params: {"student": ..., "head": ...}.
    teacher_params: of the frozen teacher; None without one.
    micro: {"image": float32 [B, H, W, 3] in [0, 1], "target": float32 [B, C],
      "mask": from `draw_mask`, "key": for dropout}.

  Returns:
    A tree like `params`, and {"loss", "accuracy", each term} as scalars.
  """
  view = objective.teacher_view(teacher_params, micro["image"])

  def loss(params):
    terms, logits = objective.losses(
      params,
      view,
      micro["image"],
      micro["target"],
      micro["mask"],
      micro["key"],
    )
    means = {term: jnp.mean(value) for term, value in terms.items()}
    total = sum(objective.loss_weights[term] * means[term] for term in means)
    hit = jnp.argmax(logits, -1) == jnp.argmax(micro["target"], -1)
    return total, {"loss": total, "accuracy": jnp.mean(hit), **means}

  return jax.grad(loss, has_aux=True)(params)


def draw_mask(objective: Objective, key: jax.Array, batch: int) -> jax.Array:
  """The tokens to replace, bool [B, N]; [B, 0] without a head."""
  if objective.head is None:
    return jnp.zeros((batch, 0), bool)
  ratio = objective.head.mask_ratio
  return tokens.random_mask(key, batch, objective.num_tokens, ratio)
