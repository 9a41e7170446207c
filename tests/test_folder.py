"""The configs folder and cifar: what is chosen from a dataset."""

import json

import numpy as np
import pytest
from trees import make_tree, picture, run

from vitkd_jax import weights
from vitkd_jax.configs import choices, cifar, folder
from vitkd_jax.data import datasets
from vitkd_jax.models import vit
from vitkd_jax.training import experiment
from vitkd_jax.training import fields as student_fields

SHIPPED = "shipped:fashion_teacher"


def recipe(count, size, num_classes=10, **args):
  return folder.recipe(
    choices.Images("pets", num_classes, size, count), folder.ARGUMENTS | args
  )


@pytest.mark.parametrize(
  "size, crop, patch, pad",
  [
    ((28, 28), 0, 4, 3),
    ((32, 32), 0, 4, 4),
    ((64, 64), 0, 8, 8),
    ((96, 96), 0, 12, 12),
    ((32, 48), 0, 4, 4),
    ((97, 97), 96, 12, 0),  # no patch divides it
    ((53, 53), 48, 6, 0),
    ((256, 256), 224, 16, 0),
    ((500, 150), 144, 16, 0),
    ((20, 20), 0, 2, 2),
    (None, 224, 16, 0),
  ],
)
def test_crop_and_patch_follow_the_size(size, crop, patch, pad):
  config = recipe(5000, size)
  assert config.data.image_size == crop
  assert config.student.patch_size == (patch, patch)
  assert config.augment.pad == pad
  sides = (crop, crop) if crop else size
  assert sides[0] % patch == sides[1] % patch == 0
  assert sides[0] * sides[1] // patch**2 >= 49


@pytest.mark.parametrize(
  "count, batch_size, epochs, student",
  [
    (1, 1, 100, "pico"),
    (15, 8, 100, "pico"),
    (100, 16, 100, "pico"),
    (1_000, 16, 100, "pico"),
    (10_000, 128, 46, "pico"),
    (50_000, 128, 27, "nano"),
    (100_000, 128, 22, "ti"),
  ],
)
def test_length_and_student_follow_the_number(
  count, batch_size, epochs, student
):
  config = recipe(count, (32, 32))
  assert config.run.batch_size == batch_size
  assert config.run.epochs == epochs
  variant, fields = folder.STUDENTS[student]
  assert config.student.variant == variant
  assert config.student.width == fields.get("width")
  steps = epochs * count / batch_size
  assert 5 <= steps / config.run.eval_every <= 10.5
  assert config.schedule.warmup_epochs == pytest.approx(epochs / 20)
  config.run.epochs = 4.0
  assert config.schedule.warmup_epochs == pytest.approx(0.2)


def test_arguments_come_before_what_is_chosen():
  config = recipe(
    5000, (32, 32), image_size=24, patch=6, epochs=2.0, batch_size=8, seed=3,
    student="deit_small_patch16_224",
  )  # fmt: skip
  assert config.data.image_size == 24
  assert config.student.patch_size == (6, 6)
  assert config.student.variant == "deit_small_patch16_224"
  assert (config.run.epochs, config.run.batch_size) == (2.0, 8)
  assert config.run.seed == 3
  # Crops of the images' own size are whole images.
  assert recipe(5000, (224, 224), image_size=224).data.image_size == 0


@pytest.mark.parametrize(
  "student, size, patch",
  [
    ("vit_base_patch32_224", 224, 32),
    ("L/14", 224, 14),
    ("ti", 224, 16),
    ("vit_base_patch32_224", 32, 4),  # a single token is no choice
  ],
)
def test_a_students_name_states_its_patch_at_its_own_size(student, size, patch):
  config = recipe(5000, (size, size), student=student)
  assert config.student.patch_size == (patch, patch)


def test_too_few_images_are_refused(tmp_path, capsys):
  root = make_tree(
    tmp_path / "root",
    {f"{c}/0.png": picture(0, ".png") for c in ("cat", "dog")},
  )
  run(capsys, "pets", "--source", root, "--data-dir", tmp_path)
  with pytest.raises(ValueError, match=r"leave out a tenth .* got 2; prep"):
    folder.get_config(f"data=pets,data_dir={tmp_path}")


def test_many_images_are_not_kept_in_memory():
  assert recipe(100_000, (32, 32)).data.cache
  assert not recipe(1_000_000, (64, 64)).data.cache
  assert not recipe(1000, None).data.cache


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """A folder as a run leaves it: a student of 16x16 images, 3 classes."""
  path = tmp_path_factory.mktemp("runs") / "teacher"
  fields = dict(
    variant="deit_pico_patch4_28", width=32, depth=2, mlp_dim=64, num_heads=2
  )
  model = vit.Model(3, **fields)
  params = model.init(
    _key(), np.zeros((1, 16, 16, 3), np.float32)
  )["params"]  # fmt: skip
  path.mkdir()
  weights.save(
    str(path / "student.safetensors"),
    params,
    format="flat",
    image_size=16,
    **fields,
  )
  state = {
    "config": {"student": fields},
    "preprocess": dict(
      size=[16, 16], short_side=None, mean=[0.5] * 3, std=[0.5] * 3,
      interpolation="bicubic",
    ),
    "class_names": ["ant", "bee", "eel"],
  }  # fmt: skip
  (path / "config.json").write_text(json.dumps(state))
  return str(path)


def _key():
  import jax

  return jax.random.key(0)


def test_a_teacher_brings_its_model_its_size_and_its_methods(teacher):
  same = recipe(500, (16, 16), num_classes=3, teacher=teacher)
  assert same.teachers.teacher.variant == "deit_pico_patch4_28"
  assert same.teachers.teacher.image_size == 0
  assert same.student.patch_size == (4, 4)  # the teacher's, not the 2 it
  assert not same.teachers.teacher.resample  # would have by itself
  assert set(same.methods) == {"vitkd", "nkd"}
  other = recipe(500, (32, 32), num_classes=4, teacher=teacher)
  assert other.teachers.teacher.image_size == 16
  assert other.teachers.teacher.resample  # 4x4 tokens to 8x8
  assert set(other.methods) == {"vitkd"}  # its classes are others
  alone = recipe(500, (16, 16), teacher=teacher, method="baseline")
  assert not alone.teachers
  assert not alone.methods


def test_weights_go_with_the_kind_of_teacher(tmp_path):
  file = tmp_path / "deit3_small_patch16_224.fb_in22k_ft_in1k.safetensors"
  weights.save(
    str(file), _params(), variant="deit_pico_patch4_28", format="timm"
  )
  config = recipe(500, None, teacher=str(file))
  assert config.teachers.teacher.variant.startswith("deit3_small_patch16_224")
  assert config.methods.vitkd.reduction == "mean"
  # The paper's 3e-5 and 3e-6 of a sum over 196 tokens and 384 channels.
  assert config.methods.vitkd.weights.mimic == pytest.approx(2.25792)
  assert config.methods.vitkd.weights.generation == pytest.approx(0.225792)
  own = recipe(500, (28, 28), teacher=SHIPPED)
  assert own.methods.vitkd.weights.mimic == 0.2


def _params():
  model = vit.Model(3, variant="deit_pico_patch4_28")
  image = np.zeros((1, 28, 28, 3), np.float32)
  return model.init(_key(), image)["params"]


@pytest.mark.parametrize(
  "args, said",
  [
    (dict(method="both"), "argument teacher beside method=both, got none"),
    (dict(teacher="nowhere"), "expected weights at 'nowhere'"),
    (dict(method="vitk"), "the nearest is 'vitkd'"),
    (dict(student="pic"), "to be pico, nano, .* unknown variant 'pic'"),
  ],
)
def test_what_cannot_work_is_refused(args, said):
  with pytest.raises(ValueError, match=said):
    recipe(500, (32, 32), **args)


def test_weights_that_do_not_say_what_they_are(tmp_path):
  file = tmp_path / "mine.safetensors"
  weights.save(
    str(file), _params(), variant="deit_pico_patch4_28", format="timm"
  )
  with pytest.raises(ValueError, match="add config argument teacher_variant"):
    recipe(500, (28, 28), teacher=str(file))
  named = recipe(
    500, (28, 28), teacher=str(file), teacher_variant="deit_pico_patch4_28"
  )
  assert named.teachers.teacher.variant == "deit_pico_patch4_28"
  with pytest.raises(ValueError, match="add config argument student"):
    recipe(500, (28, 28), init=str(file))
  begun = recipe(500, (28, 28), init=str(file), student="pico")
  assert begun.student.init == str(file)


def test_a_warm_start_is_shorter_and_slower(teacher):
  cold = recipe(10_000, (16, 16))
  assert cold.schedule.peak == pytest.approx(3e-3)  # of batches of 128
  warm = recipe(10_000, (16, 16), init=teacher)
  assert warm.run.epochs == 15
  assert warm.schedule.peak == pytest.approx(3e-3 / 5 * 64 / 32)
  assert warm.student.init == teacher
  assert warm.student.init_head == "init"
  assert warm.student.width == 32  # of the model that the weights are of


def test_the_dataset_is_asked_for_by_name(tmp_path):
  with pytest.raises(ValueError, match="got none: folder:data=NAME"):
    folder.get_config()
  with pytest.raises(ValueError, match=r"prepare birds --source .*birds/"):
    folder.get_config(f"data={tmp_path}/birds/")
  with pytest.raises(ValueError, match=r"'pets' is not prepared in"):
    folder.get_config(f"data=pets,data_dir={tmp_path}")


def test_from_a_tree_to_a_student_in_two_commands(tmp_path, capsys, forks):
  root = make_tree(
    tmp_path / "root",
    {
      f"{c}/{i}.png": picture(seed + i, ".png", (16, 16))
      for seed, c in ((0, "cat"), (500, "dog"))
      for i in range(40)
    },
  )
  out = str(tmp_path / "sets")
  status, said, _ = run(capsys, "pets", "--source", root, "--data-dir", out)
  assert status == 0
  (line,) = [x for x in said.splitlines() if x.startswith("next: ")]
  words = line.removeprefix("next: python -m vitkd_jax.train ").split()
  done = forks.run(
    "train",
    *words,
    "--config.run.epochs=1",
    "--config.student.depth=1",
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  made = tmp_path / "runs" / "pets"
  assert (made / "student.safetensors").exists()
  config = json.loads((made / "config.json").read_text())["config"]
  assert config["data"]["train_split"] == "train[:90%]"
  train, evaluation = (
    datasets.load("pets", config["data"][f"{kind}_split"], data_dir=out)
    for kind in ("train", "eval")
  )
  assert (len(train), len(evaluation)) == (72, 8)


def test_photographs_are_cropped(tmp_path, capsys, untraced):
  root = make_tree(
    tmp_path / "root",
    {
      f"{split}/{c}/{i}.jpg": picture(i, size=(40 + i, 60))
      for split in ("train", "test")
      for c in ("cat", "dog")
      for i in range(9)
    },
  )
  run(capsys, "pets", "--source", root, "--data-dir", tmp_path)
  config = folder.get_config(f"data=pets,data_dir={tmp_path}")
  assert config.data.image_size == 224
  assert config.data.eval_split == "test"
  parts = experiment.build(student_fields.given(config))
  assert parts.image_shape == (224, 224, 3)
  assert parts.objective.student.patch_size == (16, 16)
  assert parts.total_steps == 112  # 100 epochs of 18 images, 16 at a time


def test_cifar_needs_no_dataset_to_be_described():
  config = cifar.get_config("data=cifar100,epochs=4")
  assert config.data.name == "cifar100"
  assert (config.data.train_split, config.data.eval_split) == ("train", "test")
  assert config.student.patch_size == (4, 4)
  assert config.student.width == 96
  assert (config.augment.pad, config.augment.flip) == (4, 0.5)
  assert config.run.epochs == 4
  with pytest.raises(ValueError, match="the nearest is 'cifar10'"):
    cifar.get_config("data=cifar")
