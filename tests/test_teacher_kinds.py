"""Teachers of other fields, other images, and of one's own making."""

import dataclasses

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stepping import steps

from vitkd_jax import weights
from vitkd_jax.distill import view
from vitkd_jax.models import function, vit
from vitkd_jax.training import experiment

VARIANT = "test/7"  # of big_vision


@pytest.fixture
def plain(plain):
  """With a method of logits and one of maps."""
  plain.methods = dict(kl={}, regress={})
  return plain


def teacher(parts):
  return parts.objective.teachers["teacher"], parts.teacher_params["teacher"]


@pytest.mark.parametrize(
  "fields",
  [
    dict(pool_type="tok"),
    dict(pool_type="map"),
    dict(rep_size=True),
    dict(posemb="sincos2d"),
    dict(depth=3),
  ],
  ids=str,
)
@pytest.mark.parametrize("stated", [True, False])
def test_models_of_other_fields_teach(
  plain, tmp_path, fields, stated, untraced
):
  """The fields are given, or those that our own file states."""
  params = drawn.params(10, variant=VARIANT, **fields)
  ending, format = ("safetensors", "flat") if stated else ("npz", "big_vision")
  path = tmp_path / f"teacher.{ending}"
  weights.save(path, params, format=format, variant=VARIANT, **fields)
  given = {} if stated else fields
  plain.teachers.teacher = dict(
    weights=str(path), variant=VARIANT, dtype="float32", fields=given
  )
  found, loaded = teacher(experiment.build(plain))
  image = np.random.default_rng(0).uniform(size=(2, 28, 28, 3))
  image = image.astype(np.float32)
  model = vit.Model(10, variant=VARIANT, **fields)
  want = jax.jit(model.apply)({"params": params}, image)[0]
  got = jax.jit(found.model.apply)({"params": loaded}, image)[0]
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  assert found.side.depth == fields.get("depth", model.depth)
  assert found.side.has_class_token == (fields.get("pool_type") == "tok")


@pytest.mark.parametrize(
  "given, said",
  [
    (dict(fields=dict(pool="tok")), r"unknown model field 'pool'"),
    (dict(fields=dict(depth="3")), r"fields\.depth to be an integer, got '3'"),
    (dict(fields=dict(num_classes=3)), "fields.num_classes comes from the"),
    (dict(fields=3), "fields to be a section or None, got 3"),
    (dict(mean=(0.5, 0.5)), "mean to be a sequence of 3 finite numbers"),
    (dict(std=(0.5, 0.0, 0.5)), r"std > 0, got \(0.5, 0.0, 0.5\)"),
    (dict(image_size=-1), "image_size >= 0, got -1"),
    (dict(image_size=30), "30x30 pixels.* not divisible|divide"),
    (dict(scale=0.0), r"scale > 0, got 0\.0"),
    (dict(build="my_teacher:build"), "variant or .*build, got both"),
    (dict(variant=""), r"teachers\.teacher\.variant is missing"),
    (dict(weights=""), r"teachers\.teacher\.weights is missing"),
  ],
)
def test_what_cannot_work_is_one_sentence(plain, given, said):
  plain.teachers.teacher = plain.teachers.teacher.to_dict() | given
  with pytest.raises(ValueError, match=said) as refusal:
    experiment.build(plain)
  assert "\n" not in str(refusal.value)


def test_its_own_normalisation_and_size(plain, untraced):
  plain.teachers.teacher.update(
    mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0), image_size=56
  )
  with pytest.raises(ValueError, match="trained at 56x56"):
    experiment.build(plain)
  plain.teachers.teacher.resize_posemb = True
  found, _ = teacher(experiment.build(plain))
  assert found.side.grid == (14, 14)
  grey = jnp.full((1, 28, 28, 3), 0.6)
  image = found.images(grey)
  assert image.shape == (1, 56, 56, 3)
  want = [(0.6 - 0.1) / 0.5, (0.6 - 0.2) / 0.25, (0.6 - 0.3) / 2]
  np.testing.assert_allclose(image[0, 17, 40], want, rtol=1e-5)
  # A cubic filter would leave [0, 1] beside an edge.
  edge = found.images(grey.at[:, :, 14:].set(1.0).at[:, :, :14].set(0.0))
  assert jnp.max(edge[..., 0]) <= (1 - 0.1) / 0.5 + 1e-5


def test_a_scale_multiplies_maps_and_cls_tokens_alone():
  side = view.Side(4, 2, (1, 3))
  taps = view.Taps(
    logits=True, pooled=True, cls=((0, "+mlp"),), maps=((1, "+mlp"),)
  )
  ones = jax.tree.map(jnp.ones_like, view.zeros(side, taps))
  found = ones.scaled(0.25)
  np.testing.assert_array_equal(found.map(1), 0.25)
  np.testing.assert_array_equal(found.cls(0), 0.25)
  np.testing.assert_array_equal(found.pooled, 1.0)
  assert ones.scaled(1.0) is ones


@pytest.fixture
def own(plain, tmp_path):
  """A teacher of one's own in the place of the ViT."""
  np.save(tmp_path / "weights.npy", 7)
  plain.teachers = dict(
    teacher=dict(
      weights=str(tmp_path / "weights.npy"),
      build="my_teacher:build",
      dtype="float32",
    )
  )
  return plain


def test_a_convolutional_network_teaches(own):
  parts, state, found = steps(own, jax.devices()[:1])
  assert parts.objective.terms == ("task", "kl", "regress")
  assert found[0]["kl"] > 0
  assert found[0]["regress"] > 0
  projector = state.params["methods"]["regress"]["projector_0"]["Dense_0"]
  assert projector["kernel"].shape[-1] == 8
  model = parts.objective.teachers["teacher"].model
  # Its two convolutions over 4x4 positions, and what XLA adds.
  products = 2 * 16 * (7 * 7 * 3 * 8 + 0.5 * 3 * 3 * 8 * 8) + 2 * 8 * 10
  assert products < model.flops < 2 * products


def test_its_parameters_are_those_of_the_run(own, tmp_path, untraced):
  first = experiment.build(own).teacher_pins["teacher"]
  assert experiment.build(own).teacher_pins["teacher"] == first
  np.save(tmp_path / "weights.npy", 8)
  assert experiment.build(own).teacher_pins["teacher"] != first


@pytest.mark.parametrize(
  "given, said",
  [
    (dict(build="my_teacher:bare"), "to return .*Function, param.* got Funct"),
    (dict(build="my_teacher:raising"), "KeyError: 'layer1.weight'"),
    (dict(build="my_teacher:no"), "has no attribute 'no'"),
    (
      dict(build="my_teacher:of_another_width"),
      r"expected 2 maps of shape \(1, 4, 4, 9\) .*, got \(1, 4, 4, 8\), ",
    ),
    (dict(build="my_teacher:of_other_classes"), r"logits of shape \(1, 11\)"),
    (dict(fields=dict(classes=5)), "expected a teacher of .*'s 10 classes"),
    (dict(fields=dict(depth=5)), "unexpected keyword argument 'depth'"),
  ],
)
def test_what_is_no_teacher_is_one_sentence(own, given, said):
  own.teachers.teacher = own.teachers.teacher.to_dict() | given
  with pytest.raises(ValueError, match=said) as refusal:
    experiment.build(own)
  assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
  "method, said",
  [
    (dict(regress=dict(place="sa")), "'sa', but a model shows .mlp and encode"),
    (dict(srrl={}), "one linear head"),
    (dict(regress=dict(tap="cls")), "expected a teacher with a CLS token"),
    (dict(regress=dict(blocks=(5,))), "names block 5"),
  ],
)
def test_what_it_does_not_show_is_not_compared(own, method, said):
  own.methods = method
  with pytest.raises(ValueError, match=said):
    experiment.build(own)


def test_a_function_by_hand():
  def double(params, image):
    maps = [image[:, ::2, ::2] * params["x"], image[:, 1::2, ::2]]
    return None, maps

  model = function.Function(double, 3, (2, 2), depth=2)
  image = jnp.arange(4.0 * 4 * 3).reshape(1, 4, 4, 3)
  logits, out = model.apply({"params": {"x": 10.0}}, image)
  assert logits is None
  tokens = out["encoder"]["block00"]["+mlp"]
  np.testing.assert_array_equal(tokens[0, 1], [60, 70, 80])  # row 0, column 1
  np.testing.assert_array_equal(tokens[0, 2], [240, 250, 260])
  np.testing.assert_array_equal(out["encoded"][0, 0], [12, 13, 14])
  frozen, params = model.frozen({"x": jnp.float32(1.5), "n": 3}, "bfloat16")
  assert params["x"].dtype == jnp.bfloat16
  assert params["n"] == 3
  assert frozen.dtype_mm == "bfloat16"
  with pytest.raises(ValueError, match="an integer depth >= 1, got 0"):
    dataclasses.replace(model, depth=0)
