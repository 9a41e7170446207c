"""Tests of vitkd_jax.distill.heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitkd_jax.distill import heads

B, K, D_S, D_T = 2, 2, 4, 6
GRID = (2, 3)
N = GRID[0] * GRID[1]
MAPS = ("student_low", "student_high", "teacher_low", "teacher_high")


def maps(width_s=D_S, width_t=D_T, grid=GRID, batch=B, seed=0):
  """The four token maps, float32."""
  rng = np.random.default_rng(seed)
  tokens = grid[0] * grid[1]
  return {
    f"{who}_{depth}": rng.standard_normal(
      (batch, *blocks, tokens, width), np.float32
    )
    for who, width in (("student", width_s), ("teacher", width_t))
    for depth, blocks in (("low", (K,)), ("high", ()))
  }


def filled(shapes, seed=1):
  """Parameters none of which is at its start."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes
  )


def shapes_of(head, inputs):
  mask = np.zeros(inputs["student_high"].shape[:2], bool)
  tree = jax.eval_shape(
    functools.partial(head.init, jax.random.key(0)), **inputs, mask=mask
  )
  return tree.get("params", {})


def flat(tree):
  return {
    "/".join(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


MASK = np.array([[1, 0, 1, 0, 1, 0], [0, 0, 1, 1, 0, 1]], bool)


@pytest.fixture(scope="module")
def unequal():
  """A head between unequal widths: itself, parameters, maps, compiled."""
  head = heads.ViTKD(D_T, grid=GRID)
  inputs = maps()
  params = filled(shapes_of(head, inputs))

  @jax.jit
  def run(params, inputs, mask):
    return head.apply({"params": params}, **inputs, mask=mask)

  return head, params, inputs, run


@pytest.fixture(scope="module")
def gradients(unequal):
  """The compiled gradients of both terms' sum, by parameters and maps."""
  head, _, _, _ = unequal

  @jax.jit
  def run(params, inputs, mask):
    def total(params, inputs):
      terms = head.apply({"params": params}, **inputs, mask=mask)
      return sum(value.sum() for value in terms.values())

    return jax.grad(total, (0, 1))(params, inputs)

  return run


def dense(x, layer):
  return x @ np.float64(layer["kernel"]) + np.float64(layer["bias"])


def conv3x3(x, layer):
  """[h, w, D] with a border of zeros, pixel by pixel."""
  height, width, _ = x.shape
  kernel, out = np.float64(layer["kernel"]), np.zeros_like(x)
  for i in range(height):
    for j in range(width):
      out[i, j] = layer["bias"]
      for di in range(3):
        for dj in range(3):
          y, z = i + di - 1, j + dj - 1
          if 0 <= y < height and 0 <= z < width:
            out[i, j] += x[y, z] @ kernel[di, dj]
  return out


def by_hand(params, inputs, mask, ratio):
  """Both terms of each image in float64, token by token."""
  mimic, generation = np.zeros(len(mask)), np.zeros(len(mask))
  for b in range(len(mask)):
    for k in range(K):
      aligned = dense(inputs["student_low"][b, k], params[f"align_low_{k}"])
      mimic[b] += np.sum((aligned - inputs["teacher_low"][b, k]) ** 2)
    x = dense(inputs["student_high"][b], params["align_high"])
    for n in np.flatnonzero(mask[b]):
      x[n] = params["mask_token"][0, 0]
    x = conv3x3(x.reshape(*GRID, D_T), params["generator_0"])
    x = conv3x3(np.maximum(x, 0), params["generator_1"]).reshape(N, D_T)
    for n in range(N):
      if mask[b, n] or ratio == 0:
        difference = x[n] - inputs["teacher_high"][b, n]
        generation[b] += difference @ difference / (ratio or 1)
  return {"mimic": mimic, "generation": generation}


def test_both_terms_by_hand(unequal):
  """Between unequal widths, on a grid that is not square."""
  _, params, inputs, run = unequal
  got = run(params, inputs, MASK)
  expected = by_hand(params, inputs, MASK, 0.5)
  assert got.keys() == expected.keys()
  for term, value in expected.items():
    assert got[term].dtype == jnp.float32
    np.testing.assert_allclose(got[term], value, rtol=1e-5, err_msg=term)


def test_lambda_zero_replaces_nothing_and_counts_every_token(unequal):
  head, params, inputs, _ = unequal
  none = np.zeros((B, N), bool)
  got = head.clone(mask_ratio=0.0).apply(
    {"params": params}, **inputs, mask=none
  )
  expected = by_hand(params, inputs, none, 0)
  np.testing.assert_allclose(
    got["generation"], expected["generation"], rtol=1e-5
  )


def test_the_mean_is_the_sum_over_tokens_and_channels(unequal):
  head, params, inputs, run = unequal
  mean = head.clone(reduction="mean").apply(
    {"params": params}, **inputs, mask=MASK
  )
  for term, value in run(params, inputs, MASK).items():
    np.testing.assert_allclose(mean[term], value / (N * D_T), rtol=1e-6)


def test_images_do_not_see_one_another(unequal):
  _, params, inputs, run = unequal
  order = np.array([1, 0])
  swapped = {name: x[order] for name, x in inputs.items()}
  got = run(params, swapped, MASK[order])
  for term, value in run(params, inputs, MASK).items():
    np.testing.assert_allclose(got[term], value[order], rtol=1e-6)


def test_a_replaced_token_is_not_seen(unequal):
  _, params, inputs, run = unequal
  other = dict(inputs)
  other["student_high"] = np.where(
    MASK[..., None], 7.0, inputs["student_high"]
  ).astype(np.float32)
  for term, value in run(params, inputs, MASK).items():
    np.testing.assert_array_equal(
      run(params, other, MASK)[term], value, err_msg=term
    )


# Parameters.


def test_parameters_between_unequal_widths(unequal):
  _, params, _, _ = unequal
  align = {"kernel": (D_S, D_T), "bias": (D_T,)}
  generator = {"kernel": (3, 3, D_T, D_T), "bias": (D_T,)}
  assert jax.tree.map(np.shape, params) == {
    "align_low_0": align,
    "align_low_1": align,
    "align_high": align,
    "mask_token": (1, 1, D_T),
    "generator_0": generator,
    "generator_1": generator,
  }


ALIGNERS = {"align_low_0", "align_low_1", "align_high"}
DEEP = {"mask_token", "generator_0", "generator_1"}


@pytest.mark.parametrize(
  "width_s, options, names",
  [
    (D_T, {}, DEEP),
    (D_T, dict(always_align=True), DEEP | ALIGNERS),
    (D_S, dict(terms=("mimic",)), {"align_low_0", "align_low_1"}),
    (D_S, dict(terms=("generation",)), DEEP | {"align_high"}),
    (D_T, dict(terms=("mimic",)), set()),
  ],
)
def test_only_what_is_used_has_parameters(width_s, options, names):
  head = heads.ViTKD(D_T, grid=GRID, **options)
  assert set(shapes_of(head, maps(width_s))) == names


def test_equal_widths_are_compared_raw():
  head = heads.ViTKD(D_T, grid=GRID, terms=("mimic",))
  inputs = maps(D_T)
  got = head.apply({"params": {}}, **inputs, mask=MASK)
  difference = np.float64(inputs["student_low"]) - inputs["teacher_low"]
  assert got.keys() == {"mimic"}
  np.testing.assert_allclose(
    got["mimic"], np.sum(difference**2, axis=(1, 2, 3)), rtol=1e-6
  )
  inputs["student_low"] = inputs["teacher_low"]
  got = head.apply({"params": {}}, **inputs, mask=MASK)
  np.testing.assert_array_equal(got["mimic"], 0)


def test_an_aligner_that_is_the_identity_changes_nothing():
  inputs = maps(D_T)
  plain = heads.ViTKD(D_T, grid=GRID)
  params = filled(shapes_of(plain, inputs))
  identity = {"kernel": np.eye(D_T), "bias": np.zeros(D_T)}
  aligned = plain.clone(always_align=True).apply(
    {"params": params | dict.fromkeys(ALIGNERS, identity)}, **inputs, mask=MASK
  )
  plain = plain.apply({"params": params}, **inputs, mask=MASK)
  for term, value in plain.items():
    np.testing.assert_allclose(aligned[term], value, rtol=1e-5)


def test_start_is_pytorchs():
  """Uniform in +-1/sqrt(fan_in), biases too; the mask token is zero."""
  inputs = maps(64, 48, batch=1)
  mask = np.zeros((1, N), bool)
  head = heads.ViTKD(48, grid=GRID)
  params = jax.jit(head.init)(jax.random.key(0), **inputs, mask=mask)["params"]
  np.testing.assert_array_equal(params.pop("mask_token"), 0)
  for name, layer in params.items():
    fan_in = np.prod(layer["kernel"].shape[:-1])
    bound = 1 / np.sqrt(fan_in)
    for leaf in layer.values():
      assert np.abs(leaf).max() <= bound, name
      assert np.abs(leaf).max() > 0.9 * bound, name
    uniform = bound / np.sqrt(3)
    np.testing.assert_allclose(np.std(layer["kernel"]), uniform, rtol=0.05)
  kernels = [params[f"align_low_{i}"]["kernel"] for i in range(K)]
  assert (kernels[0] != kernels[1]).all()


# Gradients.


def test_every_parameter_and_the_student_get_a_gradient(unequal, gradients):
  _, params, inputs, _ = unequal
  to_params, to_maps = gradients(params, inputs, MASK)
  for path, gradient in flat(to_params).items():
    assert np.isfinite(gradient).all(), path
    assert (gradient != 0).any(), path
  for name in ("student_low", "student_high"):
    assert np.isfinite(to_maps[name]).all(), name
  assert (to_maps["student_low"] != 0).all()
  # A replaced token is not seen; every other one lies beside a replaced one.
  seen = np.any(to_maps["student_high"] != 0, axis=-1)
  np.testing.assert_array_equal(seen, ~MASK)
  for name in ("teacher_low", "teacher_high"):
    np.testing.assert_array_equal(to_maps[name], 0, err_msg=name)


def test_a_fresh_head_learns_everywhere(unequal, gradients):
  """Zero is no trap for the mask token."""
  head, _, inputs, _ = unequal
  params = head.init(jax.random.key(0), **inputs, mask=MASK)["params"]
  to_params, _ = gradients(params, inputs, MASK)
  for path, gradient in flat(to_params).items():
    assert (gradient != 0).any(), path


def test_without_replaced_tokens_the_mask_token_gets_none(unequal):
  head, params, inputs, _ = unequal
  head = head.clone(mask_ratio=0.0)

  def total(params):
    mask = np.zeros((B, N), bool)
    return head.apply({"params": params}, **inputs, mask=mask)[
      "generation"
    ].sum()

  gradient = jax.jit(jax.grad(total))(params)
  np.testing.assert_array_equal(gradient["mask_token"], 0)
  assert (np.abs(gradient["generator_1"]["bias"]) > 0).all()


def test_large_features_stay_finite(unequal, gradients):
  _, params, inputs, run = unequal
  large = {name: 1e4 * x for name, x in inputs.items()}
  for tree in (run(params, large, MASK), gradients(params, large, MASK)):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def test_bfloat16_keeps_parameters_and_losses_in_float32(unequal):
  head, params, inputs, run = unequal
  narrow = head.clone(dtype_mm="bfloat16")
  shapes = shapes_of(narrow, inputs)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
  given = {name: jnp.asarray(x, jnp.bfloat16) for name, x in inputs.items()}
  got = jax.jit(narrow.apply)({"params": params}, **given, mask=MASK)
  for term, value in run(params, inputs, MASK).items():
    assert got[term].dtype == jnp.float32
    # bfloat16 has 8 bits: a few rounded products, squared, then summed.
    np.testing.assert_allclose(got[term], value, rtol=3e-2)


# Refusals.


@pytest.mark.parametrize(
  "options, changes, match",
  [
    (dict(terms=("mimc",)), {}, "among mimic, generation, got 'mimc'"),
    (dict(teacher_width=5), {}, "teacher_width=5 wide, got 6"),
    ({}, dict(student_low=np.zeros((B, 0, N, 4))), "student_low with K = 0"),
    (dict(reduction="max"), {}, "reduction .* got 'max'"),
    (dict(mask_ratio=1.0), {}, "0 <= mask_ratio < 1, got 1.0"),
    (dict(grid=None), {}, "square number of tokens, got 6"),
    (dict(grid=(2, 2)), {}, "a grid of 6 tokens, got 2x2"),
    (
      {},
      dict(mask=np.zeros((B, 5), bool)),
      r"= \(2, 6\), got \(2, 5\)",
    ),
    ({}, dict(mask=np.zeros((1, N), bool)), r"got \(1, 6\)"),
    (
      {},
      dict(student_low=np.zeros((B, N, D_S))),
      r"student_low \[B, K, N, D\] and student_high .* got \(2, 6, 4\)",
    ),
    (
      {},
      dict(teacher_low=np.zeros((B, K, N, 5))),
      r"teacher_low .* and teacher_high .* got \(2, 2, 6, 5\)",
    ),
    (
      {},
      dict(teacher_low=np.zeros((B, 3, N, D_T))),
      "the same blocks and tokens",
    ),
    (
      {},
      dict(
        teacher_low=np.zeros((B, K, 8, D_T)), teacher_high=np.zeros((B, 8, D_T))
      ),
      "the same blocks and tokens, .*; tokens.resample",
    ),
  ],
)
def test_refusals(options, changes, match):
  head = heads.ViTKD(**dict(teacher_width=D_T, grid=GRID) | options)
  inputs = maps() | dict(mask=MASK) | changes
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(functools.partial(head.init, jax.random.key(0)), **inputs)


def test_a_square_grid_needs_no_naming():
  inputs = maps(grid=(3, 3))
  mask = np.arange(9)[None] % 2 == np.array([[0], [1]])
  head = heads.ViTKD(D_T)
  params = filled(shapes_of(head, inputs))
  got = head.apply({"params": params}, **inputs, mask=mask)
  named = head.clone(grid=(3, 3)).apply({"params": params}, **inputs, mask=mask)
  np.testing.assert_array_equal(got["generation"], named["generation"])
