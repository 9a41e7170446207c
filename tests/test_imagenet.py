"""ImageNet from archives of its layout, packed and unpacked."""

import dataclasses
import gzip
import hashlib
import json

import pytest
import tensorflow_datasets as tfds
from trees import make_tree, picture, run, tar

from vitkd_jax.data import datasets
from vitkd_jax.data.builders import imagenet, images, records, shards, synsets


def small_imagenet(folder):
  """Three synsets of five images and six validation images; two archives."""
  classes = synsets.names()
  train = {
    f"{classes[c]}.tar": tar(
      {f"{classes[c]}_{7 * k}.JPEG": picture(10 * c + k) for k in range(5)}
    )
    for c in (3, 999, 0)
  }
  val = {
    f"ILSVRC2012_val_{k:08d}.JPEG": picture(90000 + k)
    for k in (4, 1, 3, 2, 6, 5)
  }
  make_tree(
    folder, {imagenet.TRAIN.file: tar(train), imagenet.VAL.file: tar(val)}
  )
  return [
    dataclasses.replace(
      archive, size=(folder / archive.file).stat().st_size, count=count
    )
    for archive, count in ((imagenet.TRAIN, 15), (imagenet.VAL, 6))
  ]


# What tensorflow-datasets 4.9.10's own builder of imagenet2012 (5.1.0) made of
# the same two archives: number of synset and file, in the order of the records.
TFDS_TRAIN = "0_21 0_7 0_28 999_7 3_21 999_28 0_0 999_21 3_0 3_7 3_14 999_0"
TFDS_TRAIN += " 999_14 3_28 0_14"
TFDS_VALIDATION = "2:970 4:809 1:65 3:230 5:516 6:57"  # number: label


def test_imagenet_has_the_records_of_tfds(tmp_path):
  published = small_imagenet(tmp_path)
  dataset = imagenet.imagenet2012(str(tmp_path), published=published)
  folder = shards.write(records.plan(dataset), tmp_path / "out")
  builder = tfds.builder_from_directory(folder)
  kept = {"image": tfds.decode.SkipDecoding()}
  classes = synsets.names()
  got = []
  for record in builder.as_data_source("train", decoders=kept):
    label = int(record["label"])
    synset, number = record["file_name"].decode()[: -len(".JPEG")].split("_")
    assert synset == classes[label]
    assert record["image"] == picture(10 * label + int(number) // 7)
    got.append(f"{label}_{number}")
  assert got == TFDS_TRAIN.split()
  got = []
  for record in builder.as_data_source("validation", decoders=kept):
    number = int(record["file_name"][15:23])
    assert record["image"] == picture(90000 + number)
    got.append(f"{number}:{record['label']}")
  assert got == TFDS_VALIDATION.split()
  info = datasets.info("imagenet2012", str(tmp_path / "out"))
  assert info.num_classes == 1000
  assert info.class_names[0] == "n01440764"
  assert info.image_size == (8, 9)  # of these images


def test_validation_alone_needs_one_archive(tmp_path):
  published = small_imagenet(tmp_path)
  (tmp_path / imagenet.TRAIN.file).unlink()
  dataset = imagenet.imagenet2012(str(tmp_path), ["validation"], published)
  assert {s: len(e) for s, e in dataset.splits.items()} == {"validation": 6}


def test_real_labels(tmp_path):
  _, val = small_imagenet(tmp_path)
  labels = json.dumps([[1, 2], [], [3], [4], [5], [6, 7]]).encode()
  (tmp_path / "real.json").write_bytes(labels)
  digest = hashlib.sha256(labels).hexdigest()
  real = dataclasses.replace(imagenet.REAL, size=len(labels), sha256=digest)
  dataset = imagenet.imagenet2012_real(str(tmp_path), (val, real))
  folder = shards.write(records.plan(dataset), tmp_path / "out")
  source = tfds.builder_from_directory(folder).as_data_source(
    "validation", decoders={"image": tfds.decode.SkipDecoding()}
  )
  got = {int(r["file_name"][15:23]): r for r in source}
  assert [list(got[k]["real_label"]) for k in (1, 2, 6)] == [[1, 2], [], [6, 7]]
  assert int(got[1]["original_label"]) == int(got[1]["label"]) == 65
  wrong = dataclasses.replace(real, sha256="0" * 64)
  with pytest.raises(ValueError, match="expected the published file"):
    imagenet.imagenet2012_real(str(tmp_path), (val, wrong))


@pytest.mark.parametrize(
  "name, member, file_name, label",
  [
    ("imagenet_v2", "format-val/12/ab.jpeg", "12/ab.jpeg", 12),
    ("imagenet_a", "imagenet-a/n01491361/0.1_x.jpg", "0.1_x.jpg", 3),
    ("imagenet_r", "imagenet-r/n01491361/art_0.jpg", "n01491361/art_0.jpg", 3),
  ],
)
def test_test_sets(tmp_path, name, member, file_name, label):
  archive = imagenet.TESTS[name][1]
  data = tar({"imagenet/README.txt": b"hello", member: picture(0)})
  (tmp_path / archive.file).write_bytes(data)
  archive = dataclasses.replace(archive, size=len(data), count=1)
  dataset = imagenet.evaluation_set(name, str(tmp_path), archive)
  (example,) = dataset.splits["test"]
  assert (example.name, example.label) == (file_name, label)
  assert images.read(example) == picture(0)


def test_official_archives_are_asked_for_by_name_and_size(tmp_path, capsys):
  args = ("imagenet2012", "--source", tmp_path, "--data-dir", tmp_path / "out")
  status, _, err = run(capsys, *args)
  assert status == 2
  for words in (
    "ILSVRC2012_img_train.tar (147,897,477,120 bytes)",
    "ILSVRC2012_img_val.tar (6,744,924,160 bytes)",
    f"{tmp_path} has no ILSVRC2012_img_train.tar: ImageNet gives it to those",
    "https://image-net.org/download-images",
  ):
    assert words in err
  small_imagenet(tmp_path)  # right in all but its size
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "expected the published 147,897,477,120 bytes, got" in err
  status, _, err = run(capsys, "imagenet_a", *args[1:])
  assert "~hendrycks/imagenet-a.tar" in err
  assert not (tmp_path / "out").exists()


def test_wrong_archives_are_refused(tmp_path):
  train, val = small_imagenet(tmp_path)

  def refusal(data=None, archive=train, **changes):
    path = tmp_path / archive.file
    if data is not None:
      path.write_bytes(data)
      changes["size"] = len(data)
    changed = dataclasses.replace(archive, **changes)
    published = (changed, val) if archive is train else (train, changed)
    with pytest.raises(ValueError, match=archive.file) as error:
      imagenet.imagenet2012(str(tmp_path), published=published)
    return str(error.value)

  assert "expected the published 16 images, got 15" in refusal(count=16)
  assert "another file" in refusal(size=1000)
  right = (tmp_path / train.file).read_bytes()
  assert "expected an intact tar file" in refusal(b"\0" * 99 + b"nonsense")
  assert "gunzip" in refusal(gzip.compress(right))
  assert "tar for each synset, got 'n99.tar'" in refusal(tar({"n99.tar": b""}))
  assert "images, got 0" in refusal(b"\0" * 10240)
  assert "bytes outside it" in refusal(right[: len(right) // 2])


def test_bad_images_of_an_archive_are_named(tmp_path):
  files = {f"ILSVRC2012_val_{k:08d}.JPEG": picture(k) for k in range(1, 4)}
  files["ILSVRC2012_val_00000002.JPEG"] = b""
  data = tar(files)
  (tmp_path / imagenet.VAL.file).write_bytes(data)
  val = dataclasses.replace(imagenet.VAL, size=len(data), count=3)
  dataset = imagenet.imagenet2012(
    str(tmp_path), ["validation"], (imagenet.TRAIN, val)
  )
  assert dataset.bad == [images.Bad("ILSVRC2012_val_00000002.JPEG", "is empty")]
  labels = {e.name: e.label for e in dataset.splits["validation"]}
  assert labels["ILSVRC2012_val_00000003.JPEG"] == 230  # as in TFDS


def test_unpacked_imagenet_gets_the_same_names(tmp_path):
  classes = synsets.names()
  for synset in classes:
    for split in ("train", "val"):
      (tmp_path / split / synset).mkdir(parents=True)
  make_tree(
    tmp_path,
    {
      f"train/{classes[3]}/{classes[3]}_7.JPEG": picture(1),
      f"val/{classes[5]}/ILSVRC2012_val_00000007.JPEG": picture(2),
    },
  )
  dataset = imagenet.imagenet2012(str(tmp_path))
  (one,) = dataset.splits["train"]
  assert (one.name, one.label) == (f"{classes[3]}_7.JPEG", 3)
  (one,) = dataset.splits["validation"]
  assert (one.name, one.label) == ("ILSVRC2012_val_00000007.JPEG", 5)
  assert any("ImageNet's has 1,281,167" in note for note in dataset.notes)
  (tmp_path / "train" / "n1").mkdir()
  with pytest.raises(ValueError, match="got 1,001 others"):
    imagenet.imagenet2012(str(tmp_path))


def unpacked_train(root):
  for synset in synsets.names():
    (root / "train" / synset).mkdir(parents=True)
  name = synsets.names()[3]
  make_tree(root, {f"train/{name}/{name}_7.JPEG": picture(1)})


@pytest.mark.parametrize("below", ["", "ILSVRC/Data/CLS-LOC"])
@pytest.mark.parametrize("val", ["val", "validation"])
def test_flat_validation_images_are_labelled_by_their_numbers(
  tmp_path, below, val
):
  root = tmp_path / below
  unpacked_train(root)
  make_tree(
    root,
    {
      f"{val}/ILSVRC2012_val_00000002.JPEG": picture(2),
      f"{val}/ILSVRC2012_val_00000005.JPEG": picture(5),
      f"{val}/ILSVRC2012_val_00000006.JPEG": b"",
      f"{val}/.DS_Store": b"x",
      "test/ILSVRC2012_test_00000001.JPEG": picture(3),
    },
  )
  make_tree(tmp_path, {"ILSVRC/ImageSets/CLS-LOC/val.txt": b"x"})
  dataset = imagenet.imagenet2012(str(tmp_path))
  labels = {e.name: e.label for e in dataset.splits["validation"]}
  assert labels == {  # of TFDS_VALIDATION
    "ILSVRC2012_val_00000002.JPEG": 970,
    "ILSVRC2012_val_00000005.JPEG": 516,
  }
  assert [e.label for e in dataset.splits["train"]] == [3]
  assert [bad.reason for bad in dataset.bad] == ["is empty"]
  only = imagenet.imagenet2012(str(tmp_path), ["validation"])
  assert only.splits["validation"] == dataset.splits["validation"]
  (root / val / "other.JPEG").write_bytes(picture(1))
  with pytest.raises(ValueError, match=r"_val_00050000.JPEG in .*other.JPEG"):
    imagenet.imagenet2012(str(tmp_path))


def test_one_folder_of_validation_images_is_wanted(tmp_path):
  unpacked_train(tmp_path)
  with pytest.raises(ValueError, match=r"one folder val or validation.*none"):
    imagenet.imagenet2012(str(tmp_path))
  for name in ("val", "validation"):
    (tmp_path / name).mkdir()
  with pytest.raises(ValueError, match="got val and validation"):
    imagenet.imagenet2012(str(tmp_path))
