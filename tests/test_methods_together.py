"""Methods in a training: several teachers, one's own method, any mesh."""

import drawn
import jax
import numpy as np
import pytest
from stepping import steps

from vitkd_jax import weights
from vitkd_jax.distill import methods, view
from vitkd_jax.training import experiment


def test_two_teachers_each_teach_their_own(plain, teacher_file):
  one = jax.devices()[:1]
  plain.methods = dict(kl={}, nkd={})
  _, _, single = steps(plain, one, count=1)
  plain.teachers = dict(
    first=plain.teachers.teacher.to_dict(),
    second=dict(
      weights=teacher_file,
      variant="deit3_pico_patch4_28",
      dtype="bfloat16",
      resample=True,
    ),
  )
  plain.methods = dict(
    kl=dict(teacher="first"),
    near=dict(kind="nkd", teacher="second"),
  )
  parts, _, both = steps(plain, one, count=1)
  assert parts.teacher_params.keys() == {"first", "second"}
  assert parts.objective.terms == ("task", "near", "kl")
  assert both[0]["kl"] == pytest.approx(single[0]["kl"], rel=1e-6)
  # The second is the same model in bfloat16.
  assert both[0]["near"] == pytest.approx(single[0]["nkd"], rel=0.02)
  assert both[0]["near"] != single[0]["nkd"]


def test_several_teachers_must_be_named(plain):
  teacher = plain.teachers.teacher.to_dict()
  plain.teachers = dict(first=teacher, second=teacher)
  plain.methods = dict(kl={})
  with pytest.raises(ValueError, match="several teachers: first, second"):
    experiment.build(plain)
  plain.methods = dict(kl=dict(teacher="first"))
  with pytest.raises(ValueError, match=r"learns from config\.teachers\.second"):
    experiment.build(plain)


def test_a_method_of_ones_own_trains(plain):
  plain.methods = dict(mine=dict(build="my_method:Mine", power=1.0))
  parts, state, found = steps(plain, jax.devices()[:1])
  assert parts.objective.terms == ("task", "mine")
  assert parts.objective.weights["mine"] == 0.5
  assert found[0]["mine"] > 0
  assert state.params["methods"]["mine"]["Dense_0"]["kernel"].ndim == 2


@pytest.mark.parametrize(
  "build, said",
  [
    ("my_method", "to be module:name, got 'my_method'"),
    ("no_such_module:Mine", "No module named 'no_such_module'"),
    ("my_method:Other", "has no attribute 'Other'"),
    ("my_method:Wordless", "lacks terms and needs"),
    ("my_method:Broken", "expected needs() to return a Needs, got ['logits']"),
    ("my_method:Raising", "Raising.needs: TypeError: Taps.__init__() got an"),
    ("math:pi", "to name a class of flax.linen.Module, got 3.14"),
  ],
)
def test_what_is_no_method_is_refused(plain, build, said):
  plain.methods = dict(mine=dict(build=build))
  with pytest.raises(ValueError, match=r"config\.methods\.mine") as refusal:
    experiment.build(plain)
  assert said in str(refusal.value)


def every_method(config, path):
  """All at once, on blocks that the small models have."""
  config.methods = {
    name: {
      "spectral": dict(blocks=(0, 1)),
      "manifold": dict(blocks=(0, 1), num_tokens=8),
      "vitkd": dict(reduction="mean", weights=dict(mimic=0.2, generation=1.0)),
      # Sums over all tokens and channels, which would drown the others.
      "mgd": dict(weights=dict(mgd=1e-6)),
      "relation": dict(teacher="twin"),  # of the student's tokens
    }.get(name, {})
    | {"teacher": "twin" if name == "relation" else "teacher"}
    for name in methods.METHODS
  }
  fields = dict(variant="test/7", pool_type="tok")
  weights.save(path, drawn.params(10, **fields), format="flat", **fields)
  config.teachers.twin = dict(
    weights=str(path), variant="test/7", dtype="float32"
  )
  return config


@pytest.mark.slow
def test_every_method_is_the_same_on_any_mesh(plain, tmp_path):
  plain = every_method(plain, tmp_path / "twin.safetensors")
  one, state, single = steps(plain, jax.devices()[:1])
  assert len(one.objective.terms) == 1 + sum(
    len(kind.terms) for kind in methods.METHODS.values()
  )
  plain.run.fsdp = 8
  _, other, sharded = steps(plain, jax.devices())
  # AdamW's first update is a sign, so that the second step differs more.
  for a, b, rel in zip(single, sharded, (1e-5, 1e-4), strict=True):
    for name in one.objective.terms:
      assert a[name] == pytest.approx(b[name], rel=rel), name
  for x, y in zip(
    jax.tree.leaves(state.params["methods"]),
    jax.tree.leaves(other.params["methods"]),
    strict=True,
  ):
    np.testing.assert_allclose(x, y, atol=1e-4 * max(np.abs(x).max(), 1e-3))


@pytest.mark.slow
def test_what_is_per_example_ignores_accumulation(plain, tmp_path):
  plain = every_method(plain, tmp_path / "twin.safetensors")
  for name, kind in methods.METHODS.items():
    if getattr(kind, "across_batch", False) is True:
      del plain.methods[name]  # `test_lengths` has these
  found = []
  for accumulate in (1, 4):
    plain.run.accumulate = accumulate
    found.append(steps(plain, jax.devices()[:1], count=1))
  parts = found[0][0]
  (at_once,), (by_parts,) = (metrics for *_, metrics in found)
  assert len(parts.objective.terms) > 15
  for name in parts.objective.terms:
    assert by_parts[name] == pytest.approx(at_once[name], rel=1e-5), name
  assert by_parts["grad_norm"] == pytest.approx(at_once["grad_norm"], rel=1e-4)


def by_logits():
  """Names of the methods that read the student's logits."""
  side = view.Side(8, 12, (2, 2), 1, 9, "float32", True, True, qkv_heads=1)
  return [
    name
    for name, kind in methods.METHODS.items()
    if kind.needs(kind(), side, side).student.logits
  ]


def test_a_distillation_token_learns_from_the_teacher_alone(plain, untraced):
  """And the CLS token from the labels (arXiv:2012.12877)."""
  plain.student = dict(
    variant="test/7", pool_type="tok", distilled=True, head_zeroinit=False
  )
  plain.methods = {name: {} for name in by_logits()}
  parts = experiment.build(plain, devices=jax.devices()[:1])
  objective = parts.objective
  state = drawn.state(parts)
  image = jax.random.uniform(jax.random.key(1), (4, 28, 28, 3))
  target = jax.nn.one_hot(np.arange(4), 10)
  draws = objective.draws(jax.random.key(2), 4)

  @jax.jit
  def heads(params, teacher_params):
    views = objective.teacher_views(teacher_params, image)

    def terms(head):
      student = params["student"] | head
      values, _ = objective.losses(
        params | {"student": student}, views, image, target, draws, {},
        jax.random.key(3),
      )  # fmt: skip
      return {name: value.mean() for name, value in values.items()}

    names = ("head", "head_dist")
    return jax.jacrev(terms)({name: params["student"][name] for name in names})

  found = heads(state.params, parts.teacher_params)
  assert len(found) >= 1 + len(by_logits())
  del found["uskd/weak"]  # of a middle block, read by a layer of its own
  for term, gradient in found.items():
    learns, rests = "head_dist", "head"
    if term == "task":
      learns, rests = rests, learns
    assert np.any(gradient[learns]["kernel"]), term
    assert not np.any(gradient[rests]["kernel"]), term
