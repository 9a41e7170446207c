"""A method outside the package, as a user writes one: no other file changes."""

import flax.linen as nn
import jax.numpy as jnp

from vitkd_jax.distill.view import Needs, Taps


class Mine(nn.Module):
  """Squared distance of the pooled features, after a linear layer."""

  terms = {"mine": 0.5}  # noqa: RUF012
  power: float = 2.0

  @staticmethod
  def needs(fields, student, teacher):
    return Needs(Taps(pooled=True), Taps(pooled=True))

  @nn.compact
  def __call__(self, student, teacher, label, draws):
    x = nn.Dense(teacher.side.width)(student.pooled)
    distance = jnp.abs(x - teacher.pooled) ** self.power
    return {"mine": jnp.mean(distance, axis=-1)}


class Broken(Mine):
  @staticmethod
  def needs(fields, student, teacher):
    return ["logits"]


class Raising(Mine):
  @staticmethod
  def needs(fields, student, teacher):
    return Needs(Taps(pool=True))


class Wordless(nn.Module):
  pass
