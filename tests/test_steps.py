"""The train step and the eval step on the embedded data, tiny and whole."""

import math

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitkd_jax.cluster import sharding
from vitkd_jax.data import datasets, loader
from vitkd_jax.estimate import hlo
from vitkd_jax.training import experiment

# For what does not depend on the mesh: quicker to compile than for all eight.
ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def batches():
  source = datasets.load("fashion_mini", "train[:64]", cache=True)
  stream = loader.train_batches(source, batch_size=16, seed=3)
  taken = [next(stream) for _ in range(4)]
  stream.close()
  return taken


@pytest.fixture(scope="module")
def start():
  """config -> (parts, first state); equal configs share what was compiled.

  All configs here have one seed, so that states of equal shapes are equal, on
  whatever devices.
  """
  built = {}

  def start(config, devices=None):
    key = repr((config.to_dict(), devices))
    if key not in built:
      built[key] = experiment.build(config, devices=devices)
    return built[key], drawn.state(built[key])

  return start


def run(parts, state, batches, teacher_params=None):
  step = parts.make_train_step()
  teacher_params = teacher_params or parts.teacher_params
  reports = []
  for batch in batches:
    batch = sharding.global_batch(batch, parts.mesh)
    with jax.transfer_guard("disallow"):
      state, report = step(state, teacher_params, batch)
    reports.append(jax.device_get(report))
  return state, reports


def means(report):
  return {k: total / count for k, (total, count) in report["metrics"].items()}


def assert_close(a, b, rtol):
  """Relative to the largest entry of each leaf, not to entries near zero.

  Without the keys' biases: softmax ignores them, their gradient is rounding
  alone, and Adam makes whole steps of it.
  """
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
  )
  for (path, x), y in pairs:
    if "['key']['bias']" in jax.tree_util.keystr(path):
      continue
    x, y = np.float64(x), np.float64(y)
    scale = max(np.abs(x).max(initial=0.0), 1e-3)
    np.testing.assert_allclose(
      x, y, atol=rtol * scale, rtol=0, err_msg=jax.tree_util.keystr(path)
    )


@pytest.fixture
def fixed(tiny_config):
  """Without dropout and augmentation, and with logs of one step."""
  tiny_config.student.drop_path = 0.0
  tiny_config.run.log_every = 1
  tiny_config.augment = dict(label_smoothing=0.1)
  return tiny_config


@pytest.fixture
def baseline(fixed):
  """A student alone."""
  fixed.methods = fixed.teachers = {}
  return fixed


def test_one_trace_no_copies_and_metrics_that_add_up(fixed, batches, start):
  parts, state = start(fixed)
  state, reports = run(parts, state, batches)
  assert parts.make_train_step()._cache_size() == 1
  assert int(state.step) == 4
  for report in reports:
    values = means(report)
    assert set(values) == set(parts.objective.metric_names)
    weighted = [values[f"weighted/{t}"] for t in parts.objective.terms]
    np.testing.assert_allclose(values["loss"], sum(weighted), rtol=1e-6)
    for term, weight in parts.objective.weights.items():
      np.testing.assert_allclose(
        values[f"weighted/{term}"], weight * values[term], rtol=1e-6
      )
    np.testing.assert_allclose(
      values["grad_norm"] ** 2,
      values["grad_norm_student"] ** 2 + values["grad_norm_methods"] ** 2,
      rtol=1e-5,
    )
    assert not report["bad"].any()
    np.testing.assert_array_equal(report["skipped"], [0, 0])
  assert parts.objective.terms == (
    "task",
    "vitkd/mimic",
    "vitkd/generation",
    "nkd",
  )


def test_metrics_add_up_until_the_log_and_start_anew(baseline, batches, start):
  _, each = run(*start(baseline, ONE), batches)
  baseline.run.log_every = 2
  _, summed = run(*start(baseline, ONE), batches)
  for i, report in enumerate(summed):
    expected = [each[j]["metrics"]["loss"][0] for j in range(i - i % 2, i + 1)]
    total, count = report["metrics"]["loss"]
    assert count == i % 2 + 1
    np.testing.assert_allclose(total, sum(expected), rtol=1e-6)


def test_teacher_is_neither_trained_nor_in_the_state(fixed, batches, start):
  parts, state = start(fixed)
  assert set(state.params) == {"student", "methods"}
  image = jnp.float32(batches[0]["image"]) / 255
  target = jax.nn.one_hot(batches[0]["label"], 10)
  draws = parts.objective.draws(jax.random.key(0), 16)

  @jax.jit
  def gradients(params, teacher_params):
    def loss(params, teacher_params):
      views = parts.objective.teacher_views(teacher_params, image)
      terms, _ = parts.objective.losses(
        params, views, image, target, draws, {}, jax.random.key(0)
      )
      return sum(jnp.mean(value) for value in terms.values())

    return jax.grad(loss, argnums=(0, 1))(params, teacher_params)

  own, teacher = gradients(state.params, parts.teacher_params)
  assert all(not np.any(g) for g in jax.tree.leaves(teacher))
  # Every auxiliary parameter learns, and so does all of the student.
  for path, gradient in jax.tree_util.tree_leaves_with_path(own):
    norm = np.linalg.norm(np.float64(gradient))
    assert np.isfinite(norm), path
    assert norm > 0, path
  assert set(own["methods"]["vitkd"]) == {
    "align_low_0", "align_low_1", "align_high", "mask_token",
    "generator_0", "generator_1",
  }  # fmt: skip


def test_terms_of_weight_zero_cost_no_parameters(fixed):
  fixed.methods.vitkd.weights.generation = 0.0
  fixed.methods.nkd.weights.nkd = 0.0
  parts = experiment.build(fixed)
  state, *others = parts.step_shapes()
  assert set(state.params["methods"]["vitkd"]) == {"align_low_0", "align_low_1"}
  _, report = jax.eval_shape(parts.make_train_step(), state, *others)
  weighted = {name for name in report["metrics"] if "weighted/" in name}
  assert weighted == {"weighted/task", "weighted/vitkd/mimic"}


def test_baseline_needs_no_teacher(baseline, batches, start):
  parts, state = start(baseline, ONE)
  assert parts.teacher_params == {}
  assert state.params["methods"] == {}
  state, reports = run(parts, state, batches[:2])
  assert means(reports[0])["grad_norm_methods"] == 0.0


def test_other_logit_losses_train(fixed, batches, start):
  fixed.methods = dict(kl={}, hard={})
  _, reports = run(*start(fixed, ONE), batches[:1])
  assert means(reports[0])["kl"] > 0
  assert means(reports[0])["hard"] > 0


def test_accumulation_gives_the_same_step(fixed, batches, start):
  whole, _ = run(*start(fixed), batches[:2])
  fixed.run.accumulate = 2
  parts, state = start(fixed)
  split, _ = run(parts, state, batches[:2])
  assert_close(whole.params, split.params, 1e-5)
  assert_close(whole.metrics, split.metrics, 1e-5)


@pytest.mark.parametrize("devices, fsdp", [(1, 1), (8, 2), (8, 8)])
def test_any_mesh_gives_the_same_training(fixed, batches, devices, fsdp, start):
  fixed.student.drop_path = 0.2
  whole, state = start(fixed)
  eight, reports = run(whole, state, batches[:3])
  fixed.run.fsdp = fsdp
  fixed.run.fsdp_teacher = fsdp == 8
  parts, state = start(fixed, jax.devices()[:devices])
  if fsdp == 8:
    born = [x.create_state() for x in (whole, parts)]
    jax.tree.map(np.testing.assert_array_equal, *born)
    assert shapes(born[1]) == shapes(state)
  other, other_reports = run(parts, state, batches[:3])
  for a, b in zip(reports, other_reports, strict=True):
    np.testing.assert_allclose(means(a)["loss"], means(b)["loss"], rtol=1e-5)
  # Adam divides by the root of small second moments, which magnifies the
  # rounding of sums in another order.
  assert_close(eight.params, other.params, 1e-4)
  if fsdp > 1:
    # Weights, both moments and the average, of student and head.
    for tree in (other.params, other.opt_state[1][0].mu, other.ema):
      assert share(tree) == 1 / fsdp
  assert share(parts.teacher_params) == (1 / 8 if fsdp == 8 else 1)


def shapes(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)


def share(tree):
  """Of the bytes of a tree's large leaves, the part that one device holds."""
  leaves = [x for x in jax.tree.leaves(tree) if x.size >= 2**12]
  assert leaves
  local = sum(x.addressable_shards[0].data.nbytes for x in leaves)
  return local / sum(x.nbytes for x in leaves)


def test_data_parallel_is_one_all_reduce(fixed):
  fixed.student.scan = False  # a scan reduces each block's within its loop
  with fixed.unlocked():
    fixed.student.depth = 2
  parts = experiment.build(fixed)
  shapes = parts.step_shapes()
  step = parts.make_train_step().lower(*shapes)
  found = hlo.collectives(step.compile().as_text())
  assert {each.kind for each in found} == {"all-reduce"}
  # Beside that of the gradients at most some of scalars.
  reduced, *others = sorted(found, key=lambda each: -each.bytes)
  assert reduced.times == 1
  assert sum(each.bytes for each in others) < 100, others
  gradients = sum(x.size for x in jax.tree.leaves(shapes[0].params))
  sizes = [math.prod(shape) for _, shape in reduced.arrays]
  assert gradients <= sum(sizes) <= gradients + 100


def test_ema_follows_the_student_alone(fixed, batches, start):
  parts, state = start(fixed)
  before = jax.device_get(state.params["student"])
  state, _ = run(parts, state, batches[:1])
  expected = jax.tree.map(
    lambda old, new: 0.9 * old + 0.1 * new, before, state.params["student"]
  )
  assert_close(state.ema, expected, 1e-6)


def test_a_step_that_is_not_finite_changes_nothing(fixed, batches, start):
  parts, state = start(fixed)
  broken = jax.tree.map(lambda x: x * np.nan, parts.teacher_params)
  state, _ = run(parts, state, batches[:2])
  good = jax.device_get((state.params, state.opt_state, state.ema))
  state, reports = run(parts, state, batches[2:3], broken)
  bad = jax.device_get((state.params, state.opt_state, state.ema))
  for x, y in zip(jax.tree.leaves(good), jax.tree.leaves(bad), strict=True):
    np.testing.assert_array_equal(x, y)
  # All that the teacher has a part in, and so the gradient.
  np.testing.assert_array_equal(reports[0]["bad"], [0, 1, 1, 1, 1])
  np.testing.assert_array_equal(reports[0]["skipped"], [1, 1])
  # The metrics know nothing of it: log_every is 1 here.
  np.testing.assert_array_equal(reports[0]["metrics"]["loss"], [0, 0])
  state, reports = run(parts, state, batches[3:])
  assert not reports[0]["bad"].any()
  np.testing.assert_array_equal(reports[0]["skipped"], [1, 0])
  assert int(state.step) == 4
  # The schedule goes by the updates that were made.
  rate = means(reports[0])["learning_rate"]
  np.testing.assert_allclose(rate, parts.schedule(2), rtol=1e-6)
