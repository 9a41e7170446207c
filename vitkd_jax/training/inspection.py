"""Looks at what each term does to the student, now and then in a training.

A look takes the batch of the step that follows, with its augmentation, draws
and dropout, and changes nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitkd_jax.cluster import compiler, sharding
from vitkd_jax.data import augment as augmentation
from vitkd_jax.diagnostics import fit, similarity, spectra
from vitkd_jax.distill import frozen, terms, tokens
from vitkd_jax.distill import objective as objectives
from vitkd_jax.runs import metrics
from vitkd_jax.training import experiment, placement, steps

# Most images whose maps are looked at.
_MOST_IMAGES = 128
# Fewer have no unbiased alignment.
_FEWEST_IMAGES = 4
# Looks in a row, in each of which a term works against the task, that warn.
PATIENCE = 5


def make_look(parts: experiment.Experiment) -> Callable[..., dict[str, Any]]:
  """The compiled function (state, teacher_params, given) -> what is seen.

  Args:
    parts: the training.

  Returns:
    A function of the arguments of the train step, of which none is donated. It
    returns scalars float32 by the metric's name: "grad_norm/TERM", the norm of
    the gradient of a weighted term with respect to the student's parameters,
    "grad_cosine/TERM", its cosine with the task's, and "cka/TEACHER/block_N",
    the alignment of the student's map after a block with the teacher's at the
    same relative depth; and "moments", [D, D] by block, of the student's maps.
    With config.run.accumulate it sees the first part of the batch.
  """

  def look(
    state: Any, teacher_params: Any, batch: Mapping[str, jax.Array]
  ) -> dict[str, Any]:
    objective, run = parts.objective, parts.run
    whole, key_drop = steps.prepare(
      objective.draws, parts.augment, run.seed, state.step, batch
    )
    params, teacher_params = jax.lax.with_sharding_constraint(
      (state.params, teacher_params), sharding.replicated(parts.mesh)
    )
    first = jax.tree.map(lambda x: x[:: run.accumulate], whole)
    image = first["image"]
    weights = objective.weights_at(state.step)
    views = objective.teacher_views(teacher_params, image)

    def means(student: Any) -> jax.Array:
      own = {**params, "student": student}
      found, _ = objective.losses(
        own, views, image, first["target"], first["draws"], weights, key_drop
      )
      return jnp.stack([weights[x] * jnp.mean(found[x]) for x in found])

    seen = _gradients(means, params["student"], objective.terms)
    return seen | _maps(objective, params["student"], teacher_params, image)

  function: Callable[..., dict[str, Any]] = look
  if parts.data.placement == "device":
    function = placement.from_held(look, parts.image_shape, parts.mesh)
  return jax.jit(
    function,
    out_shardings=sharding.replicated(parts.mesh),
    compiler_options=compiler.options(parts.mesh),
  )


def _gradients(
  means: Callable[[Any], jax.Array], student: Any, names: tuple[str, ...]
) -> dict[str, jax.Array]:
  """Norms of each term's gradient, and cosines with the task's."""
  _, pull = jax.vjp(means, student)
  rows = jnp.eye(len(names))
  task = pull(rows[0])[0] if names[0] == terms.TASK else None

  def one(row: jax.Array) -> jax.Array:
    (gradient,) = pull(row)
    product = 0.0 if task is None else optax.tree.vdot(gradient, task)
    return jnp.stack([optax.tree.norm(gradient), product])

  norms, products = jax.lax.map(one, rows).T
  seen = {f"grad_norm/{x}": norms[i] for i, x in enumerate(names)}
  if task is not None:
    scale = norms * norms[0]
    cosines = jnp.where(scale > 0, products / scale, 0.0)
    seen |= {f"grad_cosine/{x}": cosines[i] for i, x in enumerate(names) if i}
  return seen


def _maps(
  objective: objectives.Objective,
  student: Any,
  teacher_params: Mapping[str, Any],
  image: jax.Array,
) -> dict[str, Any]:
  """Moments of the student's maps, and their alignment with the teachers'."""
  image = image[:: max(1, len(image) // _MOST_IMAGES)]
  held = frozen.held(student, objective.frozen)
  normal = augmentation.normalize(image, *objective.student_stats)
  _, out = objective.student.apply({"params": held}, normal)
  own = _of_blocks(out, objective.student_side)
  seen: dict[str, Any] = {"moments": [_moments(x) for x in own]}
  if len(image) < _FEWEST_IMAGES:
    return seen
  for name, teacher in objective.teachers.items():
    _, out = teacher.model.apply(
      {"params": teacher_params[name]}, teacher.images(image)
    )
    theirs = _of_blocks(out, teacher.side)
    if not theirs:  # a model of one's own without such maps
      continue
    for other, block in similarity.pairs(len(theirs), len(own)):
      a, b = map(_kernel, (own[block], theirs[other]))
      scale = similarity.own_hsic(a) * similarity.own_hsic(b)
      crossed = similarity.hsic(a, b)[0, 0]
      seen[f"cka/{name}/block_{block}"] = jnp.where(
        scale[0] > 0, crossed * jax.lax.rsqrt(scale[0]), 0.0
      )
  return seen


def _of_blocks(out: Mapping[str, Any], side: Any) -> list[jax.Array]:
  """A model's map [B, N, D] after each block; [] where it has none."""
  if "+mlp" not in side.places:
    return []
  return tokens.after_blocks(out, side.depth, side.num_prefix_tokens)


def _kernel(maps: jax.Array) -> jax.Array:
  """[1, B, B], each example being its whole map."""
  return similarity.kernel(maps.reshape(1, len(maps), -1))


def _moments(maps: jax.Array) -> jax.Array:
  """The covariance [D, D] of all tokens."""
  x = jnp.float32(maps).reshape(-1, maps.shape[-1])
  x = x - jnp.mean(x, axis=0)
  return fit.product(x[None], x[None]) / len(x)


class Inspection:
  """Looks at a training every `config.run.inspect_every` steps.

  Args:
    parts: the training.
  """

  def __init__(self, parts: experiment.Experiment):
    self._parts = parts
    self._look = make_look(parts)
    self._against: dict[str, list[float]] = {}

  def due(self, step: int) -> bool:
    """Whether the step that is about to be computed is looked at.

    Args:
      step: its number, the first being 1.
    """
    every = self._parts.run.inspect_every
    return bool(every) and step % every == 0

  def look(
    self, writer: metrics.Writer, step: int, state: Any, given: Any
  ) -> None:
    """Writes what is seen, and warnings; all processes look together.

    The metrics are those of `make_look`, and "rank/block_N", the effective rank
    of the student's map after a block.

    Args:
      writer: of the metrics.
      step: that is about to be computed.
      state: before it; it is not donated.
      given: its input.
    """
    seen = jax.device_get(self._look(state, self._parts.teacher_params, given))
    for block, matrix in enumerate(seen.pop("moments")):
      energies = np.linalg.eigvalsh(np.asarray(matrix, np.float64))
      seen[f"rank/block_{block}"] = spectra.effective_rank(energies)
    values = {name: float(x) for name, x in seen.items()}
    writer.scalars(step, values)
    for line in self.warnings(values):
      writer.line(line)

  def warnings(self, values: Mapping[str, float]) -> list[str]:
    """Sentences on terms that have worked against the task for long.

    Args:
      values: of a look.
    """
    said = []
    for name, value in values.items():
      kind, _, term = name.partition("/")
      if kind != "grad_cosine":
        continue
      if value >= 0:
        self._against[term] = []
        continue
      row = self._against.setdefault(term, [])
      row.append(value)
      if len(row) == PATIENCE:
        said.append(
          f"warning: the gradient of {term} pointed away from the task's in "
          f"{PATIENCE} looks in a row (mean cosine {np.mean(row):.2f}); if the "
          "accuracy suffers, lower its weight or let it end earlier"
        )
    return said
