"""Teachers that are left out by image, as UNIC does it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stepping import steps

from vitkd_jax.distill.dropping import Dropping
from vitkd_jax.training import experiment


@pytest.fixture
def two(plain):
  """Two teachers, with one method each."""
  shared = plain.teachers.teacher.to_dict()
  plain.teachers = dict(first=shared, second=shared)
  plain.methods = dict(
    kl=dict(teacher="first"), far=dict(kind="nkd", teacher="second")
  )
  return plain


def test_the_hardest_stays_by_hand():
  values = dict(
    task=jnp.array([9.0, 9.0, 9.0]),
    a=jnp.array([1.0, 1.0, 1.0]),
    b=jnp.array([2.0, 1.0, 3.0]),  # with `a` the first teacher's
    c=jnp.array([8.0, 1.0, 2.0]),
  )
  weights = dict(task=1.0, a=1.0, b=2.0, c=1.0)
  # Sums: 5, 3, 7 of the first; 8, 1, 2 of the second.
  keep = jnp.array([[False, False], [True, True], [False, False]])
  found = Dropping(0.5).apply(values, weights, [["a", "b"], ["c"]], keep)
  np.testing.assert_array_equal(found["task"], 9.0)
  np.testing.assert_array_equal(found["a"], [0, 0.5, 1])
  np.testing.assert_array_equal(found["b"], [0, 0.5, 3])
  np.testing.assert_array_equal(found["c"], [8, 0.5, 0])


def test_each_is_left_out_as_often_as_asked():
  keep = Dropping(0.25).draw(jax.random.key(3), 4000, 3)
  assert keep.shape == (4000, 3)
  # Five deviations of a mean of 4,000 draws.
  np.testing.assert_allclose(keep.mean(0), 0.75, atol=5 * 0.0068)


def test_teachers_that_all_stay_count_half_each(two):
  _, _, (summed,) = steps(two, jax.devices()[:1], count=1)
  two.task.teacher_drop = 1e-9
  parts, _, (shared,) = steps(two, jax.devices()[:1], count=1)
  assert parts.objective.terms == ("task", "far", "kl")
  assert shared["task"] == pytest.approx(summed["task"], rel=1e-6)
  for name in ("far", "kl"):
    assert shared[name] == pytest.approx(summed[name] / 2, rel=1e-5)


@pytest.mark.parametrize(
  "task, run, said",
  [
    (dict(teacher_drop=1.0), {}, "teacher_drop < 1, got 1.0"),
    (dict(drop_normalisation="mean"), {}, "'per_image', 'unic', got 'mean'"),
    (
      dict(teacher_drop=0.5, drop_normalisation="unic"),
      dict(accumulate=2),
      "accumulate=2 changes it",
    ),
  ],
)
def test_what_cannot_work_is_refused(two, task, run, said):
  two.task.update(task)
  two.run.update(run)
  with pytest.raises(ValueError, match=said):
    experiment.build(two)


def test_one_teacher_is_never_dropped(tiny_config):
  tiny_config.task.teacher_drop = 0.5
  with pytest.raises(ValueError, match="expected several teachers"):
    experiment.build(tiny_config)
