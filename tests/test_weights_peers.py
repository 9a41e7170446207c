"""Files of every family against stored outputs of the peers' own models.

`peers/make_golden.py` wrote the names, shapes and outputs with timm and
transformers; the live comparison is in tests/peers.
"""

import json

import jax
import numpy as np
from peers import families
import pytest
from safetensors import numpy as safetensors_numpy

from vitkd_jax import weights
from vitkd_jax.models import posemb, vit
from vitkd_jax.weights import loading, mmpretrain, rules

SHAPES = families.shapes()
EXPECTED = families.expected()


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


def load(path, family, **changes):
  arguments = dict(
    family.model, num_classes=family.num_classes, image_size=families.SIZE
  )
  return weights.load(path, **{**arguments, **changes})


def write(tmp_path, name, **changes):
  arrays = families.fill(name, SHAPES[name]) | changes
  arrays = {leaf: a for leaf, a in arrays.items() if a is not None}
  path = tmp_path / "w.safetensors"
  safetensors_numpy.save_file(arrays, path)
  return path


@pytest.mark.parametrize("name", families.FAMILIES)
def test_tokens_and_logits_are_the_peers(tmp_path, name):
  family = families.FAMILIES[name]
  params = load(write(tmp_path, name), family)
  model = vit.Model(family.num_classes, **family.model)
  logits, out = jax.jit(model.apply)({"params": params}, families.image())
  want = EXPECTED[f"{name}/tokens"]
  np.testing.assert_allclose(out["encoded"], want, atol=1e-4, rtol=0)
  if not family.headless:
    want = EXPECTED[f"{name}/logits"]
    np.testing.assert_allclose(logits, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
  "name",
  [
    name
    for name, family in families.FAMILIES.items()
    if family.format in ("timm", "huggingface")
    and name not in ("timm_augreg_pre_logits", "hf_deit_one_head")
  ],
)
def test_written_leaves_are_the_peers(tmp_path, name):
  family = families.FAMILIES[name]
  params = load(write(tmp_path, name), family)
  weights.save(tmp_path / "out", params, format=family.format, **family.model)
  got = safetensors_numpy.load_file(tmp_path / "out" / "model.safetensors")
  shapes = {
    leaf: shape
    for leaf, shape in SHAPES[name].items()
    if not leaf.startswith("pooler")
  }
  assert {leaf: list(a.shape) for leaf, a in got.items()} == shapes
  again = load(tmp_path / "out", family)
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_mmpretrain_names_come_back(tmp_path):
  family = families.FAMILIES["mmpretrain_deit3"]
  source = families.fill("mmpretrain_deit3", SHAPES["mmpretrain_deit3"])
  loaded = load(write(tmp_path, "mmpretrain_deit3"), family)
  leaves = {
    "/".join(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(loaded)[0]
  }
  got = rules.to_theirs(mmpretrain.RULES, leaves)
  assert got.keys() == source.keys()
  for leaf, array in got.items():
    np.testing.assert_array_equal(array, source[leaf], err_msg=leaf)


def test_a_distillers_teacher_and_helpers_are_left_out(tmp_path):
  name = "distiller_deit"
  path = write(
    tmp_path,
    name,
    **{
      "teacher.backbone.cls_token": np.ones(3, np.float32),
      "distill_losses.loss_vitkd.mask_token": np.ones(3, np.float32),
    },
  )
  family = families.FAMILIES[name]
  loaded = loading.load_with_notes(
    path,
    num_classes=families.NUM_CLASSES,
    image_size=families.SIZE,
    **family.model,
  )
  assert "distill_losses.loss_vitkd.mask_token" in loaded.notes[1]
  assert loaded.format == "mmpretrain"


@pytest.mark.parametrize(
  "name", ["timm_deit3", "mmpretrain_deit", "hf_deit", "hf_dinov2_registers"]
)
def test_every_leaf_is_needed_and_no_other_taken(tmp_path, name):
  family = families.FAMILIES[name]
  leaf = next(
    leaf
    for leaf in SHAPES[name]
    if "1.norm" in leaf or ".ln" in leaf or "layernorm_before" in leaf
  )
  with pytest.raises(ValueError, match=leaf.partition("layer")[2] or "norm"):
    load(write(tmp_path, name, **{leaf: None}), family)
  extra = {"blocks.7.extra": np.ones(3, np.float32)}
  with pytest.raises(ValueError, match=r"the model lacks 'blocks\.7\.extra'"):
    load(write(tmp_path, name, **extra), family)


def test_a_pre_logits_layer_is_not_lost(tmp_path):
  family = families.FAMILIES["timm_augreg_pre_logits"]
  path = write(tmp_path, "timm_augreg_pre_logits")
  with pytest.raises(ValueError, match=r"the model lacks 'pre_logits/bias'"):
    load(path, family, rep_size=False)
  params = load(path, family, rep_size=False, num_classes=None)
  assert "pre_logits" not in params
  params = load(path, family)
  with pytest.raises(ValueError, match="timm has no model with rep_size"):
    weights.save(tmp_path / "out", params, format="timm", **family.model)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["timm", "big_vision"])
def test_an_epsilon_that_a_format_cannot_say_is_not_lost(tmp_path, format):
  family = families.FAMILIES["timm_deit"]
  fields = family.model | {"norm_eps": 1e-5}
  params = load(write(tmp_path, "timm_deit"), family)
  with pytest.raises(ValueError, match=f"all models of {format}, got 1e-05"):
    weights.save(tmp_path / "out.npz", params, format=format, **fields)
  weights.save(tmp_path / "hf", params, format="huggingface", **fields)
  config = json.loads((tmp_path / "hf" / "config.json").read_text())
  assert config["layer_norm_eps"] == 1e-5


def test_a_stated_gelu_is_held_to(tmp_path):
  name = "hf_vit"
  family = families.FAMILIES[name]
  params = load(write(tmp_path, name), family)
  weights.save(tmp_path / "out", params, format="huggingface", **family.model)
  with pytest.raises(ValueError, match="hidden_act='gelu'"):
    load(tmp_path / "out", family, gelu="tanh")


def test_heads_are_kept_cut_dropped_or_renewed(tmp_path):
  family = families.FAMILIES["timm_distilled"]
  path = write(tmp_path, "timm_distilled")
  whole = load(path, family)
  cut = load(path, family, num_classes=2, classes=[3, 1])
  for head in ("head", "head_dist"):
    np.testing.assert_array_equal(
      cut[head]["kernel"], whole[head]["kernel"][:, [3, 1]]
    )
    np.testing.assert_array_equal(
      cut[head]["bias"], whole[head]["bias"][[3, 1]]
    )
  assert "head" not in load(path, family, num_classes=None)
  fresh = load(path, family, num_classes=7, head="init")
  assert fresh["head"]["kernel"].shape == (8, 7)
  assert not fresh["head"]["bias"].any()
  with pytest.raises(ValueError, match=r"\(8, 7\) for 7 classes, got \(8, 5\)"):
    load(path, family, num_classes=7)
  with pytest.raises(
    ValueError, match=r"distinct classes in \[0, 5\), got \[5\]"
  ):
    load(path, family, num_classes=1, classes=[5])


@pytest.mark.parametrize("name", ["timm_distilled", "timm_deit3"])
def test_position_embeddings_are_resized_and_said(tmp_path, name):
  family = families.FAMILIES[name]
  loaded = loading.load_with_notes(
    write(tmp_path, name),
    num_classes=families.NUM_CLASSES,
    image_size=(28, 42),
    **family.model,
  )
  native = load(write(tmp_path, name), family)
  want = posemb.resize_posemb(native["pos_embedding"], (4, 6))
  np.testing.assert_array_equal(loaded.params["pos_embedding"], want)
  np.testing.assert_array_equal(loaded.params["cls"], native["cls"])
  assert "4x4 to 4x6" in loaded.notes[0]


def test_position_embeddings_of_no_grid(tmp_path):
  table = np.ones((1, 15, 8), np.float32)
  path = write(tmp_path, "timm_deit", pos_embed=table)
  with pytest.raises(ValueError, match=r"square grid and up to .*, got 15"):
    load(path, families.FAMILIES["timm_deit"])
