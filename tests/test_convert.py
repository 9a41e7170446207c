"""The converter: what it writes, says, and refuses."""

import dataclasses
import json
import sys
import zipfile

from absl import flags
import drawn
import jax
import numpy as np
import pytest

from vitkd_jax import convert, weights
from vitkd_jax.data import preprocess
from vitkd_jax.models import backbones, variants, vit
from vitkd_jax.runs import checkpoint
from vitkd_jax.weights import (
  big_vision,
  processors,
  resolve,
  saving,
  verify,
  zoo,
)

FIELDS = dict(
  variant="deit3_small_patch16_224",
  width=16,
  depth=1,
  mlp_dim=32,
  num_heads=2,
  patch_size=(4, 4),
)


@pytest.fixture
def flat(tmp_path):
  path = tmp_path / "student.safetensors"
  weights.save(path, drawn.params(**FIELDS), format="flat", **FIELDS)
  return path


def run(path, output, to, **options):
  return convert.convert(
    convert.Options(input=str(path), output=str(output), to=to, **options)
  )


def test_a_flat_file_says_its_model_and_is_read_back(tmp_path, flat, capsys):
  written = run(flat, tmp_path / "w.npz", "big_vision")
  said = capsys.readouterr().out
  params = drawn.params(**FIELDS)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert f"{count:,} parameters" in said
  assert weights.sha256(flat) in said
  assert weights.sha256(written) in said
  difference = said.partition("max |difference| ")[2].split()[0]
  assert float(difference) < 1e-5
  got = weights.load(
    written, num_classes=5, image_size=28, layerscale_init=None, **FIELDS
  )
  jax.tree.map(
    np.testing.assert_array_equal, got, weights.fold_layerscale(params)
  )


@pytest.mark.parametrize("to", ["big_vision", "timm", "flat"])
def test_a_folded_normalisation_gives_the_same_logits(tmp_path, to, capsys):
  path = tmp_path / "a.safetensors"
  params = drawn.params(**FIELDS)
  mean, std = (0.5, 0.4, 0.1), (0.3, 0.2, 0.25)
  images = preprocess.Preprocess((28, 28), 30, mean, std)
  weights.save(path, params, format="flat", preprocess=images, **FIELDS)
  output = tmp_path / {"big_vision": "w.npz", "flat": "w.safetensors"}.get(
    to, to
  )
  run(path, output, to, fold_normalization=True, check=False)
  said = capsys.readouterr().out
  assert "note  folded the normalisation by mean (0.5, 0.4, 0.1)" in said
  fields = dict(FIELDS, layerscale_init=None if to == "big_vision" else 1e-6)
  got = weights.load(output, num_classes=5, image_size=28, **fields)
  pixels = np.random.default_rng(0).random((2, 28, 28, 3))
  with jax.default_matmul_precision("highest"):
    want, found = (
      jax.jit(vit.Model(5, **options).apply)({"params": p}, image)[0]
      for options, p, image in (
        (FIELDS, params, (pixels - mean) / std),
        (fields, got, 2 * pixels - 1),  # big_vision's value_range(-1, 1)
      )
    )
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
  if to == "big_vision":
    assert "needs value_range(-1, 1) in pp" in said
  else:  # it says how its images are to be normalised
    stated = resolve.stated(output).preprocess
    assert (stated.mean, stated.std) == variants.INCEPTION_MEAN_STD
    assert stated.short_side == 30


@pytest.mark.parametrize(
  "fields, lines",
  [
    (
      dict(variant="deit3_small_patch16_224"),
      [
        "dict(variant='S/16', pool_type='tok')",
        "nn.gelu(x, approximate=False) in MlpBlock",
        "vgg_value_range(mean=(123.7, 116.3, 103.5), std=(58.4, 57.12, 57.38))",
        "nothing for LayerScale, which is folded",
        "images of 32x32 px, or --image-size",
      ],
    ),
    (
      dict(variant="mu/16", posemb="sincos2d", pool_type="map", rep_size=True),
      [
        "dict(variant='mu/16', pool_type='map', posemb='sincos2d', "
        "rep_size=True)",
        "value_range(-1, 1) in pp and pp_fn",
      ],
    ),
    (
      dict(variant="test", patch_size=(8, 4)),
      [
        "dict(patch_size=(8, 4), width=32, depth=3, mlp_dim=64, num_heads=2)",
        "value_range(-1, 1) in pp and pp_fn",
        "images of 32x32 px",
      ],
    ),
  ],
)
def test_what_a_model_needs_in_big_vision(fields, lines):
  model = backbones.make_model(5, **fields)
  images = processors.published(variants.get(fields["variant"]), (32, 32))
  said = list(big_vision.needs(model, images))
  assert len(said) == len(lines)
  for line, words in zip(said, lines, strict=True):
    assert words in line


def test_a_workdir_becomes_a_folder_with_a_card(tmp_path, flat, capsys):
  config = {
    "student": {**FIELDS, "drop_path": 0.1},
    "teacher": {"weights": "a/teacher.pth", "variant": "S/16"},
  }
  record = {"config": config, "teacher_sha256": "abc123"}
  (tmp_path / "config.json").write_text(json.dumps(record))
  lines = [{"step": 1, "loss": 2.0}, {"step": 9, "eval_top1": 0.8125}]
  (tmp_path / "metrics.jsonl").write_text(
    "".join(json.dumps(line) + "\n" for line in lines)
  )
  run(tmp_path, tmp_path / "out", "timm", check=False)
  card = (tmp_path / "out" / "README.md").read_text()
  for words in (
    "| top1 | 0.8125 |",
    "At step 9",
    "`teacher.pth`",
    "`abc123`",
    '"drop_path": 0.1',
    weights.sha256(flat),
    "library_name: timm",
  ):
    assert words in card
  written = json.loads((tmp_path / "out" / "config.json").read_text())
  assert written["model_args"]["depth"] == 1
  assert written["pretrained_cfg"]["std"] == [0.229, 0.224, 0.225]
  assert written["num_classes"] == 5


def test_head_classes_size_and_dtype(tmp_path, flat, capsys):
  written = run(
    flat,
    tmp_path / "w.safetensors",
    "flat",
    classes=["4", "0"],
    image_size=["32", "40"],
    dtype="float16",
    check=False,
  )
  said = capsys.readouterr().out
  assert "7x7 to 8x10" in said
  assert "head cut from 5 to 2 classes" in said
  got = weights.load(written, num_classes=2, image_size=(32, 40), **FIELDS)
  want = drawn.params(**FIELDS)["head"]["kernel"][:, [4, 0]]
  np.testing.assert_array_equal(got["head"]["kernel"], want.astype(np.float16))
  written = run(flat, tmp_path / "w.npz", "flat", head="drop", check=False)
  assert "head" not in weights.load(
    written, num_classes=0, image_size=28, **FIELDS
  )


@pytest.mark.parametrize(
  "asked, size, short_side", [(None, 28, 30), (["56"], 56, 60)]
)
def test_the_evaluation_s_crop_is_stated_on(tmp_path, asked, size, short_side):
  path, written = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
  params = drawn.params(**FIELDS)
  images = preprocess.Preprocess((28, 28), 30, (0.1,) * 3, (0.2,) * 3)
  weights.save(path, params, format="flat", preprocess=images, **FIELDS)
  run(path, written, "flat", image_size=asked, check=False)
  found = resolve.stated(written).preprocess
  assert found == dataclasses.replace(
    images, size=(size, size), short_side=short_side
  )


@pytest.mark.parametrize(
  "data, short_side",
  [
    (dict(image_size=28), 32),  # 28 / 0.875
    (dict(image_size=28, eval_resize=30), 30),
    (dict(image_size=0), None),  # whole images
  ],
)
def test_a_workdir_s_crop_is_stated_on(tmp_path, flat, data, short_side):
  record = {"config": {"student": FIELDS, "data": data}}
  (tmp_path / "config.json").write_text(json.dumps(record))
  written = run(tmp_path, tmp_path / "b.safetensors", "flat", check=False)
  assert resolve.stated(written).preprocess.short_side == short_side


NAMES = ["Öl", "b|c", "d", "e", "f"]


@pytest.fixture
def workdir(tmp_path):
  """A run of whole images of 20 px that has evaluated twice, and no export."""
  folder = tmp_path / "run"
  checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
  fields = dict(FIELDS, patch_size=(4, 4))
  for step, top1 in ((3, 0.75), (6, 0.5)):
    student = drawn.params(seed=step, image_size=20, **fields)
    state = {"params": {"student": student}, "ema": None}
    checkpoints.save(step, state, top1=top1)
  checkpoints.close()
  images = preprocess.Preprocess((20, 20), None, (0.1,) * 3, (0.2,) * 3)
  record = {
    "config": {"student": FIELDS, "data": {}},
    "preprocess": dataclasses.asdict(images),
    "class_names": NAMES,
  }
  (folder / "config.json").write_text(json.dumps(record))
  lines = [
    {"step": 3, "eval_top1": 0.75},
    {"step": 5, "loss": 2.0},
    {"step": 6, "eval_top1": 0.5},
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text + '{"step": 7, "eval_to')
  return folder


@pytest.mark.parametrize("recorded", [True, False])
def test_a_checkpoint_has_its_run_s_size(tmp_path, workdir, capsys, recorded):
  config = json.loads((workdir / "config.json").read_text())
  if not recorded:  # a run of an older version
    del config["preprocess"], config["class_names"]
    (workdir / "config.json").write_text(json.dumps(config))
  run(workdir, tmp_path / "out", "timm", step="best", check=False)
  assert "resized" not in capsys.readouterr().out
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["model_args"]["img_size"] == [20, 20]
  assert config["pretrained_cfg"]["input_size"] == [3, 20, 20]
  assert config["pretrained_cfg"]["crop_pct"] == 1.0
  assert config.get("label_names") == (NAMES if recorded else None)
  card = (tmp_path / "out" / "README.md").read_text()
  assert "| Evaluation | whole images of 20x20 pixels |" in card
  # Of the step that was written, and not of the last.
  assert "| top1 | 0.7500 |" in card
  if recorded:
    assert "At step 3, on the run's evaluation split: whole images" in card
    assert "5: Öl, b\\|c, d, e, f" in card


def test_a_timm_folder_says_its_model(tmp_path, flat):
  """Its own sizes, and not those of the model that it is called after."""
  images = preprocess.Preprocess(
    (28, 28), 31, (0.1,) * 3, (0.2,) * 3, "bilinear"
  )
  params = drawn.params(**FIELDS)
  weights.save(
    tmp_path / "timm", params, format="timm", preprocess=images, **FIELDS
  )
  run(tmp_path / "timm", tmp_path / "b.safetensors", "flat", check=False)
  said = resolve.stated(tmp_path / "b.safetensors")
  assert said.preprocess == images
  assert dict(said.fields, variant=said.variant).items() >= FIELDS.items()
  assert saving.holds(str(tmp_path / "b.safetensors"), params)


@pytest.mark.parametrize(
  "options, kept",
  [
    (dict(), NAMES),
    (dict(classes=["4", "0"]), ["f", "Öl"]),
    (dict(head="drop"), None),
    (dict(head="init", num_classes=3), None),
  ],
)
def test_class_names_go_with_their_classes(tmp_path, flat, options, kept):
  named = tmp_path / "named.safetensors"
  params = drawn.params(**FIELDS)
  weights.save(named, params, format="flat", class_names=NAMES, **FIELDS)
  run(named, tmp_path / "a.safetensors", "flat", check=False, **options)
  for format in ("timm", "huggingface"):
    run(tmp_path / "a.safetensors", tmp_path / format, format, check=False)
  for path in ("a.safetensors", "timm", "huggingface"):
    said = resolve.stated(tmp_path / path)
    assert said.class_names == (kept and tuple(kept)), path


def test_as_many_names_as_classes(tmp_path):
  params = drawn.params(**FIELDS)
  with pytest.raises(ValueError, match=r"expected 5 class_names, .* got 4"):
    weights.save(
      tmp_path, params, format="timm", class_names=NAMES[1:], **FIELDS
    )
  numbers = list(map(str, range(5)))  # of a set that has no names
  path = tmp_path / "a.safetensors"
  weights.save(path, params, format="flat", class_names=numbers, **FIELDS)
  assert resolve.stated(path).class_names is None


class Broken:
  """A library that imports, and whose models cannot be built."""

  def __getattr__(self, name):
    raise AttributeError(f"no {name}\nand more")


@pytest.mark.parametrize("to", ["timm", "huggingface"])
@pytest.mark.parametrize(
  "answer, words",
  [
    (RuntimeError("operator torchvision::nms does not exist"), "RuntimeError"),
    (ModuleNotFoundError("no torchvision", name="torchvision"), "torchvision"),
    (KeyError("odd"), "KeyError"),
    (Broken(), "raised AttributeError: no "),
  ],
)
def test_a_broken_library_compares_nothing(
  tmp_path, flat, capsys, monkeypatch, to, answer, words
):
  def imported(name):
    if isinstance(answer, Exception):
      raise answer
    return answer

  monkeypatch.setattr(verify.importlib, "import_module", imported)
  run(flat, tmp_path / "out", to)
  assert (tmp_path / "out" / "model.safetensors").exists()
  (said,) = [
    line for line in capsys.readouterr().out.splitlines() if "check" in line
  ]
  assert "not compared, because" in said
  assert words in said


def test_a_library_that_is_not_there(tmp_path, flat, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "timm", None)
  run(flat, tmp_path / "out", "timm")
  assert "because timm is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["timm", "huggingface", "flat", "big_vision"])
def test_twice_the_same_is_the_same_bytes(tmp_path, flat, to):
  ends = {"flat": ".safetensors", "big_vision": ".npz"}
  contents = []
  for i in range(6):  # a random order repeats itself once in 5**6 times or less
    out = tmp_path / f"{i}{ends.get(to, '')}"
    run(flat, out, to, check=False)
    files = sorted(out.iterdir()) if out.is_dir() else [out]
    contents.append([file.read_bytes() for file in files])
  assert all(content == contents[0] for content in contents)
  if to == "big_vision":  # the archive's clock, which may stand still here
    with zipfile.ZipFile(out) as archive:
      dates = {member.date_time for member in archive.infolist()}
    assert dates == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(to="tflite"), "expected format to be one of .*, got 'tflite'"),
    (dict(variant="deit3_smal_patch16_224"), "deit3_small_patch16_224"),
    (dict(source="caffe"), "expected format to be one of .*, got 'caffe'"),
    (dict(head="fresh"), "got 'fresh'"),
    (dict(classes=["a"]), "--classes to be integers, got a"),
    (dict(field=["depth"]), "NAME=VALUE"),
    (dict(field=["dept=3"]), "nearest is 'depth'"),
    (dict(field=["depth=abc"]), "depth='abc': expected an integer"),
    (dict(image_size=["1", "2", "3"]), "rows,columns"),
    (dict(dtype="int8"), "dtype to be one of .*, got 'int8'"),
    (dict(num_classes=7), "for 7 classes, got "),
    (dict(which="teacher"), "which to be one of .*, got 'teacher'"),
    (dict(which="ema"), "needs a workdir"),
  ],
)
def test_one_sentence_and_nothing_written(tmp_path, flat, options, words):
  options = dict(to="timm", check=False) | options
  with pytest.raises(ValueError, match=words) as error:
    run(flat, tmp_path / "out", options.pop("to"), **options)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "out").exists()


def test_no_file_of_others_is_replaced(tmp_path, flat):
  run_ = tmp_path / "run"
  run_.mkdir()
  for name in ("config.json", "metrics.jsonl"):
    (run_ / name).write_text("{}")
  for output, to, said in (
    (run_, "timm", "'.*run', which holds metrics.jsonl; its config.json would"),
    (run_ / "student.safetensors", "flat", "apart from a run's own student"),
    (flat, "flat", "apart from the weights that are read"),
    (tmp_path / "x" / ".." / flat.name, "flat", "apart from the weights that"),
  ):
    with pytest.raises(ValueError, match=f"(?s)expected .*{said}"):
      run(flat, output, to, dtype="bfloat16")
  assert sorted(x.name for x in run_.iterdir()) == [
    "config.json",
    "metrics.jsonl",
  ]
  assert (run_ / "config.json").read_text() == "{}"


def test_a_folder_holds_one_format(tmp_path, flat):
  folder = tmp_path / "student"
  run(flat, folder, "timm", check=False)
  (folder / ".git").mkdir()
  run(flat, folder, "timm", check=False)  # again
  config = (folder / "config.json").read_text()
  with pytest.raises(ValueError, match=r"holds model.safetensors; its README"):
    run(flat, folder, "stablehlo", check=False)
  assert (folder / "config.json").read_text() == config
  with pytest.raises(ValueError, match="apart from the weights that are read"):
    run(folder, folder, "huggingface")
  with pytest.raises(ValueError, match=r"expected a folder .* the file"):
    run(folder, flat.rename(tmp_path / "file"), "timm")


@pytest.mark.parametrize("name", ["s.onnx", "model.stablehlo"])
def test_a_program_is_not_read(tmp_path, name):
  (tmp_path / name).write_bytes(b"1")
  with pytest.raises(ValueError, match="got a program, from which none are"):
    run(tmp_path / name, tmp_path / "out", "timm")
  with pytest.raises(ValueError, match=r"got a program|got none of them"):
    run(tmp_path, tmp_path / "out", "timm")


def test_a_file_that_does_not_say_its_model(tmp_path, flat):
  written = run(flat, tmp_path / "w.npz", "flat", check=False)
  with pytest.raises(ValueError, match="--variant"):
    run(written, tmp_path / "out", "timm")


def test_the_table_names_every_model_and_its_weights():
  table = zoo.table()
  for name, variant in variants.NAMED.items():
    assert name in table
    for tag in variant.published:
      assert f"timm/{name}.{tag}" in table
  assert "top-1 86.99 %" in table  # DeiT III-L, ImageNet-21k pre-trained
  assert "cls in last 2" in table  # CaiT


def test_flags_cover_every_option():
  values = flags.FlagValues()
  convert.define_flags(values)
  options = set(convert.Options.__annotations__) - {"source"}
  assert set(values) >= {name.replace("_", "-") for name in options}
  assert values["head"].default == convert.Options("", "", "").head
  assert values["dtype"].default == convert.Options("", "", "").dtype
