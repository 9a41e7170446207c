"""What a method sees: made from a model's outputs, and from labels."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_vit import DEPTH, DISTILLED, outputs, small

from vitkd_jax.distill import view


def side(model):
  return view.Side(
    width=model.width,
    depth=model.depth,
    grid=model.grid(8, 12),
    num_prefix_tokens=model.num_prefix_tokens,
    num_classes=model.num_classes,
    has_class_token=model.has_class_token,
    has_head=model.has_linear_head(),
  )


def show(model, **taps):
  """The view of a small model's outputs, and those by path."""
  logits, flat = outputs(model)
  out = {name: value for name, value in flat.items() if "/" not in name}
  out["encoder"] = {}
  for path, value in flat.items():
    if path.startswith("encoder/block"):
      _, block, place = path.split("/")
      out["encoder"].setdefault(block, {})[place] = value
  found = view.make(side(model), view.Taps(**taps), logits, out)
  return found, flat


def test_a_distilled_student_is_taught_by_its_distillation_token():
  found, out = show(small(**DISTILLED), logits=True)
  np.testing.assert_array_equal(found.logits, out["logits_dist"])
  plain, out = show(small(), logits=True)
  np.testing.assert_array_equal(plain.logits, out["logits"])


def test_maps_are_patches_and_cls_tokens_are_the_first():
  last = (-1, "+mlp")
  found, out = show(
    small(**DISTILLED),
    maps=((0, "sa"), last, (0, "encoded")),
    cls=(last,),
    pooled=True,
  )
  prefix = small(**DISTILLED).num_prefix_tokens
  for args, path in (
    ((0, "sa"), "encoder/block00/sa"),
    ((DEPTH - 1,), "encoder/block01/+mlp"),
    (last, "encoder/block01/+mlp"),
    ((-1, "encoded"), "encoded"),
  ):
    np.testing.assert_array_equal(found.map(*args), out[path][:, prefix:])
  cls = out["encoder/block01/+mlp"][:, 0]
  np.testing.assert_array_equal(found.cls(*last), cls)
  np.testing.assert_array_equal(found.pooled, out["head_input"])
  assert found.logits is None


def test_what_nobody_asked_for_is_not_there():
  found, _ = show(small())
  assert (found.logits, found.pooled, found.head) == (None, None, None)
  with pytest.raises(KeyError):
    found.map(0)


@pytest.mark.parametrize(
  "fields, has", [({}, True), (DISTILLED, False), (dict(rep_size=7), False),
                  (dict(pool_type="none"), False)]
)  # fmt: skip
def test_one_linear_head_or_something_else(fields, has):
  assert small(**fields).has_linear_head() == has


def test_needs_of_several_methods_are_joined():
  first = view.Taps(logits=True, maps=((0, "+mlp"), (1, "+mlp")))
  second = view.Taps(pooled=True, maps=((1, "+mlp"), (2, "sa")))
  assert first | second == view.Taps(
    logits=True, pooled=True, maps=((0, "+mlp"), (1, "+mlp"), (2, "sa"))
  )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_a_mixed_label_is_the_smoothed_one_before_it(smoothing):
  mixed = np.zeros((3, 1000), np.float32)
  mixed[0, 7] = 1
  mixed[1, [3, 999]] = 0.25, 0.75
  mixed[2, [1, 2]] = 1e-3, 0.999
  target = jnp.asarray(mixed * (1 - smoothing) + smoothing / 1000)
  label = view.Label(target, smoothing)
  np.testing.assert_allclose(label.mixed, mixed, atol=1e-6)
  np.testing.assert_array_equal(label.mixed == 0, mixed == 0)
  np.testing.assert_array_equal(label.hard, [7, 999, 2])
