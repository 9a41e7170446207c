"""Mutated datasets: records, their metadata, archives and trees."""

import contextlib
import dataclasses
import io
import json
import shutil

from array_record.python import array_record_module
import numpy as np
from tensorboardX import record_writer
import tensorflow_datasets as tfds
from trees import make_tree, picture, tar

from fuzz import mutate, runner
from vitkd_jax import prepare
from vitkd_jax.commandline import command
from vitkd_jax.data import datasets, decode
from vitkd_jax.data.builders import (
  imagenet,
  images,
  layout,
  records,
  shards,
  synsets,
)
from vitkd_jax.reporting import confusions, evaluated, plotting, rendering

_NAME = "pets"
_JSON = ("dataset_info.json", "features.json")


def _prepare(source, data_dir, *, name=_NAME, **options):
  with (
    contextlib.redirect_stderr(io.StringIO()),
    contextlib.redirect_stdout(io.StringIO()),
  ):
    prepare.prepare(name, source=str(source), data_dir=str(data_dir), **options)


def _read(data_dir, name=_NAME):
  """Reads every example of every split, as far as it can be read."""
  info = datasets.info(name, str(data_dir))
  assert len(info.class_names) == info.num_classes
  bad = None
  for split in info.num_examples:
    source = datasets.load(name, split, data_dir=str(data_dir))
    for i in range(len(source)):
      try:
        example = source[i]
      except decode.BadRecordError as error:
        bad = error
        continue
      assert 0 <= example["label"] < info.num_classes
      assert example["image"].shape[-1] == 3
  if bad:
    raise bad


def _make_set(folder):
  """A prepared set of two classes and formats; its folder."""
  files = {
    f"{split}/{name}/{i}{suffix}": picture(i, suffix)
    for split in ("train", "val")
    for name in ("cat", "dog")
    for i, suffix in enumerate((".jpg", ".png"))
  }
  _prepare(make_tree(folder / "tree", files), folder / "sets")
  return folder / "sets" / _NAME / "1.0.0"


def _records(path):
  """The records of an array_record file."""
  reader = array_record_module.ArrayRecordReader(str(path))
  found = reader.read_all()
  reader.close()
  return found


def _write(path, found):
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in found:
    writer.write(record)
  writer.close()


def record() -> runner.Target:
  """A record of a set that is read."""

  def read(place, change):
    folder = _make_set(place)
    path = sorted(folder.glob("*-train.*"))[0]
    found = _records(path)
    _write(path, [change(found[0]), *found[1:]])
    _read(place / "sets")

  return runner.Target(
    case=lambda rng, place: read(
      place, lambda data: mutate.mutated_bytes(data, rng)
    ),
    errors=decode.BadRecordError,
    intact=lambda place: read(place, lambda data: data),
  )


def metadata() -> runner.Target:
  """A prepared set's JSON files and class names."""

  def case(rng, place):
    folder = _make_set(place)
    path = folder / rng.choice((*_JSON, *_JSON, "label.labels.txt"))
    _damage(path, rng)
    _read(place / "sets")

  return runner.Target(
    case=case,
    errors=(ValueError, OSError),
    intact=lambda place: (_make_set(place), _read(place / "sets")),
  )


def _damage(path, rng):
  """Mutates a JSON file as a tree half of the time, any other as bytes."""
  if path.suffix == ".json" and rng.random() < 0.7:
    path.write_text(mutate.mutated_json(json.loads(path.read_text()), rng))
  else:
    path.write_bytes(mutate.mutated_bytes(path.read_bytes(), rng))


def _make_tfrecords(place, change=lambda data: data):
  """The set of `_make_set` as TFRecord files; their folder."""
  source = _make_set(place)
  folder = place / "tfrecords"
  folder.mkdir()
  for path in source.iterdir():
    if ".array_record-" in path.name:
      rows = b""
      for data in map(change, _records(path)):
        length = len(data).to_bytes(8, "little")
        for part in (length, data):
          crc = record_writer.masked_crc32c(part).to_bytes(4, "little")
          rows += part + crc
      name = path.name.replace(".array_record-", ".tfrecord-")
      (folder / name).write_bytes(rows)
    elif path.name in (*_JSON, "label.labels.txt"):
      shutil.copy(path, folder)
  info = folder / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  return folder


def tfrecord() -> runner.Target:
  """A TFRecord set: a record, a file of them, or its metadata."""

  def case(rng, place):
    match rng.choice(("record", "file", "metadata")):
      case "record":
        at = rng.randrange(8)
        count = iter(range(8))
        folder = _make_tfrecords(
          place,
          lambda data: (
            mutate.mutated_bytes(data, rng) if next(count) == at else data
          ),
        )
      case "file":
        folder = _make_tfrecords(place)
        path = rng.choice(sorted(folder.glob("*.tfrecord-*")))
        path.write_bytes(mutate.mutated_bytes(path.read_bytes(), rng))
      case _:
        folder = _make_tfrecords(place)
        _damage(folder / rng.choice((*_JSON, "label.labels.txt")), rng)
    read(place, folder)

  def read(place, folder):
    _prepare(folder, place / "out")
    _read(place / "out")

  return runner.Target(
    case=case,
    errors=(
      command.RefusedError,
      command.FailedError,
      decode.BadRecordError,
      ValueError,
    ),
    intact=lambda place: read(place, _make_tfrecords(place)),
  )


def archive() -> runner.Target:
  """ImageNet's two archives."""
  classes = synsets.names()[:2]
  inner = {
    f"{synset}.tar": tar({f"{synset}_{i}.JPEG": picture(i) for i in range(2)})
    for synset in classes
  }
  val = {f"ILSVRC2012_val_{i:08d}.JPEG": picture(10 + i) for i in range(1, 4)}
  whole = {"train": tar(inner), "validation": tar(val)}

  def read(place, split, data):
    official = {"train": imagenet.TRAIN, "validation": imagenet.VAL}
    path = place / official[split].file
    path.write_bytes(data)
    listing = {"train": imagenet._train, "validation": imagenet._validation}
    good, bad = listing[split](str(path), lambda count: None)
    official[split] = dataclasses.replace(
      official[split], size=len(data), count=len(good) + len(bad)
    )
    made = imagenet.imagenet2012(str(place), [split], tuple(official.values()))
    folder = shards.write(records.plan(made), place / "out" / split)
    source = tfds.builder_from_directory(folder).as_data_source(
      split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert len(source) == len(good)
    for example in source:
      assert images.problem("a", 1, example["image"]) is None

  def case(rng, place):
    split = rng.choice(sorted(whole))
    data = bytearray(mutate.mutated_bytes(whole[split], rng))
    if rng.random() < 0.7:
      data = bytearray(whole[split])
      for _ in range(rng.randint(1, 3)):
        _change_header(data, rng)
    read(place, split, bytes(data))

  def intact(place):
    for split, data in whole.items():
      read(place, split, data)

  return runner.Target(case=case, errors=ValueError, intact=intact)


def _change_header(data, rng):
  """Damages a field of one header of a tar, and mends its checksum."""
  starts = [
    i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b"ustar"
  ]
  start = rng.choice(starts)
  at, length = rng.choice(
    ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155))
  )
  value = bytes(rng.randrange(256) for _ in range(length))
  match rng.choice(("bytes", "octal", "flip", "kind")):
    case "octal":
      value = (b"%o" % rng.randrange(8 ** min(length, 11))).rjust(length, b"0")
      value = value[:length]
    case "flip":
      value = bytearray(data[start + at : start + at + length])
      value[rng.randrange(length)] ^= 1 << rng.randrange(8)
    case "kind":
      at, length, value = 156, 1, rng.choice(b"0123456789LKSgxVM\0").to_bytes()
  data[start + at : start + at + length] = value
  data[start + 148 : start + 156] = b" " * 8
  data[start + 148 : start + 156] = b"%06o\0 " % (
    sum(data[start : start + 512]) % 8**6
  )


# Parts of names, from harmless to hostile.
_PARTS = (
  *("cat", "dog", "1", "10", "2", "a b", " ", "\t", "\n", "\r", "\x1b[31m"),
  *("[/b]", "[red]", "$\\foo$", "$", "%s", "{}", "å", "\u202e", "\u2028"),
  *("\ud800", "\udce9", "'", '"', "\\", "-", "-of-", "train", "Test", "__"),
  *("array_record", "😀", "null", "..x", "\x7f", "x" * 60),
)


def _name(rng):
  while True:
    name = "".join(rng.choices(_PARTS, k=rng.randint(1, 3)))
    name = name.replace("/", "_").encode(errors="surrogatepass")[:200]
    name = name.decode(errors="surrogateescape")
    if name not in (".", ".."):
      return name


def trees() -> runner.Target:
  """Trees whose folders have any names, in any arrangement."""

  def case(rng, place):
    root = place / "root"
    words = ("train", "val", "Test", "archive", "__MACOSX", "train/train", "")
    for top in rng.sample(words, rng.randint(1, 3)):
      for _ in range(rng.randint(1, 4)):
        name = _name(rng)
        for i in range(rng.randint(0, 2)):
          folder = root / top / name
          folder.mkdir(parents=True, exist_ok=True)
          data = picture(rng.randrange(9), rng.choice((".jpg", ".png")))
          if rng.random() < 0.05:
            data = mutate.mutated_bytes(data, rng)
          (folder / f"{i}{rng.choice(('.jpg', '.png', '.txt'))}").write_bytes(
            data
          )
    root.mkdir(exist_ok=True)
    trusted = rng.random() < 0.3
    _prepare(root, place / "out", trust_classes=trusted, skip_bad=True)
    found = datasets.info(_NAME, str(place / "out"))
    assert found.num_classes > (not trusted)
    if not trusted:
      assert not layout._called_as_splits(found.class_names)
    _read(place / "out")

  def intact(place):
    files = {f"train/{n}/1.jpg": picture(1) for n in ("cat", "dog")}
    _prepare(make_tree(place / "root", files), place / "out")
    _read(place / "out")

  return runner.Target(
    case=case,
    errors=(command.RefusedError, decode.BadRecordError),
    intact=intact,
  )


def class_names() -> runner.Target:
  """What evaluate prints and draws of classes with any names."""

  def show(names):
    found = {
      "count": 9,
      "top1": 0.5,
      "top5": 0.6,
      "loss": 1.0,
      "classes": [
        {"name": name, "count": 3, "accuracy": 0.5} for name in names
      ],
      "confusion": (np.eye(len(names), dtype=int) + 1).tolist(),
    }
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
      evaluated.show(found, names[0])
    assert "\x1b" not in text.getvalue()
    matrix = np.array(found["confusion"])
    for draw in (
      lambda theme: confusions.matrix(matrix, names, theme),
      lambda theme: confusions.most_frequent([[0, 1, 2]], names, theme),
    ):
      rendering.png(draw, plotting.LIGHT)

  return runner.Target(
    case=lambda rng, place: show([_name(rng) for _ in range(3)]),
    errors=(),
    intact=lambda place: show(["cat", "dog", "eel"]),
  )
