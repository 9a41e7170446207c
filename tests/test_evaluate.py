"""Tests of vitkd_jax.evaluate and vitkd_jax.evaluation.scoring."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitkd_jax import evaluate, weights
from vitkd_jax.commandline import command
from vitkd_jax.data import datasets, preprocess
from vitkd_jax.evaluation import agreement, classification, running, scoring
from vitkd_jax.models import vit
from vitkd_jax.reporting import evaluated
from vitkd_jax.runs import checkpoint

FIELDS = dict(
  width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=(14, 14),
  pool_type="gap",
)  # fmt: skip
CLASSES = tuple("abcdef")

# Six classes, five images and one of padding; logits by hand.
STUDENT = np.array(
  [
    [9, 1, 2, 3, 4, 5],  # right
    [5, 5, 0, 0, 0, 0],  # label 1; the tie goes to class 0
    [6, 5, 4, 3, 2, 1],  # label 5: sixth, so not in the top 5
    [0, 0, 0, 0, 0, 0],  # label 5: all tie, the last of six
    [1, 2, 3, 9, 4, 5],  # right, label 3
    [9, 0, 0, 0, 0, 0],  # padding
  ],
  np.float32,
)
LABEL = np.array([0, 1, 5, 5, 3, 0], np.int32)
TEACHER = np.roll(STUDENT, 1, axis=-1)


def softmax(x):
  e = np.exp(np.float64(x) - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def by_hand(pad_weight=0.0, teacher=TEACHER):
  models = {"student": lambda params, image: params + 0 * image[:, :1]}
  evaluators = {"student": classification.Classification(class_names=CLASSES)}
  if teacher is not None:
    models["teacher"] = lambda params, image: params
    evaluators["teacher"] = agreement.Agreement()
  step = jax.jit(running.make_step(models, evaluators))
  batch = {
    "image": np.zeros((6, 6), np.float32),
    "label": LABEL,
    "weight": np.array([1, 1, 1, 1, 1, pad_weight], np.float32),
  }
  params = {"student": STUDENT, "teacher": teacher}
  sums = running.zero_sums(evaluators)
  for _ in range(2):  # sums go on
    sums = step(sums, params, batch)
  return sums


def results(sums):
  found = classification.Classification(class_names=CLASSES)
  found = found.compute(sums["student"])
  if "teacher" in sums:
    found |= agreement.Agreement().compute(sums["teacher"])
  return found


def test_numbers_by_hand():
  found = results(by_hand())
  confusion = np.zeros((6, 6), int)
  for true, predicted in ((0, 0), (1, 0), (5, 0), (5, 0), (3, 3)):
    confusion[true, predicted] += 2
  assert found["confusion"] == confusion.tolist()
  assert found["count"] == 10
  assert found["top1"] == 2 / 5
  assert found["top5"] == 3 / 5
  p, q = softmax(STUDENT[:5]), softmax(TEACHER[:5])
  nll = -np.log(p[np.arange(5), LABEL[:5]]).mean()
  kl = (q * (np.log(q) - np.log(p))).sum(-1).mean()
  assert found["loss"] == pytest.approx(nll, rel=1e-6)
  assert found["kl"] == pytest.approx(kl, rel=1e-6)
  # The rolled teacher says 1, 1, 1, 0, 4: one agreement, one right.
  assert found["agreement"] == 1 / 5
  assert found["teacher_top1"] == 1 / 5
  classes = {each["name"]: each for each in found["classes"]}
  assert classes["a"] == {"name": "a", "count": 2, "accuracy": 1.0}
  assert classes["c"] == {"name": "c", "count": 0, "accuracy": None}
  assert classes["f"] == {"name": "f", "count": 4, "accuracy": 0.0}


def test_counts_are_integers():
  sums = by_hand()
  for name in ("confusion", "count", "top1", "top5"):
    assert sums["student"][name].dtype == jnp.int32
  for name in ("count", "agree", "teacher_top1"):
    assert sums["teacher"][name].dtype == jnp.int32


def test_padding_that_is_not_finite_does_not_count(monkeypatch):
  whole = by_hand()
  spoiled = STUDENT.copy()
  spoiled[5] = np.inf
  monkeypatch.setattr(sys.modules[__name__], "STUDENT", spoiled)
  jax.tree.map(np.testing.assert_array_equal, by_hand(), whole)
  assert results(by_hand(1.0))["count"] == 12


def test_a_teacher_equal_to_the_student():
  found = results(by_hand(teacher=STUDENT))
  assert found["agreement"] == 1
  assert found["kl"] == pytest.approx(0, abs=1e-6)
  assert found["teacher_top1"] == found["top1"]


def test_an_empty_split_is_refused():
  for evaluator in (classification.Classification(), agreement.Agreement()):
    with pytest.raises(ValueError, match="the split is empty"):
      evaluator.compute(evaluator.init())


class Source:
  """37 images whose pixels and labels come from their number."""

  def __len__(self):
    return 37

  def __getitem__(self, index):
    random = np.random.default_rng(index)
    # Flat patches: noise would look the same to the model in every image.
    image = random.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    image = image.repeat(14, 0).repeat(14, 1)
    return {"image": image, "label": np.int32(random.integers(10))}


def info(num_classes=10):
  return datasets.Info(
    name="made", num_classes=num_classes, image_size=(28, 28),
    num_examples={"test": 37}, class_names=tuple("abcdefghij"),
  )  # fmt: skip


def random_params(made, seed):
  """Random kernels and scales; biases would drown what is in the image."""
  image = jnp.zeros((1, 28, 28, 3))
  shapes = jax.eval_shape(made.init, jax.random.key(0), image)["params"]
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    share = float(path[-1].key in ("kernel", "scale"))
    return np.float32(share * random.normal(size=leaf.shape))

  return jax.tree_util.tree_map_with_path(draw, shapes)


def model(seed):
  made = vit.Model(10, **FIELDS)
  params = random_params(made, seed)
  images = preprocess.Preprocess((28, 28), None, (0.5,) * 3, (0.5,) * 3)
  return scoring.Scored(made, params, images)


def score(batch_size):
  return scoring.evaluate(
    model(0), Source(), info(), batch_size=batch_size, teacher=model(5)
  )


def agree(a, b):
  """Equal counts; sums of floats up to their order."""
  for name in a:
    if name in ("loss", "kl"):
      assert a[name] == pytest.approx(b[name], rel=1e-6)
    else:
      assert a[name] == b[name], name


@pytest.fixture(scope="module")
def expected():
  return score(37)


def test_any_batch_size_and_device_count(expected):
  assert expected["count"] == 37
  # A model that says the same of every image would prove nothing.
  assert np.count_nonzero(np.sum(expected["confusion"], axis=0)) > 1
  agree(score(16), expected)
  code = (
    "import jax, json, sys; sys.path.insert(0, 'tests'); "
    "import test_evaluate as t; assert jax.device_count() == 8; "
    "print(json.dumps(t.score(13)))"
  )
  flags = "--xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  agree(json.loads(done.stdout.splitlines()[-1]), expected)


def test_against_numpy(expected):
  student = model(0)
  examples = [Source()[i] for i in range(37)]
  labels = np.array([example["label"] for example in examples])
  images = np.float32([example["image"] for example in examples])
  image = (images / 255 - 0.5) / 0.5
  logits = jax.jit(student.model.apply)({"params": student.params}, image)[0]
  guess = np.asarray(logits).argmax(-1)
  assert expected["top1"] == np.mean(guess == labels)


@pytest.fixture
def workdir(tmp_path):
  """What a finished run leaves, of a model that was never trained."""
  variant = "deit_pico_patch4_28"
  made = vit.Model(10, variant=variant)
  params = random_params(made, 0)
  path = tmp_path / "run" / "student.safetensors"
  path.parent.mkdir()
  weights.save(path, params, variant=variant, format="flat")
  config = {
    "student": {"variant": variant},
    "data": {"name": "fashion_mini", "eval_split": "test[:20]"},
    "run": {"seed": 0},
  }
  record = {"config": config, "teacher_sha256": None}
  (path.parent / "config.json").write_text(json.dumps(record))
  return path.parent


def test_the_command_line(workdir, tmp_path, forks):
  """A workdir tells its variant, data and split; files come with --out."""
  out = tmp_path / "out"
  done = forks.run(
    "evaluate", "--weights", str(workdir), "--batch-size=16", f"--out={out}"
  )
  assert done.returncode == 0, done.stderr
  assert "Ankle boot" in done.stdout
  assert re.search(r"images/s, forward pass of 16 on \d x cpu +\d", done.stdout)
  found = json.loads((out / "evaluation.json").read_text())
  assert found["count"] == np.sum(found["confusion"]) == 20
  assert found["split"] == "test[:20]"
  assert (out / "confusion.png").read_bytes()[:4] == b"\x89PNG"
  assert not (out / "unfinished").exists()
  assert not (workdir / "evaluation.json").exists()


@pytest.fixture
def two_sets(tmp_path):
  """A folder of datasets with fashion_mini's images under another name."""
  package = pathlib.Path(datasets.__file__).parent
  shutil.copytree(package / "fashion_mini", tmp_path / "sets" / "other_mini")
  return str(tmp_path / "sets")


def test_several_datasets_on_the_command_line(
  workdir,
  two_sets,
  tmp_path,
  forks,
):
  teachers = tmp_path / "teacher.safetensors"
  shutil.copy(workdir / "student.safetensors", teachers)
  given = ("--weights", str(workdir), f"--data-dir={two_sets}")
  given = (*given, "--batch-size=16", f"--teacher={teachers}")
  both = ("--data=fashion_mini,other_mini", "--split=test[:20],train[:33]")
  several, single = tmp_path / "several", tmp_path / "single"
  done = forks.run("evaluate", *given, *both, f"--out={several}")
  assert done.returncode == 0, done.stderr
  assert "on other_mini, train[:33]" in done.stdout
  assert "53 of 53 images" in done.stderr
  one = ("--data=other_mini", "--split=train[:33]", f"--out={single}")
  done = forks.run("evaluate", *given, *one)
  assert done.returncode == 0, done.stderr
  found = json.loads((several / "other_mini/evaluation.json").read_text())
  wanted = json.loads((single / "evaluation.json").read_text())
  assert found.pop("cost")["parameters"] == wanted.pop("cost")["parameters"]
  agree(found, wanted)
  assert found["teacher"] == str(teachers)
  assert (several / "fashion_mini/confusion.png").exists()


def test_probes_on_the_command_line(workdir, tmp_path, forks):
  out = tmp_path / "out"
  given = ("--weights", str(workdir), "--probe=knn,linear,fewshot")
  some = ("--neighbours=1,30", "--shots=2", "--seeds=2", "--batch-size=16")
  train = ("--train-split=train[:50]", f"--out={out}")
  done = forks.run("evaluate", *given, *some, *train)
  assert done.returncode == 0, done.stderr
  assert "50 of 50 training images" in done.stderr
  assert re.search(r"top-1, kNN, k = 30 +\d", done.stdout)
  found = json.loads((out / "evaluation.json").read_text())
  assert found["train_data"] == "fashion_mini"
  assert found["train_split"] == "train[:50]"
  probes = found["probes"]
  assert probes["images"] == 50
  assert [each["k"] for each in probes["knn"]] == [1, 30]
  assert {"ridge", "logistic"} < set(probes)
  assert len(probes["fewshot"][0]["top1_of_seeds"]) == 2
  for args, sentence in (
    (("--neighbours=51",), "expected at most 50 neighbours, the training"),
    (("--neighbours=a",), "integers separated by commas, got --neighbours=a"),
    (("--probe=svm",), "expected probe to be one of 'knn'"),
    (("--train-data=fashion_nimi",), "the nearest is 'fashion_mini'"),
  ):
    done = forks.run("evaluate", *given, *train, *args)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_refusals(workdir, forks):
  file = str(workdir / "student.safetensors")
  for args, sentence in (
    ((), "--weights is missing"),
    (("--weights", file, "--variant=deit_nano"), "unknown variant"),
    (("--weights", file, "--image-size=-4"), "non-negative"),
    (
      ("--weights", file, "--image-size=30"),
      "not divisible by the model's patch size",
    ),
  ):
    done = forks.run("evaluate", *args)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
  unnamed = workdir / "unnamed.npz"
  np.savez(unnamed, head=np.zeros(1))
  for path, sentence in (
    (unnamed, "does not state its model; give the variant"),
    (workdir / "nowhere", "expected weights at"),
  ):
    with pytest.raises(ValueError, match=sentence):
      scoring.load(str(path), info())
  with pytest.raises(ValueError, match=r"has 10 classes, made has 3; choose"):
    scoring.load(file, info(num_classes=3))
  with pytest.raises(ValueError, match="eval_resize=20 needs image_size"):
    scoring.load(file, info(), eval_resize=20)
  with pytest.raises(ValueError, match="integer batch_size >= 1, got 0"):
    scoring.evaluate(model(0), Source(), info(), batch_size=0)


def test_an_exported_file_is_cropped_as_its_training_was(tmp_path):
  several = dataclasses.replace(info(), image_size=None)
  made = vit.Model(10, variant="deit_pico_patch4_28")
  path = str(tmp_path / "student.safetensors")

  def crop(info_, **asked):
    found = scoring.load(path, info_, **asked).images
    return found.size[0], found.short_side

  options = dict(variant="deit_pico_patch4_28", format="flat")
  cropped = preprocess.Preprocess((28, 28), 40, (0.5,) * 3, (0.5,) * 3)
  weights.save(path, random_params(made, 0), preprocess=cropped, **options)
  assert crop(several) == crop(info()) == (28, 40)
  assert crop(info(), eval_resize=50) == (28, 50)
  assert crop(info(), image_size=32) == (32, 45)  # the same share: 0.7
  weights.save(path, random_params(made, 0), image_size=28, **options)
  assert crop(info()) == (28, None)
  assert crop(several) == (28, 28)
  photographs = dataclasses.replace(info(), image_size=(48, 64))
  assert crop(photographs) == (28, 28)  # as for any other size
  whole = dataclasses.replace(cropped, short_side=None)
  weights.save(path, random_params(made, 0), preprocess=whole, **options)
  assert crop(info()) == (28, None)
  assert crop(several) == (28, 28)


def test_classes_in_another_order_are_not_scored(tmp_path):
  """Right answers would count as wrong, with nothing said."""
  names = info().class_names
  path = str(tmp_path / "student.safetensors")
  made = vit.Model(10, variant="deit_pico_patch4_28")
  for order in (names, names[::-1]):
    weights.save(
      path,
      random_params(made, 0),
      variant="deit_pico_patch4_28",
      format="flat",
      class_names=order,
    )
    if order == names:
      scoring.load(path, info())
  with pytest.raises(ValueError, match="in another order: class 0 is"):
    scoring.load(path, info())


def test_another_library_s_folder_is_scored_by_its_own_config(tmp_path):
  made = vit.Model(10, variant="deit_pico_patch4_28")
  images = preprocess.Preprocess(
    (28, 28), 30, (0.1,) * 3, (0.2,) * 3, "bilinear"
  )
  for format in ("timm", "huggingface"):
    weights.save(
      tmp_path / format,
      random_params(made, 0),
      variant="deit_pico_patch4_28",
      format=format,
      preprocess=images,
    )
    variant = None if format == "timm" else "deit_pico_patch4_28"
    found = scoring.load(str(tmp_path / format), info(), variant=variant)
    assert found.images == images
  # The flagship teacher's: all of the image, though the variant's is 0.9.
  path = tmp_path / "timm" / "config.json"
  config = json.loads(path.read_text())
  config["pretrained_cfg"]["crop_pct"] = 1.0
  path.write_text(json.dumps(config))
  found = scoring.load(str(tmp_path / "timm"), info())
  assert found.images == dataclasses.replace(images, short_side=28)
  config["pretrained_cfg"]["crop_mode"] = "border"
  path.write_text(json.dumps(config))
  with pytest.raises(
    ValueError, match=r"crop_mode to be one of .*, got 'border'"
  ):
    scoring.load(str(tmp_path / "timm"), info())


def test_a_teacher_gets_the_student_s_images(workdir, tmp_path):
  """Whatever size and crop it states itself."""
  images = preprocess.Preprocess((56, 56), 64, (0.1,) * 3, (0.2,) * 3)
  variant = "deit_pico_patch4_28"
  made = vit.Model(10, variant=variant)
  path = tmp_path / "teacher.safetensors"
  shapes = jax.eval_shape(
    made.init, jax.random.key(0), jnp.zeros((1, 56, 56, 3))
  )["params"]
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  weights.save(path, params, variant=variant, format="flat", preprocess=images)
  student = scoring.load(str(workdir), info())
  teacher = scoring.load(str(path), info(), like=student.images)
  assert (teacher.images.size, teacher.images.short_side) == ((28, 28), None)
  assert teacher.images.mean == (0.1,) * 3
  assert teacher.params["pos_embedding"].shape[1] == 49


def test_the_checkpoint_of_a_step_is_scored(workdir):
  made = vit.Model(10, variant="deit_pico_patch4_28")
  checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
  for step, top1 in ((3, 0.9), (6, 0.1)):
    state = {"params": {"student": random_params(made, step)}, "ema": None}
    checkpoints.save(step, state, top1=top1)
  checkpoints.close()
  for asked, step in ((dict(step="best"), 3), (dict(which="student"), 6)):
    found = scoring.load(str(workdir), info(), **asked).params
    jax.tree.map(
      np.testing.assert_array_equal, found, random_params(made, step)
    )
  with pytest.raises(ValueError, match="expected a checkpoint of step 5 in "):
    scoring.load(str(workdir), info(), step="5")
  with pytest.raises(ValueError, match="to be 'latest', 'best' or a number"):
    scoring.load(str(workdir), info(), step="bset")


def test_a_batch_is_no_larger_than_the_set():
  found = scoring.evaluate(model(0), Source(), info(), batch_size=10**9)
  assert found["count"] == 37


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(
  workdir, tmp_path, forks
):
  file = tmp_path / "file"
  file.touch()
  done = forks.run("evaluate", "--weights", str(workdir), f"--out={file}")
  assert done.returncode == 2
  assert done.stderr == f"error: cannot create --out={file}: File exists\n"
  assert not done.stdout


def test_many_classes_show_the_worst(capsys):
  confusion = np.diag(np.arange(40)) + np.eye(40, k=1, dtype=int)
  found = classification.Classification(
    class_names=[*map(str, range(40))]
  ).compute(
    {
      "confusion": confusion,
      "count": confusion.sum(),
      "top1": np.trace(confusion),
      "top5": 0,
      "nll": 0.0,
    }
  )
  evaluated.show(found, "title")
  text = capsys.readouterr().out
  assert "the 20 worst of 40" in text
  rows = text.partition("most often")[2].splitlines()[1:]
  assert [row.split()[0] for row in rows[:2]] == ["0", "1"]
  assert len(rows) == 20


@pytest.mark.parametrize(
  "of_run, asked, wanted",
  [
    (None, None, False),
    (None, True, True),
    (True, None, True),
    (True, False, False),
    (False, None, False),
    ("older", None, True),
  ],
)
def test_images_are_turned_as_the_run_did(
  monkeypatch, tmp_path, of_run, asked, wanted
):
  if of_run is not None:
    data = {"name": "fashion_mini", "eval_split": "test"}
    if of_run != "older":
      data["exif"] = of_run
    config = {"config": {"data": data, "student": {}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
  given = dict.fromkeys(
    ["variant", "which", "step", "data", "split", "data-dir", "out", "probe"]
  )
  given |= {"weights": str(tmp_path), "exif": asked}
  given |= {"image-size": 0, "eval-resize": 0, "batch-size": 8}
  said = types.SimpleNamespace(flag_values_dict=lambda: given)
  monkeypatch.setattr(evaluate.flags, "FLAGS", said)
  monkeypatch.setattr(evaluate.command, "join", lambda: None)
  seen = []

  def load(*_, exif, **__):
    seen.append(exif)
    raise ValueError("no further")

  monkeypatch.setattr(datasets, "load", load)
  with pytest.raises(command.RefusedError, match="no further"):
    evaluate.main([])
  assert seen == [wanted]


def test_progress_counts_every_image_once():
  counts = []
  scoring.evaluate(
    model(0), Source(), info(), batch_size=8, advance=counts.append
  )
  assert len(counts) > 1
  assert sum(counts) == len(Source())
