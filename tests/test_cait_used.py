"""A CaiT read, scored, converted and taught from, as a ViT is."""

import contextlib
import dataclasses
import json

import drawn
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
from small_vit import flat

from vitkd_jax import convert, weights
from vitkd_jax.cluster import sharding
from vitkd_jax.data import datasets
from vitkd_jax.evaluation import scoring
from vitkd_jax.models import cait, variants
from vitkd_jax.runs import students
from vitkd_jax.training import experiment
from vitkd_jax.weights import rules, timm

C = 10
NAME = "cait_pico"  # ours, for these tests alone
# timm's arguments for it, and ours.
ARGUMENTS = dict(patch_size=7, embed_dim=36, depth=3, num_heads=3)
FIELDS = dict(patch_size=(7, 7), width=36, depth=3, num_heads=3)


@pytest.fixture(autouse=True)
def named(monkeypatch):
  """A variant for images of 28 px, of a grid as the tiny student's."""
  real = variants.get("cait_s24_224")
  fields = real.fields | FIELDS
  small = dataclasses.replace(real, name=NAME, fields=fields, image_size=28)
  monkeypatch.setitem(variants.NAMED, NAME, small)


@pytest.fixture
def params():
  # LayerScale as large as a trained one, so that each block counts.
  return drawn.params(C, variant=NAME, deviation=0.2)


def timms(params):
  """The leaves as timm and the authors name them."""
  leaves = rules.to_theirs(timm.CAIT_RULES, flat(params))
  for name in [n for n in leaves if n.endswith(".gamma")]:
    own = name.replace(".ls1.gamma", ".gamma_1").replace(
      ".ls2.gamma", ".gamma_2"
    )
    leaves[own] = leaves.pop(name)
  return {name: np.ascontiguousarray(leaf) for name, leaf in leaves.items()}


@pytest.fixture
def file(tmp_path, params):
  path = tmp_path / "cait.safetensors"
  safetensors_numpy.save_file(timms(params), path)
  return path


def load(path, **options):
  return weights.load(path, **dict(variant=NAME, num_classes=C) | options)


def equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_names_are_timm_s(params):
  """Those of timm's models/cait.py; `tests/parity` runs its models."""
  layers = ["norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"]
  talking = ["attn.qkv", "attn.proj_l", "attn.proj_w"]
  names = {"cls_token", "pos_embed"}
  modules = ["patch_embed.proj", "norm", "head"]
  for kind, count, own in (
    ("blocks", 3, talking),
    ("blocks_token_only", 2, ["attn.q", "attn.k", "attn.v"]),
  ):
    for i in range(count):
      modules += [f"{kind}.{i}.{layer}" for layer in layers + own]
      names |= {f"{kind}.{i}.gamma_1", f"{kind}.{i}.gamma_2"}
  names |= {f"{module}.{x}" for module in modules for x in ("weight", "bias")}
  assert timms(params).keys() == names


def test_a_file_of_timm_is_read(file, params):
  equal(load(file), params)
  scanned = load(file, scan=True)
  _, stacked = cait.Model(C, variant=NAME).quick_to_compile(params)
  equal(scanned, stacked)


def test_a_head_is_dropped_cut_or_new(file, params):
  features = load(file, num_classes=None)
  assert features.keys() == params.keys() - {"head"}
  cut = load(file, num_classes=2, classes=(7, 3))
  np.testing.assert_array_equal(
    cut["head"]["bias"], params["head"]["bias"][[7, 3]]
  )
  new = load(file, num_classes=4, head="init")
  assert new["head"]["kernel"].shape == (36, 4)


def test_the_position_embedding_is_resized_and_the_token_stays(file, params):
  found = students.load(file, variant=NAME, num_classes=C, image_size=(42, 56))
  assert found.params["pos_embedding"].shape == (1, 48, 36)
  np.testing.assert_array_equal(found.params["cls"], params["cls"])
  assert [n for n in found.notes if "from 4x4 to 6x8" in n]


@pytest.mark.parametrize(
  ("change", "match"),
  [
    (
      lambda x: x.pop("blocks.1.attn.proj_w.bias"),
      r"lacks 'blocks.1.attn.proj_w.bias'",
    ),
    (
      lambda x: x.update({"blocks.2.attn.proj_l.weight": np.zeros((3, 2))}),
      r"proj_l.weight' .*: expected shape \(3, 3\), got \(3, 2\)",
    ),
    (
      lambda x: x.update({"blocks_token_only.2.gamma_1": np.zeros(36)}),
      r"the model lacks 'classblock_2/layerscale_sa'",
    ),
    (
      lambda x: x.update(cls_token=np.zeros((1, 1, 8))),
      r"'cls_token' .*: expected shape \(1, 1, 36\)",
    ),
  ],
  ids=["missing", "shape", "another block", "token"],
)
def test_what_does_not_fit_is_named(tmp_path, params, change, match):
  leaves = timms(params)
  change(leaves)
  safetensors_numpy.save_file(leaves, tmp_path / "bad.safetensors")
  with pytest.raises(ValueError, match=match) as error:
    load(tmp_path / "bad.safetensors")
  assert "\n" not in str(error.value)


def test_weights_of_the_other_architecture_are_refused(file, tmp_path):
  with pytest.raises(ValueError, match=r"of a ViT .* got those of a CaiT"):
    load(file, variant="deit_pico_patch4_28")
  fields = dict(variant="deit_pico_patch4_28")
  for format in ("timm", "huggingface"):
    folder = tmp_path / format
    weights.save(folder, drawn.params(C, **fields), format=format, **fields)
    with pytest.raises(ValueError, match=r"of a CaiT .* got those of a ViT"):
      load(folder)


@pytest.mark.parametrize("arguments", [{}, ARGUMENTS])
def test_a_folder_states_its_model(file, params, arguments, tmp_path):
  folder = tmp_path / "folder"
  folder.mkdir()
  file.rename(folder / "model.safetensors")
  config = {
    "architecture": NAME,
    "num_classes": C,
    "global_pool": "token",
    "pretrained_cfg": {"crop_pct": 1.0, "input_size": [3, 28, 28]},
    "model_args": arguments and dict(arguments, global_pool="token"),
  }
  path = folder / "config.json"
  path.write_text(json.dumps(config))
  found = scoring.load(str(folder), datasets.info("fashion_mini"))
  assert isinstance(found.model, cait.CaiT)
  equal(found.params, params)
  assert found.images.mean == variants.IMAGENET_MEAN_STD[0]
  config["model_args"] = {"global_pool": "avg"}
  path.write_text(json.dumps(config))
  with pytest.raises(
    ValueError, match="not supported: a CaiT with global_pool"
  ):
    scoring.load(str(folder), datasets.info("fashion_mini"))


def test_it_is_scored(file, params):
  info = datasets.info("fashion_mini")
  scored = scoring.load(str(file), info, variant=NAME)
  source = datasets.load("fashion_mini", "test[:24]")
  found = scoring.evaluate(scored, source, info, batch_size=24)
  image = np.stack([np.asarray(source[i]["image"]) for i in range(24)])
  mean, std = (np.float32(x) for x in variants.IMAGENET_MEAN_STD)
  logits, _ = jax.jit(cait.Model(C, variant=NAME).apply)(
    {"params": params}, (np.float32(image) / 255 - mean) / std
  )
  label = np.array([source[i]["label"] for i in range(24)])
  assert found["count"] == 24
  assert found["top1"] == np.mean(np.argmax(logits, -1) == label)


def test_it_is_converted_to_a_flat_file_and_back(
  file, params, tmp_path, capsys
):
  path = str(tmp_path / "flat.safetensors")
  options = convert.Options(
    input=str(file), output=path, to="flat", variant=NAME
  )
  convert.convert(options)
  said = capsys.readouterr().out
  assert "the file read back: max |difference| 0.0e+00" in said
  equal(load(path), params)
  again = convert.Options(
    input=path, output=str(tmp_path / "again.npz"), to="flat"
  )  # of a file that states its model
  convert.convert(again)
  equal(load(tmp_path / "again.npz"), params)
  with pytest.raises(ValueError, match="'flat' or 'stablehlo' for cait_pico"):
    convert.convert(
      dataclasses.replace(options, output=str(tmp_path / "out"), to="timm")
    )
  assert not (tmp_path / "out").exists()


def teach(config, file):
  config.teachers.teacher = dict(
    weights=str(file), variant=NAME, dtype="float32"
  )
  config.methods = dict(
    kl={}, spectral=dict(blocks=(0, -1)), manifold=dict(blocks=(-1,)), srrl={}
  )
  return config


def test_it_teaches_maps_and_logits(tiny_config, file, params):
  config = teach(tiny_config, file)
  parts = experiment.build(config, devices=jax.devices()[:1])
  teacher = parts.objective.teachers["teacher"]
  assert teacher.stats == variants.IMAGENET_MEAN_STD
  assert teacher.side.num_prefix_tokens == 0
  assert teacher.side.depth == 3
  image = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
  view = parts.objective.teacher_views(
    parts.teacher_params, np.float32(image) / 255
  )["teacher"]
  mean, std = (np.float32(x) for x in variants.IMAGENET_MEAN_STD)
  logits, out = jax.jit(cait.Model(C, variant=NAME).apply)(
    {"params": params}, (np.float32(image) / 255 - mean) / std
  )
  for got, expected in (
    (view.logits, logits),
    (view.pooled, out["head_input"]),
    (view.map(-1), out["encoder"]["block02"]["+mlp"]),
    (view.map(0), out["encoder"]["block00"]["+mlp"]),
  ):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
  state, step = drawn.state(parts), parts.make_train_step()
  with contextlib.closing(parts.inputs.train(0)) as batches:
    batch = sharding.global_batch(next(batches), parts.mesh)
    _, report = step(state, parts.teacher_params, batch)
  assert not report["bad"].any()


@pytest.mark.parametrize(
  ("methods", "match"),
  [
    (dict(regress=dict(tap="cls")), "expected a teacher with a CLS token"),
    (dict(relation={}), "whose query, key and value can be read, got one wit"),
  ],
)
def test_what_it_does_not_show_is_refused(tiny_config, file, methods, match):
  config = teach(tiny_config, file)
  config.methods = methods
  with pytest.raises(ValueError, match=match):
    experiment.build(config)


def test_it_is_no_student(tiny_config):
  tiny_config.student = dict(variant=NAME)
  with pytest.raises(ValueError, match="a CaiT can be a teacher and be evalua"):
    experiment.build(tiny_config)
