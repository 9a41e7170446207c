"""Every published method on views of its own, without any model.

The values are those of `losses`, which has tests and goldens; here is what a
method adds: parameters that learn, draws, needs, terms.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitkd_jax.distill import methods, projectors, view

B, C = 4, 10
STUDENT = view.Side(
  width=8, depth=4, grid=(2, 3), num_prefix_tokens=1, num_classes=C,
  has_class_token=True, has_head=True, qkv_heads=2,
)  # fmt: skip
TEACHER = view.Side(
  width=12, depth=4, grid=(4, 3), num_prefix_tokens=1, num_classes=C,
  has_class_token=True, has_head=True, qkv_heads=3,
)  # fmt: skip
# Relates tokens that must be the same of both.
TWIN = dataclasses.replace(TEACHER, grid=STUDENT.grid)
# Blocks of models as shallow as these.
FIELDS = {
  "manifold": dict(blocks=(0, -1), num_tokens=5),
}
# Other settings of a method that have other parameters.
CASES = [
  *((name, FIELDS.get(name, {})) for name in methods.METHODS),
  *(("regress", dict(projector=kind)) for kind in projectors.KINDS[2:]),
  ("regress", dict(tap="pooled", teacher_norm="layer_norm")),
  ("regress", dict(tap="cls", blocks=(0, 2), teacher_blocks=(1, 3))),
  ("vitkd", dict(high_block=0, high_place="+sa", mask_ratio=0.25)),
]


def drawn(side, taps, seed):
  """A view of random numbers."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.standard_normal(x.shape, np.float32),
    jax.eval_shape(lambda: view.zeros(side, taps, B)),
  )


class Case:
  """A method with its views and parameters."""

  def __init__(self, name, fields):
    self.module = methods.METHODS[name](**fields)
    teacher: view.Side | None = TWIN if name == "relation" else TEACHER
    if getattr(self.module, "learns_alone", False):
      teacher = None
    self.needs = self.module.needs(self.module, STUDENT, teacher)
    self.student = drawn(STUDENT, self.needs.student, seed=1)
    self.teacher = None
    if self.needs.teacher is not None:
      self.teacher = drawn(teacher, self.needs.teacher, seed=2)
    mixed = 0.7 * np.eye(C)[[1, 2, 3, 4]] + 0.3 * np.eye(C)[[5, 6, 7, 8]]
    target = np.float32(0.9 * mixed + 0.1 / C)
    self.label = view.Label(target, smoothing=0.1)
    draws = getattr(self.module, "draws", None)
    self.draws = {}
    if draws:
      self.draws = jax.jit(draws, static_argnums=(1, 2))(
        jax.random.key(3), B, STUDENT
      )
    init = jax.jit(self.module.init)
    self.params = init(
      jax.random.key(4), self.student, self.teacher, self.label, self.draws
    ).get("params", {})

  @functools.partial(jax.jit, static_argnums=0)
  def terms(self, params, student, teacher):
    return self.module.apply(
      {"params": params}, student, teacher, self.label, self.draws
    )

  def _total(self, params, student):
    found = self.terms(params, student, self.teacher)
    weights = self.module.terms
    return sum(weights[term] * jnp.mean(x) for term, x in found.items())

  @functools.partial(jax.jit, static_argnums=0)
  def trained(self, params, student):
    """Of each step of AdamW: the loss, the gradients and what it leaves."""
    optimizer = optax.adamw(1e-2)

    def step(carry, _):
      leaves, state = carry
      compute = jax.value_and_grad(self._total, argnums=(0, 1))
      value, gradient = compute(*leaves)
      updates, state = optimizer.update(gradient, state, leaves)
      leaves = optax.apply_updates(leaves, updates)
      return (leaves, state), (value, gradient, leaves)

    start = (params, student), optimizer.init((params, student))
    return jax.lax.scan(step, start, length=10)[1]


@functools.cache
def made(name, fields):
  return Case(name, dict(fields))


@pytest.fixture(params=CASES, ids=lambda case: ",".join([case[0], *case[1]]))
def case(request):
  name, fields = request.param
  return made(name, tuple(fields.items()))


def test_terms_are_its_own_and_one_value_an_example(case):
  found = case.terms(case.params, case.student, case.teacher)
  assert found.keys() == set(case.module.terms)
  for value in found.values():
    assert value.shape == (B,)
    assert value.dtype == jnp.float32
    assert np.isfinite(value).all()
    assert (np.asarray(value) != 0).any()


def test_every_parameter_moves_and_the_term_falls(case):
  """A projector that is never trained was published twice."""
  found = jax.device_get(case.trained(case.params, case.student))
  values, gradients, (params, _) = found
  # Of all that the method reads of the student, before and after a step.
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients[1]):
    for step in range(2):
      assert (leaf[step] != 0).any(), (step, jax.tree_util.keystr(path))
  moved = jax.tree.map(
    lambda new, old: bool((new[0] != old).any()), params, case.params
  )
  assert all(jax.tree.leaves(moved)), moved
  assert values[-1] < values[0]
  assert np.isfinite(values).all()


def test_no_gradient_reaches_the_teacher(case):
  if case.teacher is None:
    assert case.module.learns_alone
    return

  @jax.jit
  def gradient(teacher):
    def total(teacher):
      found = case.terms(case.params, case.student, teacher)
      return sum(jnp.sum(value) for value in found.values())

    return jax.grad(total)(teacher)

  for leaf in jax.tree.leaves(gradient(case.teacher)):
    assert (np.asarray(leaf) == 0).all()


@pytest.mark.parametrize(
  "name", [n for n, kind in methods.METHODS.items() if len(kind.terms) > 1]
)
def test_a_term_alone_is_what_it_is_beside_the_others(name):
  """And has no parameters of theirs."""
  whole = made(name, tuple(FIELDS.get(name, {}).items()))
  both = whole.terms(whole.params, whole.student, whole.teacher)
  for term, value in both.items():
    alone = Case(name, FIELDS.get(name, {}) | {"only": (term,)})
    params = {name: whole.params[name] for name in alone.params}
    found = alone.terms(params, whole.student, whole.teacher)
    np.testing.assert_allclose(found[term], value, rtol=1e-6)


def test_each_is_the_class_of_a_module_of_its_name():
  for name, kind in methods.METHODS.items():
    assert kind.__module__ == f"vitkd_jax.distill.methods.{name}"


def test_names_alone_decide_on_keys():
  key = jax.random.key(0)
  names = ["vitkd", "nkd", "kl", "mine"]
  found = [jax.random.key_data(methods.fold(key, name)) for name in names]
  assert len({data.tobytes() for data in map(np.asarray, found)}) == len(names)
  assert methods.fold(key, "vitkd") is key  # as before there were others


@pytest.mark.parametrize(
  "name, fields, changes, said",
  [
    ("nkd", {}, dict(num_classes=2), "at least 3 classes"),
    ("dkd", {}, dict(num_classes=2), "at least 3 classes"),
    ("dist", {}, dict(num_classes=2), "at least 3 classes"),
    ("kl", dict(standardise=True), dict(num_classes=2), "at least 3 classes"),
    ("uskd", {}, dict(num_classes=3), "at least 4 classes"),
    ("uskd", {}, dict(has_class_token=False), "with a CLS token"),
    ("uskd", dict(block=4), {}, "names block 4"),
    ("spectral", {}, dict(width=13), "at least as wide as the student, 13"),
    ("spectral", dict(blocks=(7,)), {}, "names block 7"),
    ("regress", dict(blocks=(0, 1), teacher_blocks=(1,)), {}, "as many"),
    ("regress", dict(projector="none"), {}, "as wide as the student, 8"),
    ("regress", dict(metric="l2"), {}, "metric to be one of mse, cosine"),
    ("regress", dict(tap="token"), {}, "tap to be one of map, cls, pooled"),
    ("regress", dict(tap="cls"), dict(has_class_token=False), "a student with"),
    ("srrl", {}, dict(has_head=False), "a student with one linear head"),
    ("manifold", dict(blocks=()), {}, "at least one block"),
    ("manifold", dict(place="+mpl"), {}, "the nearest is '+mlp'"),
    ("mgd", dict(mask_ratio=1.0), {}, "0 <= mask_ratio < 1"),
    ("wttm", dict(gamma=0.0), {}, "gamma > 0"),
    ("dkd", dict(beta=-1.0), {}, "beta >= 0"),
    ("token_similarity", dict(temperature=0.0), {}, "temperature > 0"),
  ],
)
def test_what_cannot_work_is_refused(name, fields, changes, said):
  module = methods.METHODS[name](**fields)
  student = STUDENT.__class__(**(vars(STUDENT) | changes))
  with pytest.raises(ValueError, match=r".") as refusal:
    module.needs(module, student, TEACHER)
  assert said in str(refusal.value)
