"""Looks at a training: gradients by term, alignment, dimensions, warnings."""

import drawn
import jax
import numpy as np
import pytest

from vitkd_jax.cluster import sharding
from vitkd_jax.training import experiment, inspection


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (16, 28, 28, 3), np.uint8),
    "label": rng.integers(0, 10, 16, np.int32),
  }


def built(config):
  return experiment.build(config, devices=jax.devices()[:1])


def test_norms_and_cosines_add_up_to_the_step_s_gradient(plain, batch):
  plain.methods = dict(nkd=dict(plain.methods.nkd))
  plain.student.drop_path = 0.2  # the look draws as the step does
  parts = built(plain)
  state, given = drawn.state(parts), sharding.global_batch(batch, parts.mesh)
  look = inspection.make_look(parts)
  seen = jax.device_get(look(state, parts.teacher_params, given))
  _, report = parts.make_train_step()(state, parts.teacher_params, given)
  total, count = jax.device_get(report["metrics"]["grad_norm_student"])
  task, nkd = seen["grad_norm/task"], seen["grad_norm/nkd"]
  assert min(task, nkd) > 0.01 * max(task, nkd)
  cosine = seen["grad_cosine/nkd"]
  assert 0.01 < abs(cosine) < 0.99
  assert "grad_cosine/task" not in seen
  squared = task**2 + nkd**2 + 2 * cosine * task * nkd
  assert np.sqrt(squared) == pytest.approx(total / count, rel=1e-4)


def test_a_student_that_is_its_teacher_is_aligned_with_it(plain, batch):
  # The teacher's LayerScale is folded into its weights.
  plain.student = dict(variant="deit3_pico_patch4_28", layerscale_init=None)
  plain.task.weight = 0.0
  plain.run.accumulate = 2
  parts = built(plain)
  state, given = drawn.state(parts), sharding.global_batch(batch, parts.mesh)
  look = inspection.make_look(parts)
  own = {"teacher": state.params["student"]}
  seen = jax.device_get(look(state, own, given))
  aligned = [x for name, x in seen.items() if name.startswith("cka/teacher/")]
  np.testing.assert_allclose(aligned, np.ones(4), rtol=1e-5)
  assert not [name for name in seen if name.startswith("grad_cosine/")]
  other = jax.device_get(look(state, parts.teacher_params, given))
  assert other["cka/teacher/block_3"] < 0.9
  # The covariance of the student's tokens, whose width is 64.
  assert [x.shape for x in seen["moments"]] == [(64, 64)] * 4


def test_a_term_that_works_against_the_task_for_long_is_named(plain):
  looks = inspection.Inspection(built(plain))

  def told(cosine):
    return looks.warnings({"grad_cosine/vitkd/mimic": cosine, "rank/a": -1.0})

  for cosine in (-0.1, -0.1, -0.1, -0.1, 0.2, -0.2, -0.3, -0.4, -0.5):
    assert not told(cosine)
  (sentence,) = told(-0.6)
  assert "of vitkd/mimic pointed away" in sentence
  assert "5 looks in a row (mean cosine -0.40)" in sentence
  assert not told(-0.7)
