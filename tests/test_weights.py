"""Weights in and out: round trips, folding, and every refusal."""

import re
import sys
import zipfile

import drawn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitkd_jax import weights
from vitkd_jax.data import preprocess
from vitkd_jax.models import fitting, vit
from vitkd_jax.weights import files, resolve, saving

SIZE = 28
MODELS = {
  "deit": dict(variant="deit_pico_patch4_28", depth=2),
  "distilled": dict(variant="deit_pico_patch4_28", depth=2, distilled=True),
  "deit3": dict(
    variant="deit3_small_patch16_224",
    depth=2,
    width=32,
    mlp_dim=64,
    num_heads=2,
    patch_size=(4, 4),
  ),
  "registers": dict(variant="deit_pico_patch4_28", depth=1, registers=4),
  "big_vision": dict(variant="test", depth=2, patch_size=(7, 7)),
}


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def flat(params):
  return dict(traverse_util.flatten_dict(params, sep="/"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
  "format, file",
  [("flat", "w.safetensors"), ("flat", "w.npz"), ("timm", "w.safetensors")],
)
def test_round_trip_is_exact(tmp_path, name, format, file):
  fields = MODELS[name]
  params = drawn.params(**fields)
  weights.save(tmp_path / file, params, format=format, **fields)
  got = weights.load(tmp_path / file, num_classes=5, image_size=SIZE, **fields)
  assert_same(got, params)
  assert {a.dtype for a in flat(got).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("scan_in, scan_out", [(True, False), (False, True)])
def test_scanned_and_unrolled_layouts_are_the_same_weights(
  tmp_path, scan_in, scan_out
):
  fields = MODELS["big_vision"]
  params = drawn.params(scan=scan_in, **fields)
  weights.save(
    tmp_path / "w.npz", params, format="big_vision", scan=scan_in, **fields
  )
  got = weights.load(
    tmp_path / "w.npz",
    num_classes=5,
    image_size=SIZE,
    scan=scan_out,
    **fields,
  )
  image = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3))
  logits = [
    jax.jit(vit.Model(5, scan=scan, **fields).apply)({"params": p}, image)[0]
    for scan, p in ((scan_in, params), (scan_out, got))
  ]
  np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_folded_layerscale_computes_the_same(scan):
  fields = MODELS["deit3"]
  params = drawn.params(scan=scan, **fields)
  folded = weights.fold_layerscale(params)
  assert not any("layerscale" in name for name in flat(folded))
  image = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3))
  want, want_out = jax.jit(vit.Model(5, scan=scan, **fields).apply)(
    {"params": params}, image
  )
  model = vit.Model(5, scan=scan, layerscale_init=None, **fields)
  got, got_out = jax.jit(model.apply)({"params": folded}, image)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    got_out["encoder"]["block01"]["sa"],
    want_out["encoder"]["block01"]["sa"],
    rtol=1e-5,
    atol=1e-5,
  )


def save_small(path, **changes):
  fields = MODELS["deit3"]
  leaves = flat(drawn.params(**fields))
  for name, leaf in changes.items():
    if leaf is None:
      del leaves[name]
    else:
      leaves[name] = leaf
  files.write_npz(path, leaves)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"cls": None}, ["lacks 'cls'"]),
    ({"extra/kernel": np.ones(2)}, ["the model lacks 'extra/kernel'"]),
    ({"embedding/bias": np.ones(7)}, ["embedding/bias", "(7,)", "(32,)"]),
    ({"head/kernel": np.ones((32, 9))}, ["head/kernel", "(32, 9)", "(32, 5)"]),
  ],
)
def test_a_leaf_that_does_not_fit_is_named(tmp_path, changes, words):
  save_small(tmp_path / "w.npz", **changes)
  with pytest.raises(ValueError, match=re.escape(words[0])) as error:
    weights.load(
      tmp_path / "w.npz", num_classes=5, image_size=SIZE, **MODELS["deit3"]
    )
  for word in [str(tmp_path / "w.npz"), *words]:
    assert word in str(error.value)


def test_shape_mismatch_in_a_timm_file_gives_both_shapes(tmp_path):
  params = drawn.params(**MODELS["deit"])
  weights.save(
    tmp_path / "w.safetensors", params, format="timm", **MODELS["deit"]
  )
  with pytest.raises(
    ValueError, match=r"shape \(96, 3, 4, 4\), got \(64, 3, 4, 4\)"
  ):
    weights.load(
      tmp_path / "w.safetensors",
      variant="deit_pico_patch4_28",
      num_classes=5,
      width=96,
    )


@pytest.mark.parametrize(
  "content, words",
  [
    (b"<!DOCTYPE html><html>503</html>", "web page"),
    (b"\n <html>", "web page"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
    (b"PK\x03\x04 a zip that ends early", "truncated"),
    (b"", "expected a safetensors, npz or PyTorch file"),
    (b"\xff" * 100, "expected a safetensors, npz or PyTorch file"),
    (b'\x10\0\0\0\0\0\0\0{"a": 1, ', "truncated"),
  ],
)
def test_files_that_are_no_weights(tmp_path, content, words):
  path = tmp_path / "w.pth"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=words) as error:
    weights.load(path, variant="deit_tiny_patch16_224", num_classes=5)
  assert str(path) in str(error.value)


@pytest.mark.parametrize("file", ["w.safetensors", "w.npz"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_truncated_files(tmp_path, file, share):
  params = drawn.params(**MODELS["deit"])
  weights.save(tmp_path / file, params, format="flat", **MODELS["deit"])
  content = (tmp_path / file).read_bytes()
  (tmp_path / file).write_bytes(content[: int(share * len(content))])
  with pytest.raises(ValueError, match="truncated or damaged"):
    weights.load(tmp_path / file, num_classes=5, **MODELS["deit"])


def test_missing_file_and_unknown_names(tmp_path):
  with pytest.raises(ValueError, match="got no such file or folder"):
    weights.load(tmp_path / "w.npz", variant="S/16", num_classes=5)
  with pytest.raises(
    ValueError, match=r"expected model\.safetensors, .* got none of"
  ):
    weights.load(tmp_path, variant="S/16", num_classes=5)
  files.write_npz(tmp_path / "w.npz", {"conv1.weight": np.ones(3)})
  with pytest.raises(ValueError, match=r"names of a ViT of .*conv1\.weight"):
    weights.load(tmp_path / "w.npz", variant="S/16", num_classes=5)


def test_pickled_arrays_are_refused(tmp_path):
  np.savez(tmp_path / "w.npz", **{"Transformer/x": np.array([{}], object)})
  with pytest.raises(ValueError, match="never loaded"):
    weights.load(tmp_path / "w.npz", variant="S/16", num_classes=5)


def test_nothing_is_left_of_a_failed_write(tmp_path):
  with (
    pytest.raises(ZeroDivisionError),
    files.replacing(tmp_path / "w.npz") as temporary,
    open(temporary, "w"),
  ):
    raise ZeroDivisionError
  assert not list(tmp_path.iterdir())


def test_half_precision_comes_back_as_float32(tmp_path):
  params = drawn.params(**MODELS["deit"])
  for file in ("w.safetensors", "w.npz"):
    weights.save(
      tmp_path / file,
      params,
      format="flat",
      dtype="bfloat16",
      **MODELS["deit"],
    )
    got = weights.load(tmp_path / file, num_classes=5, **MODELS["deit"])
    want = jax.tree.map(
      lambda a: a.astype(jnp.bfloat16).astype(np.float32), params
    )
    assert_same(got, want)


def combine_class_token(leaves):
  """One position table for CLS and patches, as before 2022."""
  entry = np.full((1, 1, 64), 0.25, np.float32)
  leaves["cls"] = leaves["cls"] - entry
  table = np.concatenate([entry, leaves.pop("pos_embedding")], axis=1)
  return {**leaves, "Transformer/posembed_input/pos_embedding": table}


def old_block_names(leaves):
  for old, new in (
    ("LayerNorm_1", "LayerNorm_2"),
    ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
    ("MlpBlock_0", "MlpBlock_3"),
  ):
    leaves = {
      name.replace(f"/{old}/", f"/{new}/"): leaf
      for name, leaf in leaves.items()
    }
  return leaves


def training_state(leaves):
  state = {f"params/{name}": leaf for name, leaf in leaves.items()}
  moments = {f"opt/0/mu/{name}": leaf * 0 for name, leaf in leaves.items()}
  return {**state, **moments, "opt/step": np.int32(7)}


def old_optimizer(leaves):
  state = {f"opt/target/{name}": leaf for name, leaf in leaves.items()}
  return {**state, "opt/state/step": np.int32(7)}


def old_position(leaves):
  table = leaves.pop("pos_embedding")
  return {**leaves, "Transformer/pos_embedding": table}


@pytest.mark.parametrize(
  "age",
  [
    combine_class_token,
    old_block_names,
    training_state,
    old_optimizer,
    old_position,
    fitting.stack,
  ],
)
def test_big_visions_history(tmp_path, age):
  fields = MODELS["deit"]
  params = drawn.params(**fields)
  np.savez(tmp_path / "w.npz", **age(flat(params)))
  got = weights.load(tmp_path / "w.npz", num_classes=5, **fields)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), got, params
  )


def test_an_inlined_map_head(tmp_path):
  fields = dict(MODELS["big_vision"], pool_type="map")
  params = drawn.params(**fields)
  leaves = {k.removeprefix("MAPHead_0/"): v for k, v in flat(params).items()}
  np.savez(tmp_path / "w.npz", **leaves)
  got = weights.load(
    tmp_path / "w.npz", num_classes=5, image_size=SIZE, **fields
  )
  assert_same(got, params)


@pytest.mark.parametrize("file", ["w.safetensors", "w.npz"])
def test_a_url_is_read_as_a_path_is(tmp_path, file):
  params = drawn.params(**MODELS["deit"])
  weights.save(tmp_path / file, params, format="flat", **MODELS["deit"])
  url = f"file://{tmp_path / file}"
  assert_same(weights.load(url, num_classes=5, **MODELS["deit"]), params)
  with pytest.raises(ValueError, match="got no such file or folder"):
    weights.load(url + "x", num_classes=5, **MODELS["deit"])


def test_whether_a_file_holds_parameters_already(tmp_path):
  fields = MODELS["deit"]
  params = drawn.params(**fields)
  path = str(tmp_path / "w.safetensors")
  assert not saving.holds(path, params)
  weights.save(path, params, format="flat", **fields)
  assert saving.holds(path, params)
  other = jax.tree.map(np.copy, params)
  other["head"]["bias"][0] += 1
  assert not saving.holds(path, other)
  with open(path, "r+b") as file:
    file.truncate(1000)
  assert not saving.holds(path, params)


def test_a_flat_file_states_its_model(tmp_path):
  fields = MODELS["deit3"]
  params = drawn.params(**fields)
  path = tmp_path / "w.safetensors"
  weights.save(path, params, format="flat", drop_path=0.1, **fields)
  said = resolve.stated(path)
  assert dict(said.fields, variant=said.variant) == fields
  assert (said.image_size, said.preprocess) == ((SIZE, SIZE), None)
  images = preprocess.Preprocess((SIZE, SIZE), 40, (0.1,) * 3, (0.2,) * 3)
  names = ["Öl", '"b"', "c", "d", "e"]
  weights.save(
    path, params, format="flat", preprocess=images, class_names=names, **fields
  )
  said = resolve.stated(path)
  assert said.preprocess == images
  assert said.class_names == tuple(names)
  np.savez(tmp_path / "w.npz", **flat(params))
  assert resolve.stated(tmp_path / "w.npz") == resolve.Stated()


@pytest.mark.parametrize(
  "fields, words",
  [
    (MODELS["distilled"], "distillation token"),
    (MODELS["registers"], "registers"),
  ],
)
def test_big_vision_has_no_such_tokens(tmp_path, fields, words):
  with pytest.raises(ValueError, match=words):
    weights.save(
      tmp_path / "w.npz",
      drawn.params(**fields),
      format="big_vision",
      **fields,
    )
  assert not list(tmp_path.iterdir())


def test_parameters_of_another_variant_are_not_written(tmp_path):
  params = drawn.params(**MODELS["deit"])
  with pytest.raises(ValueError, match=r"lacks.*encoderblock_2"):
    weights.save(
      tmp_path / "w.npz", params, variant="deit_pico_patch4_28", format="flat"
    )
  assert not list(tmp_path.iterdir())


def test_without_torch_a_pth_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
    archive.writestr("w/data.pkl", b"")
  with pytest.raises(ValueError, match=r"needs PyTorch.*safetensors"):
    weights.load(tmp_path / "w.pth", variant="S/16", num_classes=5)


def test_weights_that_are_not_there(tmp_path):
  with pytest.raises(ValueError, match="got no such file or folder"):
    resolve.stated(tmp_path / "typo.npz")
