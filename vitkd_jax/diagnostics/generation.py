"""What the trained modules of a run make of the teacher's maps."""

from collections.abc import Iterator, Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitkd_jax.data import augment
from vitkd_jax.distill import objective as objectives
from vitkd_jax.distill import parts, tokens, view

# What a method may have that names the maps it makes.
KINDS = ("generates", "mimics")
_KEY = 0


@dataclasses.dataclass(frozen=True)
class Made:
  """A map that a method makes of the student's, to be like the teacher's.

  Attributes:
    method: its name.
    module: name of the submodule whose output is the map.
    block: of the teacher's map, from 0.
    place: of it.
    masked: whether it counts where tokens are replaced alone.
  """

  method: str
  module: str
  block: int
  place: str
  masked: bool


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run's methods that make maps, as trained.

  Attributes:
    objective: with these methods alone, each of which has `generates` or
      `mimics`: {name of the submodule whose output is a map: (block, place) of
      the teacher's map that it is compared with}.
    params: {"student": ..., "methods": {name: ...}} of one checkpoint.
    teacher_params: {name of the teacher: its parameters}.
  """

  objective: objectives.Objective
  params: Mapping[str, Any]
  teacher_params: Mapping[str, Any]

  def made(self) -> dict[str, Made]:
    """The maps by their names, such as "vitkd, block 0"."""
    found: dict[str, Made] = {}
    for method, each in self.objective.methods.items():
      assert each.teacher is not None  # a map is compared with a teacher's
      depth = self.objective.teachers[each.teacher].side.depth
      for kind in KINDS:
        of: Any = getattr(each.module, kind, dict)
        for module, (block, place) in of().items():
          # Maps of one width are compared as they are.
          if module not in self.params["methods"].get(method, {}):
            continue
          block, masked = block % depth, kind == "generates"
          name = "encoded" if place == "encoded" else f"block {block}"
          name = f"{method}, {name}"
          if name in found:
            name = f"{name}, {module}"
          found[name] = Made(method, module, block, place, masked)
    return found

  def errors(
    self, params: Mapping[str, Any], image: jax.Array
  ) -> dict[str, dict[str, jax.Array]]:
    """Where the generators fail, for `jax.jit`.

    Args:
      params: {"own": `params`, "teachers": `teacher_params`}.
      image: uint8 [B, H, W, 3].

    Returns:
      By the name of the map "error" [B, N] float32, the squared error of each
      token, of tokens that are masked in training its mean over masks that
      replace it; and of the teacher's map "sum" [D] over images and tokens, and
      "square", the sum of squares.
    """
    aim, own = self.objective, params["own"]
    image = jnp.float32(image) / 255
    views = aim.teacher_views(params["teachers"], image)
    normal = augment.normalize(image, *aim.student_stats)
    logits, out = aim.student.apply({"params": own["student"]}, normal)
    draws = aim.draws(jax.random.key(_KEY), len(image))
    every, found = self.made(), {}
    for name in {made.method for made in every.values()}:
      method = aim.methods[name]
      assert method.teacher is not None
      seen = views[method.teacher]
      given = (
        own["methods"][name],
        view.make(aim.student_side, method.needs.student, logits, out),
        seen,
      )
      maps = {key: made for key, made in every.items() if made.method == name}
      shown = list(_shown(method, maps, given, draws.get(name, {})))
      for key, made in maps.items():
        theirs = tokens.resample(
          seen.map(made.block, made.place), seen.side.grid, given[1].side.grid
        )
        # What is not masked does not depend on the draw.
        found[key] = _error(
          [(each[key], mask) for each, mask in shown]
          if made.masked
          else [(shown[0][0][key], None)],
          jnp.float32(theirs),
        )
    return found


def rebuilt(sums: Mapping[str, np.ndarray], count: int) -> tuple[float, float]:
  """The share of a map's variance that is rebuilt, and the variance.

  Args:
    sums: of `Trained.errors` over images, "error" summed over tokens, too.
    count: of all tokens.

  Returns:
    At most 1, and below 0 for a generator worse than the mean token; and the
    variance of a token.
  """
  mean = np.asarray(sums["sum"], np.float64) / count
  variance = max(float(sums["square"]) / count - float(mean @ mean), 1e-30)
  return 1 - float(sums["error"]) / count / variance, variance


def _shown(
  method: parts.Method,
  maps: Mapping[str, Made],
  given: tuple[Any, view.View, view.View],
  draws: Mapping[str, jax.Array],
) -> Iterator[tuple[dict[str, jax.Array], jax.Array | None]]:
  """Of each draw the maps [B, N, D], and which tokens count; None for all."""
  params, student, teacher = given
  label = view.Label(jnp.zeros((1, 1)))
  modules = {made.module for made in maps.values()}
  for mask in _masks(method.module, draws):
    drawn = draws if mask is None else {**draws, "mask": mask}
    _, kept = method.module.apply(
      {"params": params},
      student,
      teacher,
      label,
      drawn,
      capture_intermediates=lambda module, _: module.name in modules,
      mutable=["intermediates"],
    )
    outputs: Any = kept["intermediates"]
    found = {}
    for name, made in maps.items():
      x = outputs[made.module]["__call__"][0]
      found[name] = jnp.float32(x.reshape(len(x), -1, x.shape[-1]))
    yield found, mask


def _masks(
  module: Any, draws: Mapping[str, jax.Array]
) -> Iterator[jax.Array | None]:
  """Masks as in training, of which each token is replaced by at least one."""
  if "mask" not in draws or not module.mask_ratio:
    yield None
    return
  batch, number = draws["mask"].shape
  replaced = number - int(number * (1 - module.mask_ratio))
  draw = jax.random.uniform(jax.random.key(_KEY), (batch, number))
  rank = jnp.argsort(jnp.argsort(draw, axis=1), axis=1)
  for index in range(math.ceil(number / replaced)):
    yield (rank - index * replaced) % number < replaced


def _error(
  made: list[tuple[jax.Array, jax.Array | None]], theirs: jax.Array
) -> dict[str, jax.Array]:
  total, count = jnp.zeros(theirs.shape[:2]), jnp.zeros(theirs.shape[:2])
  for generated, counted in made:
    squared = jnp.sum(jnp.square(generated - theirs), axis=-1)
    weight = jnp.ones_like(squared) if counted is None else counted
    total, count = total + squared * weight, count + weight
  return {
    "error": total / count,
    "sum": jnp.sum(theirs, axis=(0, 1)),
    "square": jnp.sum(jnp.square(theirs)),
  }
