"""What a training minimises: the only place where losses are weighted."""

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
  """What a training minimises: models, loss terms and loss weights.

  Attributes:
    student: the trained model.
    student_stats: the student's mean and std of images in [0, 1].
    loss_weights: {term: weight > 0}, terms from `terms.TERMS`; only these are
      computed.
    student_grid: rows and columns of the student's token map.
    teacher: the frozen model; None where no term needs one.
    teacher_stats: the teacher's mean and std of images in [0, 1].
    teacher_grid: rows and columns of the teacher's token map, which is
      resampled to the student's if they differ.
    head: modules trained beside the student; None without token-map losses.
    select: keyword arguments of `tokens.select`.
    temperature: tau > 0 of NKD and KL.
    gamma: weight >= 0 of NKD's second term.
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
  temperature: float = losses.TEMPERATURE
  gamma: float = losses.GAMMA

  @property
  def terms(self) -> tuple[str, ...]:
    """Names of the computed terms, in the order of `terms.TERMS`."""
    return tuple(term for term in loss_terms.TERMS if term in self.loss_weights)

  @property
  def num_tokens(self) -> int:
    """Number of patch tokens in the student's maps."""
    return math.prod(self.student_grid)

  @property
  def num_low(self) -> int:
    """Number of shallow maps compared."""
    return len(self.select.get("low_blocks", (0, 1)))

  @property
  def metric_names(self) -> tuple[str, ...]:
    """Names of the metrics that a step accumulates."""
    names = ["loss", "accuracy", "learning_rate", "grad_norm"]
    names += [f"grad_norm_{part}" for part in ("student", "head")]
    names += [f"raw_{term}" for term in self.terms]
    names += [f"weighted_{term}" for term in self.terms]
    return tuple(names)

  def init_params(self, key: jax.Array, image_shape: tuple) -> dict[str, Any]:
    """{"student": ..., "head": ...}, initialised.

    Args:
      key: typed PRNG key.
      image_shape: (1, H, W, 3).
    """
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

  def teacher_view(self, teacher_params: Any, image: jax.Array) -> Any:
    """What the losses need of the frozen teacher.

    Args:
      teacher_params: the teacher's; None without a teacher.
      image: float32 [B, H, W, 3] in [0, 1].

    Returns:
      (logits [B, C], low [B, K, N, D], high [B, N, D]) without gradient, the
      maps on the student's grid and None without token-map losses; None
      without a teacher.
    """
    if self.teacher is None:
      return None
    assert self.teacher_stats is not None
    image = augmentation.normalize(image, *self.teacher_stats)
    logits, out = self.teacher.apply({"params": teacher_params}, image)
    if self.head is None:
      return jax.lax.stop_gradient((logits, None, None))
    assert self.teacher_grid is not None
    low, high = self._select(self.teacher, out)
    grids = self.teacher_grid, self.student_grid
    low, high = tokens.resample(low, *grids), tokens.resample(high, *grids)
    return jax.lax.stop_gradient((logits, low, high))

  def losses(
    self,
    params: Any,
    view: Any,
    image: jax.Array,
    target: jax.Array,
    mask: jax.Array,
    key_drop: jax.Array,
  ) -> tuple[dict[str, jax.Array], jax.Array]:
    """Every term of a batch, unweighted, and the student's logits.

    Args:
      params: {"student": ..., "head": ...}.
      view: from `teacher_view`.
      image: float32 [B, H, W, 3] in [0, 1].
      target: float32 [B, C], mixed and smoothed.
      mask: bool [B, N] from `draw_mask`.
      key_drop: typed PRNG key for dropout and drop path.

    Returns:
      {term: [B] float32}, and the logits [B, C].
    """
    image = augmentation.normalize(image, *self.student_stats)
    logits, out = self.student.apply(
      {"params": params["student"]},
      image,
      train=True,
      rngs={"dropout": key_drop},
    )
    # The distillation token learns from the teacher, the CLS token from labels.
    task_logits = out.get("logits_cls", logits)
    taught_logits = out.get("logits_dist", logits)
    values = {"task": losses.soft_cross_entropy(task_logits, target)}
    if view is not None:
      teacher_logits, low, high = view
      values |= self._logit_losses(taught_logits, teacher_logits, target)
    if self.head is not None:
      maps: Any = self.head.apply(
        {"params": params["head"]},
        *self._select(self.student, out),
        low,
        high,
        mask,
      )
      values |= maps
    return {term: values[term] for term in self.terms}, logits

  def _logit_losses(
    self, student: jax.Array, teacher: jax.Array, target: jax.Array
  ) -> dict[str, jax.Array]:
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

  def _select(
    self, model: protocol.Backbone, out: Any
  ) -> tuple[jax.Array, jax.Array]:
    prefix = model.num_prefix_tokens
    return tokens.select(out, num_prefix_tokens=prefix, **self.select)


def gradients(
  objective: Objective, params: Any, teacher_params: Any, micro: Any
) -> tuple[Any, dict[str, jax.Array]]:
  """Gradients of a batch's mean total loss, and the mean of each term.

  Args:
    objective: models, loss terms and loss weights.
    params: {"student": ..., "head": ...}.
    teacher_params: the frozen teacher's; None without one.
    micro: {"image": float32 [B, H, W, 3] in [0, 1], "target": float32 [B, C],
      "mask": from `draw_mask`, "key": PRNG key for dropout}.

  Returns:
    A tree like `params`, and scalars {"loss", "accuracy", one per term}.
  """
  view = objective.teacher_view(teacher_params, micro["image"])

  def loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    terms, logits = objective.losses(
      params,
      view,
      micro["image"],
      micro["target"],
      micro["mask"],
      micro["key"],
    )
    means = {term: jnp.mean(value) for term, value in terms.items()}
    total: Any = sum(
      objective.loss_weights[term] * means[term] for term in means
    )
    hit = jnp.argmax(logits, -1) == jnp.argmax(micro["target"], -1)
    return total, {"loss": total, "accuracy": jnp.mean(hit), **means}

  return jax.grad(loss, has_aux=True)(params)


def draw_mask(objective: Objective, key: jax.Array, batch: int) -> jax.Array:
  """The tokens to replace, bool [B, N]; [B, 0] without a head.

  Args:
    objective: holds the head's ratio and the student's grid.
    key: typed PRNG key.
    batch: B.
  """
  if objective.head is None:
    return jnp.zeros((batch, 0), bool)
  ratio = objective.head.mask_ratio
  return tokens.random_mask(key, batch, objective.num_tokens, ratio)
