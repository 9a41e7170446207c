"""Loss weights over a run, by hand, and groups of a batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from vitkd_jax.distill import methods
from vitkd_jax.training import lengths

# 5 epochs of 4 steps.
LENGTH = lengths.Length(steps=20, per_epoch=4.0, batch_size=16, accumulate=2)


def over(weight=2.0, ramp_epochs=0.0, until_epoch=0.0, cosine=False):
  return lengths.weight_over(
    weight,
    LENGTH,
    ramp_epochs=ramp_epochs,
    until_epoch=until_epoch,
    cosine=cosine,
  )


def test_a_constant_weight_is_a_number():
  assert over() == 2.0


@pytest.mark.parametrize(
  "options, expected",
  [
    # DKD's, in the first epoch 1 / ramp_epochs of it.
    (dict(ramp_epochs=2.0), [1, 1, 1, 1, 2, 2, 2, 2, 2]),
    (dict(ramp_epochs=1.0), [2] * 9),
    (dict(until_epoch=1.5), [2, 2, 2, 2, 2, 2, 0, 0, 0]),
    (dict(ramp_epochs=2.0, until_epoch=2.0), [1, 1, 1, 1, 2, 2, 2, 2, 0]),
  ],
)
def test_weights_by_step(options, expected):
  weight = over(**options)
  found = [float(weight(jnp.int32(step))) for step in range(9)]
  np.testing.assert_allclose(found, expected)


def test_a_weight_may_fall_with_the_learning_rate():
  weight = over(cosine=True)
  steps = np.array([0, 5, 10, 15, 20])
  expected = 1 + np.cos(np.pi * steps / 20)
  np.testing.assert_allclose(weight(jnp.asarray(steps)), expected, atol=1e-6)


@pytest.mark.parametrize(
  "group, accumulate, said",
  [
    (0, 2, "set config.methods.dist.group to the images to compare, a divisor"),
    (3, 2, "to divide the 8 images of a batch of a gradient-accumulation step"),
    (5, 1, "to divide the 16 images of a batch, got 5"),
    (-4, 1, "got -4"),
  ],
)
def test_a_group_that_changes_the_method_is_refused(group, accumulate, said):
  module = methods.METHODS["dist"](group=group)
  length = lengths.Length(20, 4.0, batch_size=16, accumulate=accumulate)
  with pytest.raises(ValueError, match=r"config\.methods\.dist") as refusal:
    lengths.check_group("config.methods.dist", module, length)
  assert said in str(refusal.value)


@pytest.mark.parametrize(
  "name, fields, accumulate",
  [
    ("dist", dict(group=4), 2),
    ("dist", {}, 1),
    ("kl", {}, 2),
    ("regress", {}, 2),
  ],
)
def test_others_pass(name, fields, accumulate):
  module = methods.METHODS[name](**fields)
  length = lengths.Length(20, 4.0, batch_size=16, accumulate=accumulate)
  lengths.check_group(f"config.methods.{name}", module, length)


def test_batch_statistics_without_groups_are_refused():
  module = methods.METHODS["regress"](student_norm="batch_norm")
  with pytest.raises(ValueError, match=r"set config\.run\.accumulate=1"):
    lengths.check_group("config.methods.regress", module, LENGTH)
