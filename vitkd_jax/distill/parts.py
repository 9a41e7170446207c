"""The parts of an objective: frozen models, and methods that compare."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitkd_jax.data import augment as augmentation
from vitkd_jax.distill import terms, view
from vitkd_jax.models import protocol

Stats = tuple[tuple[float, float, float], tuple[float, float, float]]
# A loss weight: a constant, or a function of the step.
Weight = float | Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A frozen model.

  Attributes:
    model: the model.
    stats: its mean and std of images in [0, 1].
    side: what is known of it.
    image_size: (H, W) in pixels of the images that it gets; None for the
      student's.
    scale: multiplies its token maps and CLS tokens.
  """

  model: protocol.Backbone
  stats: Stats
  side: view.Side
  image_size: tuple[int, int] | None = None
  scale: float = 1.0

  def images(self, image: jax.Array) -> jax.Array:
    """Images of its size, normalised for it.

    Args:
      image: float32 [B, H, W, 3] in [0, 1].
    """
    size = self.image_size or image.shape[1:3]
    if size != image.shape[1:3]:
      shape = (len(image), *size, 3)
      image = jnp.clip(jax.image.resize(image, shape, "cubic"), 0, 1)
    return augmentation.normalize(image, *self.stats)


@dataclasses.dataclass(frozen=True)
class Method:
  """A published method in a training.

  Attributes:
    module: an instance of one of `methods.METHODS`, or of a user's own.
    needs: what it reads of the models.
    teacher: name of its teacher; None where it needs none.
    names: {term: its full name} of the terms that are computed.
    weights: {full name: weight}.
  """

  module: nn.Module
  needs: view.Needs
  teacher: str | None
  names: Mapping[str, str]
  weights: Mapping[str, Weight]

  @property
  def taught(self) -> view.Taps:
    """The parts of its teacher's view; none of them without a teacher."""
    return self.needs.teacher or view.Taps()

  @classmethod
  def make(
    cls,
    name: str,
    module: nn.Module,
    weights: Mapping[str, Weight],
    student: view.Side,
    teacher: tuple[str, view.Side] | None = None,
    kind: str = "",
  ) -> "Method":
    """A method whose parts of both models follow from its module.

    Args:
      name: of the method; its terms are called "NAME/TERM", or NAME alone
        where they are called as the method.
      module: see `distill.methods`; a field `only` must be the terms below.
      weights: {term: weight} of the terms to compute.
      student: what is known of the student.
      teacher: name of the teacher, and what is known of it.
      kind: key of `methods.METHODS`, if it is not the name.

    Raises:
      ValueError: the method cannot work with these models.
    """
    needs: Any = module.needs  # type: ignore[attr-defined]
    needs = needs(module, student, teacher[1] if teacher else None)
    if not isinstance(needs, view.Needs):
      raise ValueError(f"expected needs() to return a Needs, got {needs!r}")
    names = {term: terms.name(name, kind or name, term) for term in weights}
    return cls(
      module=module,
      needs=needs,
      teacher=teacher[0] if teacher and needs.teacher is not None else None,
      names=names,
      weights={names[term]: weight for term, weight in weights.items()},
    )
