"""Live: every family from the peer to ours and back into the peer."""

import pickle

import drawn
import jax
import numpy as np
import pytest
import timm
import torch
import transformers

from peers import families, make_golden, peers
from vitkd_jax import weights
from vitkd_jax.models import variants, vit
from vitkd_jax.weights import loading, mmpretrain, processors, rules
from vitkd_jax.weights import timm as timm_format


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


def random_peer(name):
  model = peers.build(name)
  peers.randomise(name, model)
  return model


def write(name, model, folder):
  """The file as the family comes: `.pth`, or a folder of transformers."""
  family = families.FAMILIES[name]
  arrays = peers.state(name, model, folder)
  if family.format == "huggingface":
    return folder
  tensors = {leaf: torch.from_numpy(a) for leaf, a in arrays.items()}
  key = "state_dict" if "mm" in name or "distiller" in name else "model"
  path = folder / "w.pth"
  torch.save(
    {key: tensors, "epoch": 3} if key != "model" else {key: tensors}, path
  )
  return path


def load(path, family):
  return weights.load(
    path,
    num_classes=family.num_classes,
    image_size=families.SIZE,
    **family.model,
  )


@pytest.mark.parametrize("name", families.FAMILIES)
def test_there(tmp_path, name):
  family = families.FAMILIES[name]
  model = random_peer(name)
  params = load(write(name, model, tmp_path), family)
  want = peers.outputs(model)
  ours = vit.Model(family.num_classes, **family.model)
  logits, out = jax.jit(ours.apply)({"params": params}, families.image())
  np.testing.assert_allclose(out["encoded"], want["tokens"], atol=1e-4, rtol=0)
  if not family.headless:
    np.testing.assert_allclose(logits, want["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
  "name", [n for n in families.FAMILIES if n != "timm_augreg_pre_logits"]
)
def test_and_back_again(tmp_path, name):
  family = families.FAMILIES[name]
  model = random_peer(name)
  params = load(write(name, model, tmp_path), family)
  if family.format in ("mmpretrain", "distiller"):
    from flax import traverse_util

    leaves = traverse_util.flatten_dict(params, sep="/")
    if family.variant.startswith("deit_"):
      prefix = np.zeros((1, 2 if "distilled" in name else 1, 8), np.float32)
      leaves["pos_embedding"] = np.concatenate(
        [prefix, leaves["pos_embedding"]], axis=1
      )
    filled = rules.to_theirs(mmpretrain.RULES, leaves)
    again = peers.build(name)
    start = "student." if family.format == "distiller" else ""
    make_golden.load(
      name, again, {start + leaf: np.array(a) for leaf, a in filled.items()}
    )
  else:
    format = "huggingface" if family.format == "huggingface" else "timm"
    weights.save(tmp_path / "out", params, format=format, **family.model)
    again = from_folder(format, tmp_path / "out", family)
  want, got = peers.outputs(model), peers.outputs(again)
  assert got.keys() == want.keys()
  for key in want:
    np.testing.assert_allclose(got[key], want[key], atol=1e-4, rtol=0)


def from_folder(format, folder, family):
  if format == "timm":
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
  config = transformers.AutoConfig.from_pretrained(folder)
  options = {"add_pooling_layer": False} if family.peer == "ViTModel" else {}
  model, info = getattr(transformers, config.architectures[0]).from_pretrained(
    folder, output_loading_info=True, **options
  )
  assert not info["missing_keys"], info
  assert not info["unexpected_keys"], info
  return model.eval()


@pytest.mark.parametrize("format", ["timm", "huggingface"])
def test_a_fixed_position_embedding_is_written_out(tmp_path, format):
  fields = dict(
    variant="S/16", posemb="sincos2d", pool_type="tok", **families.SMALL
  )
  params = random_params(fields)
  weights.save(
    tmp_path, params, format=format, image_size=families.SIZE, **fields
  )
  got = peers.outputs(
    from_folder(format, tmp_path, families.FAMILIES["timm_deit"])
  )
  logits, _ = jax.jit(vit.Model(3, **fields).apply)(
    {"params": params}, families.image()
  )
  np.testing.assert_allclose(got["logits"], logits, atol=1e-4, rtol=0)


def test_layerscale_is_folded_for_transformers(tmp_path):
  fields = families.FAMILIES["timm_deit3"].model | {"layerscale_init": 0.3}
  params = random_params(fields)
  weights.save(tmp_path, params, format="huggingface", **fields)
  got = peers.outputs(
    from_folder("huggingface", tmp_path, families.FAMILIES["hf_vit"])
  )
  logits, _ = jax.jit(vit.Model(3, **fields).apply)(
    {"params": params}, families.image()
  )
  np.testing.assert_allclose(got["logits"], logits, atol=1e-4, rtol=0)


def random_params(fields):
  return drawn.params(3, image_size=families.SIZE, **fields)


def test_transformers_prepares_images_as_said(tmp_path):
  fields = families.FAMILIES["timm_deit"].model
  weights.save(tmp_path, random_params(fields), format="huggingface", **fields)
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
  pixels = np.random.RandomState(0).randint(0, 256, (31, 31, 3), np.uint8)
  got = processor(pixels, return_tensors="np")["pixel_values"]
  # 28 / 0.9 = 31: no resize, and a crop of the middle (from row 1, or 2).
  mean, std = variants.IMAGENET_MEAN_STD
  whole = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
  crops = [whole[:, i : i + 28, i : i + 28] for i in (1, 2)]
  assert min(np.abs(got[0] - crop).max() for crop in crops) < 1e-4


def test_the_zoo_is_timms():
  for name, variant in variants.NAMED.items():
    for tag in variant.published:
      known = timm.get_pretrained_cfg(f"{name}.{tag}")
      ours = variants.get(f"{name}.{tag}")
      assert known.input_size == (3, ours.image_size, ours.image_size), name
      assert known.interpolation == ours.interpolation, name
      assert known.crop_pct == ours.crop_pct, f"{name}.{tag}"
      assert (known.mean, known.std) == (ours.mean, ours.std), f"{name}.{tag}"


@pytest.mark.parametrize("name", variants.NAMED)
def test_our_arguments_build_timms_model(name):
  variant = variants.NAMED[name]
  if not variant.published:
    pytest.skip("not timm's")
  if variant.family != "ViT":
    pytest.skip("never written for timm")
  images = processors.published(variant)
  with torch.device("meta"):
    plain = timm.create_model(name, num_classes=7)
    config = timm_format.config(vit.Model(7, variant=name), variant, images)
    built = timm.create_model(
      config["architecture"], num_classes=7, **config["model_args"]
    )
  shapes = [
    {leaf: tuple(t.shape) for leaf, t in model.state_dict().items()}
    for model in (plain, built)
  ]
  differ = {
    k for k in shapes[0] | shapes[1] if shapes[0].get(k) != shapes[1].get(k)
  }
  assert not differ


class Malice:
  def __reduce__(self):
    return (print, ("executed",))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_not_executed(tmp_path, capsys, legacy):
  path = tmp_path / "w.pth"
  torch.save(
    {"model": {"a": torch.ones(2)}, "args": Malice()},
    path,
    _use_new_zipfile_serialization=not legacy,
  )
  with pytest.raises(ValueError, match="never executed"):
    weights.load(path, variant="S/16", num_classes=3)
  path.write_bytes(pickle.dumps(Malice()))
  with pytest.raises(ValueError, match=r"never executed|damaged"):
    weights.load(path, variant="S/16", num_classes=3)
  assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_pth(tmp_path, share, legacy):
  path = tmp_path / "w.pth"
  tensors = random_peer("timm_deit").state_dict()
  torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
  content = path.read_bytes()
  path.write_bytes(content[: int(len(content) * share)])
  with pytest.raises(ValueError, match="truncated or damaged"):
    weights.load(path, variant="deit_tiny_patch16_224", num_classes=3)


def test_half_precision_pth_and_what_format_it_was(tmp_path):
  name = "timm_deit"
  tensors = random_peer(name).state_dict()
  path = tmp_path / "w.pth"
  torch.save({k: v.to(torch.bfloat16) for k, v in tensors.items()}, path)
  family = families.FAMILIES[name]
  loaded = loading.load_with_notes(
    path, num_classes="file", image_size=families.SIZE, **family.model
  )
  assert (loaded.format, loaded.num_classes) == ("timm", 5)
  np.testing.assert_array_equal(
    loaded.params["embedding"]["bias"],
    tensors["patch_embed.proj.bias"].to(torch.bfloat16).float().numpy(),
  )
