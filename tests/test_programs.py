"""Students as programs that run without this package: StableHLO and ONNX."""

import json
import sys

import drawn
import jax
import numpy as np
import pytest

from vitkd_jax import convert, weights
from vitkd_jax.data import preprocess
from vitkd_jax.models import backbones
from vitkd_jax.weights import compare, stablehlo, verify

SMALL = dict(width=16, depth=2, mlp_dim=32, num_heads=2, patch_size=(4, 4))
DEIT3 = dict(variant="deit3_small_patch16_224", **SMALL)
SIZE = (8, 12)
NAMES = ["Öl", "b|c", "d", "e", "f"]
# Between them, every way through a ViT.
KINDS = {
  "deit3": DEIT3,
  "distilled": dict(
    variant="deit_tiny_distilled_patch16_224", registers=2, **SMALL
  ),
  "map": dict(variant="S/16", pool_type="map", rep_size=True, **SMALL),
  "lift": dict(variant="S/16", lift=24, posemb="sincos2d", **SMALL),
  "wide": dict(variant="S/16", last_width=32, last_heads=4, **SMALL),
  "mae": dict(variant="S/16", class_token=True, fc_norm=True, **SMALL),
  "first": dict(variant="S/16", pool_type="0", **SMALL),
  "tokens": dict(variant="S/16", pool_type="none", **SMALL),
}
# An optional extra of the package.
needs_onnx = pytest.mark.skipif(
  "not __import__('importlib').util.find_spec('onnxruntime')",
  reason="onnxruntime is not installed: pip install '.[onnx]'",
)


def images(number):
  rng = np.random.default_rng(0)
  return rng.standard_normal((number, *SIZE, 3), np.float32)


def ours(params, fields, number, num_classes=5):
  model = backbones.make_model(num_classes, **fields)
  with jax.default_matmul_precision("highest"):
    out, _ = jax.jit(model.apply)({"params": params}, images(number))
  return np.asarray(out)


def written(tmp_path, to, fields, *, num_classes=5, **options):
  params = drawn.params(num_classes, image_size=SIZE, **fields)
  path = tmp_path / ("a.onnx" if to == "onnx" else "a")
  file = weights.save(
    path, params, format=to, image_size=SIZE, **fields, **options
  )
  return file, params


@pytest.mark.parametrize("number", [1, 3])
def test_a_program_takes_any_number_of_images(tmp_path, number):
  file, params = written(tmp_path, "stablehlo", DEIT3)
  got = stablehlo.outputs(file, images(number))
  np.testing.assert_allclose(got, ours(params, DEIT3, number), atol=1e-5)


def test_one_program_for_every_platform(tmp_path):
  file, _ = written(tmp_path, "stablehlo", DEIT3)
  with open(file, "rb") as opened:
    content = opened.read()
  made = jax.export.deserialize(bytearray(content))
  assert made.platforms == ("cpu", "cuda", "tpu")
  assert [str(aval) for aval in made.in_avals] == ["float32[batch,8,12,3]"]
  # Kernels of one machine would not be stable.
  assert "cudnn" not in made.mlir_module()
  assert b".py" not in content  # nor would paths


def test_a_program_of_a_cait(tmp_path):
  fields = dict(variant="cait_xxs24_224", **{**SMALL, "depth": 1})
  file, params = written(tmp_path, "stablehlo", fields)
  got = stablehlo.outputs(file, images(2))
  np.testing.assert_allclose(got, ours(params, fields, 2), atol=1e-5)


@needs_onnx
@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_computes_the_same(tmp_path, kind):
  import onnx

  fields = KINDS[kind]
  file, params = written(tmp_path, "onnx", fields)
  got = verify.of_program("onnx", file, images(3))
  np.testing.assert_allclose(got, ours(params, fields, 3), atol=2e-5)
  onnx.checker.check_model(file, full_check=True)  # types and shapes


@needs_onnx
def test_features_of_a_model_without_a_head(tmp_path):
  file, params = written(tmp_path, "onnx", DEIT3, num_classes=None)
  got = verify.of_program("onnx", file, images(2))
  assert got.shape == (2, 16)
  np.testing.assert_allclose(got, ours(params, DEIT3, 2, None), atol=2e-5)


@needs_onnx
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_onnx_rounds_the_parameters_alone(tmp_path, dtype):
  """It computes in float32, as onnxruntime has no bfloat16 on a CPU."""
  import ml_dtypes

  fields = dict(DEIT3, layerscale_init=None)
  file, params = written(tmp_path, "onnx", fields, dtype=dtype)
  kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
  rounded = jax.tree.map(lambda x: x.astype(kind).astype(np.float32), params)
  got = verify.of_program("onnx", file, images(2))
  np.testing.assert_allclose(got, ours(rounded, fields, 2), atol=2e-5)
  assert np.abs(got - ours(params, fields, 2)).max() > 1e-4


def test_bfloat16_is_the_dtype_of_a_program_s_products(tmp_path):
  file, params = written(tmp_path, "stablehlo", DEIT3, dtype="bfloat16")
  with open(file, "rb") as opened:
    made = jax.export.deserialize(bytearray(opened.read()))
  lines = made.mlir_module().splitlines()
  products = [line for line in lines if "stablehlo.dot_general" in line]
  # The head alone is float32: [B, 16] by [16, 5].
  wide = {line.partition(" : ")[2] for line in products if "bf16" not in line}
  assert len(products) > 10
  assert all("tensor<16x5xf32>" in types for types in wide), wide
  got, want = stablehlo.outputs(file, images(2)), ours(params, DEIT3, 2)
  assert got.dtype == np.float32
  assert 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()


IMAGES = preprocess.Preprocess(SIZE, 9, (0.1,) * 3, (0.2,) * 3, "bilinear")


@needs_onnx
def test_onnx_states_its_images_and_classes(tmp_path):
  import onnx

  file, _ = written(
    tmp_path, "onnx", DEIT3, preprocess=IMAGES, class_names=NAMES
  )
  model = onnx.load(file)
  said = {entry.key: entry.value for entry in model.metadata_props}
  assert preprocess.from_dict(json.loads(said["preprocess"])) == IMAGES
  assert json.loads(said["class_names"]) == NAMES
  assert said["variant"] == "deit3_small_patch16_224"
  assert said["input"].startswith("image [batch, 3, 8, 12] float32")
  assert said["output"] == "logits [batch, 5] float32"
  assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]


def test_a_program_s_folder_states_its_images_and_classes(tmp_path):
  written(tmp_path, "stablehlo", DEIT3, preprocess=IMAGES, class_names=NAMES)
  said = json.loads((tmp_path / "a" / "config.json").read_text())
  assert preprocess.from_dict(said["preprocess"]) == IMAGES
  assert said["class_names"] == NAMES
  assert said["input"].startswith("[batch, 8, 12, 3] float32")
  assert said["output"] == "[batch, 5] float32"
  assert said["platforms"] == ["cpu", "cuda", "tpu"]


@pytest.fixture
def flat(tmp_path):
  path = tmp_path / "student.safetensors"
  params = drawn.params(image_size=SIZE, **DEIT3)
  weights.save(path, params, format="flat", image_size=SIZE, **DEIT3)
  return path


def run(path, output, to, **options):
  return convert.convert(
    convert.Options(input=str(path), output=str(output), to=to, **options)
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  "to, said",
  [
    ("stablehlo", "the program read back"),
    pytest.param("onnx", "onnxruntime on the file written", marks=needs_onnx),
  ],
)
def test_convert_compares_what_it_wrote(
  tmp_path, flat, capsys, monkeypatch, to, said, dtype
):
  out = tmp_path / ("a.onnx" if to == "onnx" else "a")
  run(flat, out, to, dtype=dtype)
  assert f"check {said}: max |difference|" in capsys.readouterr().out
  if to == "stablehlo":
    assert "jax.export.deserialize" in (out / "README.md").read_text()
  # A program that computes something else is not called done.
  monkeypatch.setattr(
    compare.verify, "of_program", lambda *args: np.zeros((2, 5))
  )
  with pytest.raises(ValueError, match="differs from the model by"):
    run(flat, out, to, dtype=dtype)


@pytest.mark.parametrize(
  "to", ["stablehlo", pytest.param("onnx", marks=needs_onnx)]
)
def test_twice_the_same_is_the_same_bytes(tmp_path, to):
  contents = set()
  for name in ("first", "second"):
    (tmp_path / name).mkdir()
    file, _ = written(tmp_path / name, to, DEIT3)
    with open(file, "rb") as opened:
      contents.add(opened.read())
  assert len(contents) == 1


def test_onnx_is_missed_before_anything_is_read(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "onnx", None)
  with pytest.raises(ImportError, match=r"pip install 'vitkd-jax\[onnx\]'"):
    run(tmp_path / "nowhere", tmp_path / "a.onnx", "onnx")


def test_without_onnxruntime_nothing_is_compared(
  tmp_path, flat, capsys, monkeypatch
):
  pytest.importorskip("onnx", reason="onnx is not installed")
  monkeypatch.setitem(sys.modules, "onnxruntime", None)
  run(flat, tmp_path / "a.onnx", "onnx")
  assert "because onnxruntime is not installed" in capsys.readouterr().out


def test_refusals(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r"ends in \.onnx for format='onnx'"):
    run(tmp_path / "nowhere", tmp_path / "a", "onnx")
  cait = dict(variant="cait_xxs24_224", **{**SMALL, "depth": 1})
  monkeypatch.setitem(sys.modules, "onnx", sys)  # it is not asked
  with pytest.raises(ValueError, match="'flat' or 'stablehlo' for cait"):
    written(tmp_path, "onnx", cait)
  monkeypatch.setattr(stablehlo, "_LARGEST", 1000)
  with pytest.raises(ValueError, match="below 2 GiB for format='stablehlo'"):
    written(tmp_path, "stablehlo", DEIT3)
  assert not list(tmp_path.iterdir())
