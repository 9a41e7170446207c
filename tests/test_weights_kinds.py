"""Checkpoints as users have them: wrapped names, other heads, other kinds."""

import json
import re

import drawn
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from vitkd_jax import weights
from vitkd_jax.models import vit
from vitkd_jax.weights import loading, resolve

SIZE = 28
SMALL = dict(width=8, depth=2, num_heads=2, mlp_dim=32, patch_size=(7, 7))
DEIT = dict(variant="deit_tiny_patch16_224", **SMALL)
OPTIONS = dict(num_classes=5, image_size=SIZE)


def theirs(folder, format="timm", seed=0, **fields):
  """The leaves of a file of another library, by their names."""
  fields = fields or DEIT
  params = drawn.params(seed=seed, **fields)
  path = folder / f"{format}.{seed}.safetensors"
  weights.save(path, params, format=format, image_size=SIZE, **fields)
  return safetensors_numpy.load_file(path)


def load(folder, leaves, **changes):
  path = folder / "w.safetensors"
  safetensors_numpy.save_file(leaves, path)
  return loading.load_with_notes(path, **{**DEIT, **OPTIONS, **changes})


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def prefixed(leaves, prefix):
  return {prefix + name: array for name, array in leaves.items()}


@pytest.mark.parametrize("format", ["timm", "huggingface"])
@pytest.mark.parametrize(
  "prefix",
  [
    "module.",
    "model.",
    "backbone.",
    "ema.",
    "student.",
    "teacher.backbone.",
    "model.visual.trunk.",
  ],
)
def test_a_prefix_is_left_off_and_said(tmp_path, format, prefix):
  leaves = prefixed(theirs(tmp_path, format), prefix)
  leaves["loss.weight"] = np.ones(3, np.float32)
  loaded = load(tmp_path, leaves)
  assert_same(loaded.params, drawn.params(**DEIT))
  assert f"prefix {prefix!r}" in loaded.notes[0]
  assert "part of another model: 'loss.weight'" in loaded.notes[1]


def test_compiled_and_sharded_models_names(tmp_path):
  leaves = {
    name.replace("blocks.1.", "_fsdp_wrapped_module.blocks.1._orig_mod."): array
    for name, array in theirs(tmp_path).items()
  }
  assert_same(load(tmp_path, leaves).params, drawn.params(**DEIT))
  assert_same(
    load(tmp_path, prefixed(leaves, "module._orig_mod.")).params,
    drawn.params(**DEIT),
  )


def test_chunked_blocks_as_dinov2_has_them(tmp_path):
  leaves = {
    re.sub(r"^blocks\.(\d)\.", r"blocks.\1.\1.", name): array
    for name, array in theirs(tmp_path).items()
  }
  assert any(name.startswith("blocks.1.1.") for name in leaves)
  assert_same(load(tmp_path, leaves).params, drawn.params(**DEIT))


@pytest.mark.parametrize(
  "student, average",
  [
    ("", "ema."),
    ("student.backbone.", "teacher.backbone."),
    ("model.", "model_ema."),
  ],
)
def test_of_two_models_in_a_file_one_is_meant(tmp_path, student, average):
  leaves = prefixed(theirs(tmp_path, seed=1), student)
  leaves |= prefixed(theirs(tmp_path, seed=2), average)
  loaded = load(tmp_path, leaves)
  assert_same(loaded.params, drawn.params(seed=1, **DEIT))
  assert f"--which ema reads the model under {average!r}" in loaded.notes
  for which, seed in (("student", 1), ("ema", 2)):
    loaded = load(tmp_path, leaves, which=which)
    assert_same(loaded.params, drawn.params(seed=seed, **DEIT))


def test_two_students_are_refused(tmp_path):
  leaves = prefixed(theirs(tmp_path), "a.") | prefixed(theirs(tmp_path), "b.")
  with pytest.raises(ValueError, match=r"got several, under 'a\.', 'b\.'"):
    load(tmp_path, leaves)
  with pytest.raises(ValueError, match="a moving average beside the student"):
    load(tmp_path, theirs(tmp_path), which="ema")


def test_names_that_become_one(tmp_path):
  leaves = theirs(tmp_path) | prefixed(theirs(tmp_path), "_orig_mod.")
  with pytest.raises(ValueError, match="differ only in a wrapper"):
    load(tmp_path, leaves)


@pytest.mark.parametrize(
  "drop, add, words",
  [
    (r"qkv.bias", None, "queries, keys and values have no bias"),
    (None, "blocks.0.attn.q_norm.weight", "normalises queries and keys"),
    (None, "norm_pre.weight", "as in CLIP"),
    (None, "blocks.0.attns.0.attn.qkv.weight", "parallel branches"),
    (None, "blocks.0.mlp.w12.weight", "SwiGLU"),
    (None, "blocks.0.attn.relative_position_bias_table", "BEiT"),
    (None, "blocks.0.attn.norm.weight", "norms of their own"),
  ],
)
def test_another_kind_of_vit_is_called_so(tmp_path, drop, add, words):
  leaves = {
    k: a for k, a in theirs(tmp_path).items() if not drop or drop not in k
  }
  if add:
    leaves[add] = np.ones(8, np.float32)
  with pytest.raises(ValueError, match=f"not supported: .*{words}") as error:
    load(tmp_path, leaves)
  assert "give the variant" not in str(error.value)


def test_a_packed_swiglu(tmp_path):
  leaves = theirs(tmp_path)
  for i in range(2):
    leaves[f"blocks.{i}.mlp.fc2.weight"] = np.ones((8, 16), np.float32)
  with pytest.raises(ValueError, match="not supported: SwiGLU"):
    load(tmp_path, leaves)


def folder(path, format, **config):
  """A folder of another library whose config.json says something else."""
  params = drawn.params(**DEIT)
  weights.save(path, params, format=format, image_size=SIZE, **DEIT)
  file = path / "config.json"
  said = json.loads(file.read_text())
  (said["model_args"] if format == "timm" else said).update(config)
  file.write_text(json.dumps(said))
  return path


@pytest.mark.parametrize(
  "format, config, fields",
  [
    ("timm", dict(num_heads=4), dict(num_heads=4)),
    ("timm", dict(act_layer="gelu_tanh"), dict(gelu="tanh")),
    ("huggingface", dict(num_attention_heads=1), dict(num_heads=1)),
    ("huggingface", dict(hidden_act="gelu_new"), dict(gelu="tanh")),
    ("huggingface", dict(layer_norm_eps=1e-5), dict(norm_eps=1e-5)),
  ],
)
def test_what_no_shape_tells_is_the_folder_s(tmp_path, format, config, fields):
  path = folder(tmp_path, format, **config)
  given = {k: v for k, v in DEIT.items() if k not in fields}
  loaded = loading.load_with_notes(path, **given, **OPTIONS)
  assert dict(loaded.fields, variant=DEIT["variant"]) == DEIT | fields
  (key, value), (name, ours) = *config.items(), *fields.items()
  assert loaded.notes == (
    f"{name}={ours!r}, as the file states {key}={value!r}",
  )
  # The caller of `load` builds the model: it must be that of the folder.
  with pytest.raises(ValueError, match=rf"{key}=.*give {name}="):
    weights.load(path, **DEIT, **OPTIONS)
  weights.load(path, **DEIT | fields, **OPTIONS)


def test_an_epsilon_below_what_float32_tells_is_taken_in_silence(tmp_path):
  path = folder(tmp_path, "huggingface", layer_norm_eps=1e-12)
  loaded = loading.load_with_notes(path, **DEIT, **OPTIONS)
  assert loaded.fields["norm_eps"] == 1e-12
  assert not loaded.notes
  weights.load(path, **DEIT, **OPTIONS)


@pytest.mark.parametrize(
  "format, config",
  [
    ("timm", dict(qk_norm=True)),
    ("timm", dict(qkv_bias=False)),
    ("timm", dict(act_layer="relu")),
    ("timm", dict(norm_layer="rmsnorm")),
    ("timm", dict(pre_norm=True)),
    ("huggingface", dict(hidden_act="quick_gelu")),
    ("huggingface", dict(hidden_act="relu")),
    ("huggingface", dict(qkv_bias=False)),
    ("huggingface", dict(use_swiglu_ffn=True)),
  ],
)
def test_what_the_model_cannot_do_is_refused_by_name(tmp_path, format, config):
  (name,) = config
  path = folder(tmp_path, format, **config)
  with pytest.raises(
    ValueError, match=rf"not supported: config\.json .*{name}"
  ):
    loading.load_with_notes(path, **DEIT, **OPTIONS)


@pytest.mark.parametrize(
  "config",
  [
    dict(num_attention_heads=[2]),
    dict(layer_norm_eps="1"),
    dict(num_attention_heads=10**6),
  ],
)
def test_odd_values_of_a_config_are_one_sentence(tmp_path, config):
  path = folder(tmp_path, "huggingface", **config)
  with pytest.raises(
    ValueError, match=r"config\.json: expected|num_heads=1000000"
  ):
    loading.load_with_notes(path, variant="deit_tiny_patch16_224", **OPTIONS)


def test_a_ratio_that_no_float_holds(tmp_path):
  path = folder(tmp_path, "timm", embed_dim=192, mlp_ratio=1e308)
  with pytest.raises(ValueError, match="finite numbers as embed_dim"):
    resolve.stated(path)


MAE = dict(DEIT, pool_type="gap", class_token=True, fc_norm=True)


def test_a_classifier_fine_tuned_from_mae(tmp_path):
  leaves = theirs(tmp_path, **MAE)
  assert "fc_norm.weight" in leaves
  assert "norm.weight" not in leaves
  assert leaves["pos_embed"].shape == (1, 17, 8)
  loaded = load(tmp_path, leaves)
  assert_same(loaded.params, drawn.params(**MAE))
  assert dict(loaded.fields, variant=MAE["variant"]) == MAE
  with pytest.raises(ValueError, match=r"fc_norm\.weight.*pool_type='gap'"):
    weights.load(tmp_path / "w.safetensors", **DEIT, **OPTIONS)
  with pytest.raises(ValueError, match="norm after the pooling"):
    weights.save(tmp_path / "w.npz", loaded.params, format="big_vision", **MAE)


def test_an_fc_norm_by_hand():
  params = drawn.params(**MAE)
  image = np.random.default_rng(3).normal(size=(2, SIZE, SIZE, 3))
  logits, out = jax.jit(vit.Model(5, **MAE).apply)({"params": params}, image)
  tokens = np.float64(out["pre_logits_2d"]).shape
  assert tokens == (2, 4, 4, 8)
  pooled = np.float64(out["encoder"]["pre_ln"])[:, 1:].mean(1)
  centred = pooled - pooled.mean(-1, keepdims=True)
  scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
  norm = params["fc_norm"]
  x = centred / scale * norm["scale"] + norm["bias"]
  want = x @ params["head"]["kernel"] + params["head"]["bias"]
  np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(out["encoded"], out["encoder"]["pre_ln"])
  assert "encoder_norm" not in params["Transformer"]


def test_the_epsilon_reaches_every_norm():
  fields = dict(DEIT, pool_type="map", norm_eps=0.5)
  params = drawn.params(**fields)
  image = np.ones((1, SIZE, SIZE, 3))
  text = str(
    jax.make_jaxpr(vit.Model(5, **fields).apply)({"params": params}, image)
  )
  assert text.count(" 0.5:f32[]") >= 6  # two a block, the last, the pooling's
  assert "1e-06" not in text
  assert "9.999999974752427e-07" not in text


def test_mae_s_decoder_is_left_out(tmp_path):
  leaves = theirs(tmp_path) | {"decoder_blocks.0.x": np.ones(2, np.float32)}
  loaded = load(tmp_path, leaves)
  assert "decoder_blocks.0.x" in loaded.notes[0]


def test_fields_of_the_pooling_that_disagree():
  for fields, words in (
    (dict(fc_norm=True), "needs pool_type='gap'"),
    (dict(class_token=False), "reads a CLS token"),
    (dict(norm_eps=-1), "norm_eps=-1"),
    (dict(class_token=1), "class_token=1"),
    (dict(layerscale_init=10**400), "a finite float32"),
    (dict(layerscale_init=1e39), "a finite float32"),
  ):
    with pytest.raises(ValueError, match=words):
      vit.Model(5, **DEIT, **fields)
