"""Methods in a training: several teachers, one's own method, any mesh."""

import jax
import numpy as np
import pytest
from stepping import steps

from vitkd_jax.distill import methods
from vitkd_jax.training import experiment


@pytest.fixture
def plain(tiny_config):
  """Without what makes two runs' draws differ."""
  tiny_config.student.drop_path = 0.0
  tiny_config.augment = dict(label_smoothing=0.1)
  return tiny_config


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


def every_method(config):
  """All at once, on blocks that the small models have."""
  config.methods = {
    name: {
      "spectral": dict(blocks=(0, 1)),
      "manifold": dict(blocks=(0, 1), num_tokens=8),
      "vitkd": dict(reduction="mean", weights=dict(mimic=0.2, generation=1.0)),
      # Sums over all tokens and channels, which would drown the others.
      "mgd": dict(weights=dict(mgd=1e-6)),
    }.get(name, {})
    for name in methods.METHODS
  }
  return config


@pytest.mark.slow
def test_every_method_is_the_same_on_any_mesh(plain):
  one, state, single = steps(every_method(plain), jax.devices()[:1])
  assert len(one.objective.terms) == 1 + sum(
    len(kind.terms) for kind in methods.METHODS.values()
  )
  plain.run.fsdp = 8
  _, other, sharded = steps(every_method(plain), jax.devices())
  for a, b in zip(single, sharded, strict=True):
    for name in one.objective.terms:
      assert a[name] == pytest.approx(b[name], rel=1e-4), name
  for x, y in zip(
    jax.tree.leaves(state.params["methods"]),
    jax.tree.leaves(other.params["methods"]),
    strict=True,
  ):
    np.testing.assert_allclose(x, y, atol=1e-4 * max(np.abs(x).max(), 1e-3))
