"""Files of weights that are no files, too large, damaged, or not numbers."""

import json
import math
import os
import signal
import subprocess
import sys
import zipfile

import drawn
from flax import traverse_util
import jax
import numpy as np
import pytest
import safetensors
from test_weights import MODELS, SIZE, flat

from vitkd_jax import check, weights
from vitkd_jax.weights import files, opening, reading, resolve

FIELDS = MODELS["big_vision"]


def load(path, **changes):
  return weights.load(
    path, **{**FIELDS, "num_classes": 5, "image_size": SIZE, **changes}
  )


def write(path, **changes):
  files.write_npz(path, flat(drawn.params(**FIELDS)) | changes)
  return path


def write_plain(path, arrays):
  files.write_safetensors(path, arrays, {})


@pytest.fixture
def unpacked(monkeypatch):
  """Names of the arrays that are read from files."""
  names = []
  get = np.lib.npyio.NpzFile.__getitem__
  monkeypatch.setattr(
    np.lib.npyio.NpzFile,
    "__getitem__",
    lambda self, name: names.append(name) or get(self, name),
  )
  opened = safetensors.safe_open
  monkeypatch.setattr(
    safetensors,
    "safe_open",
    lambda path, framework: names.append(path) or opened(path, framework),
  )
  return names


@pytest.mark.parametrize("call", [load, resolve.stated, weights.sha256])
@pytest.mark.parametrize(
  "make, words",
  [
    (os.mkfifo, "regular file, got a FIFO"),
    (lambda path: os.symlink("/dev/zero", path), "got a device"),
    (lambda path: os.symlink(path, path), "symbolic links|expected weights at"),
  ],
)
def test_what_is_no_regular_file_is_refused(tmp_path, make, words, call):
  path = tmp_path / "w.safetensors"
  make(path)
  with pytest.raises(ValueError, match=words):
    call(path)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  params = drawn.params(**FIELDS)
  weights.save("~/w.npz", params, format="flat", image_size=SIZE, **FIELDS)
  assert (tmp_path / "w.npz").exists()
  read = load("~/w.npz")
  np.testing.assert_array_equal(read["head"]["bias"], params["head"]["bias"])


def test_a_folder_in_a_file_s_place(tmp_path):
  (tmp_path / "model.safetensors").mkdir()
  with pytest.raises(ValueError, match="got a folder"):
    load(tmp_path)


@pytest.mark.parametrize("write", [files.write_npz, write_plain])
def test_more_than_the_memory_is_not_read(
  tmp_path, monkeypatch, write, unpacked
):
  path = tmp_path / ("w" + (".npz" if write == files.write_npz else ".st"))
  write(path, flat(drawn.params(**FIELDS)))
  assert load(path)
  unpacked.clear()
  monkeypatch.setattr(os, "sysconf", lambda name: 1 << 6)  # 4 KiB
  with pytest.raises(ValueError, match=r"needs 0\.0 GB of memory, but this"):
    load(path)
  assert not unpacked


def test_no_memory_left_is_one_sentence(tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise MemoryError

  monkeypatch.setattr(np, "load", fail)
  with pytest.raises(ValueError, match="not fit in the memory"):
    load(write(tmp_path / "w.npz"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  "leaf", ["head/bias", "Transformer/encoder_norm/scale"]
)
def test_one_number_that_is_not_finite_is_named(tmp_path, value, leaf):
  array = flat(drawn.params(**FIELDS))[leaf].copy()
  array[-1] = value
  words = rf"w\.npz: leaf '{leaf}'.*finite.*in 1 of {array.size}"
  with pytest.raises(ValueError, match=words):
    load(write(tmp_path / "w.npz", **{leaf: array}))


def test_numbers_beyond_float32(tmp_path):
  bias = np.full(5, 1e300)
  with pytest.raises(ValueError, match=r"head/bias.*infinity in 5 of 5"):
    load(write(tmp_path / "w.npz", **{"head/bias": bias}))


@pytest.mark.parametrize(
  "array, words",
  [
    (np.zeros(5, np.int8), "floating point, got int8.*quantised"),
    (np.zeros(5, "S3"), "expected numbers, got dtype .S3"),
    (np.zeros(5, np.complex64), "expected numbers, got dtype complex64"),
    (np.zeros(5, [("a", "f4")]), "expected numbers"),
    (np.zeros(5, "datetime64[s]"), "expected numbers"),
    (np.array(1.0), r"head/bias.*\(\)"),
  ],
)
def test_leaves_that_are_no_floats(tmp_path, array, words):
  with pytest.raises(ValueError, match=words) as error:
    load(write(tmp_path / "w.npz", **{"head/bias": array}))
  assert "head/bias" in str(error.value)


@pytest.mark.parametrize(
  "leaf, shape",
  [
    ("pos_embedding", (16, 32)),
    ("pos_embedding", (2, 16, 32)),
    ("pos_embedding", (1, 0, 32)),
    ("pos_embedding", (1, 16, 0)),
    ("pos_embedding", ()),
    ("cls", (1, 1, 31)),
    ("cls", ()),
    ("head/kernel", (32,)),
    ("head/kernel", (32, 0)),
    ("head/bias", (4,)),
    ("head/bias", (5, 1)),
    ("Transformer/encoderblock/LayerNorm_0/scale", ()),
    ("Transformer/encoderblock/LayerNorm_0/scale", (9999, 32)),
  ],
)
def test_leaves_of_no_model_s_shape(tmp_path, leaf, shape):
  fields = dict(FIELDS, pool_type="tok")
  leaves = flat(drawn.params(**fields)) | {leaf: np.zeros(shape, np.float32)}
  files.write_npz(tmp_path / "w.npz", leaves)
  with pytest.raises(ValueError, match=leaf):
    load(tmp_path / "w.npz", **fields)


@pytest.mark.parametrize(
  "header",
  [
    b"{" + b"[" * 100_000,
    b'{"__metadata__": {"a": 1}}',
    b'{"__metadata__": []}',
    b'{"a": 3}',
    b"{\xff}",
  ],
)
def test_a_damaged_safetensors_header(tmp_path, header):
  path = tmp_path / "w.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header)
  with pytest.raises(ValueError, match="truncated or damaged safetensors"):
    load(path)


def test_a_type_that_numpy_lacks(tmp_path):
  tensor = {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}
  header = json.dumps({"a": tensor}).encode()
  path = tmp_path / "w.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
  with pytest.raises(ValueError, match="got dtype F8_E4M3 in tensor 'a'"):
    load(path)


def test_more_tokens_than_any_attention(tmp_path):
  path = write(tmp_path / "w.npz")
  with pytest.raises(
    ValueError, match=r"at most 65,536 .*100000x100000 pixels"
  ):
    load(path, image_size=100_000)


def test_an_index_s_hash_is_of_its_shards_too(tmp_path):
  shards = split(tmp_path)
  before = weights.sha256(tmp_path / "model.safetensors.index.json")
  name, arrays = next(iter(shards.items()))
  leaf = next(iter(arrays))
  files.write_safetensors(
    tmp_path / name, arrays | {leaf: arrays[leaf] + 1}, {}
  )
  assert weights.sha256(tmp_path / "model.safetensors.index.json") != before


def split(folder, **changes):
  """A model in two shards and their index; the arrays of each shard."""
  arrays = flat(drawn.params(**FIELDS))
  names = sorted(arrays)
  shards, where = {}, {}
  for i, part in enumerate((names[::2], names[1::2])):
    file = f"model-{i + 1:05}-of-00002.safetensors"
    shards[file] = {name: arrays[name] for name in part}
    files.write_safetensors(folder / file, shards[file], {})
    where |= dict.fromkeys(part, file)
  index = {"metadata": {"total_size": 1}, "weight_map": where | changes}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return shards


@pytest.mark.parametrize("part", ["", "model.safetensors.index.json"])
def test_a_folder_of_shards(tmp_path, part):
  split(tmp_path)
  got = traverse_util.flatten_dict(load(tmp_path / part), sep="/")
  for name, array in flat(drawn.params(**FIELDS)).items():
    np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"head/bias": "../w.safetensors"}, "a file beside it for tensor 'head"),
    ({"head/bias": 3}, "a file beside it for tensor 'head/bias', got 3"),
    ({"x": "model-00001-of-00002.safetensors"}, "expected a tensor 'x' in"),
    ({"x": "model-00003.safetensors"}, "No such file"),
  ],
)
def test_an_index_that_does_not_fit(tmp_path, changes, words):
  split(tmp_path, **changes)
  with pytest.raises(ValueError, match=words):
    load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "{}", "[" * 100_000])
def test_an_index_that_is_none(tmp_path, text):
  split(tmp_path)
  (tmp_path / "model.safetensors.index.json").write_text(text)
  with pytest.raises(ValueError, match=r"index\.json"):
    load(tmp_path)


def test_a_null_character_in_a_name():
  with pytest.raises(ValueError, match="cannot read weights"):
    reading.read("w\0.npz")
  with pytest.raises(ValueError, match="nested too deep"):
    check.parse_json("[" * 100_000, "the file")


@pytest.mark.parametrize("call", [load, resolve.stated, weights.sha256])
@pytest.mark.parametrize(
  "url", ["http://127.0.0.1:9/a.npz", "ftp://h/a", "x://"]
)
def test_a_url_of_another_scheme_is_refused_at_once(url, call):
  said = "expected a local path or a URL of gs, s3, file, got"
  with pytest.raises(ValueError, match=said):
    call(url)


def test_a_url_of_a_file(tmp_path):
  path = write(tmp_path / "a.npz")
  jax.tree.map(
    np.testing.assert_array_equal, load(f"file://{path}"), load(path)
  )


def test_what_a_killed_export_left_is_removed(tmp_path):
  code = f"""
import os, signal
from vitkd_jax.weights import files
with files.replacing({str(tmp_path / "student.safetensors")!r}) as path:
  os.kill(os.getpid(), signal.SIGKILL)
"""
  done = subprocess.run([sys.executable, "-c", code], check=False)
  assert done.returncode == -signal.SIGKILL
  assert len(list(tmp_path.iterdir())) == 1
  others = (".student.safetensors", ".other.safetensors.abcdefgh")
  for name in others:
    (tmp_path / name).touch()
  files.remove_unfinished(tmp_path / "student.safetensors")
  assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_an_archive_that_unpacks_to_far_more_is_no_weights(
  tmp_path, monkeypatch, unpacked
):
  path = tmp_path / "bomb.npz"
  table = np.zeros((1, 128 * 128, 32), np.float32)  # of another grid
  leaves = flat(drawn.params(**FIELDS)) | dict(pos_embedding=table)
  leaves = {name: np.zeros_like(leaf) for name, leaf in leaves.items()}
  np.savez_compressed(path, **leaves)
  assert load(path)
  assert len(unpacked) == len(leaves)
  unpacked.clear()
  monkeypatch.setattr(opening, "_SMALL", 1 << 20)
  with pytest.raises(
    ValueError, match=r"bomb\.npz', got an archive of 0\.0 MB that unpacks to"
  ):
    load(path)
  assert not unpacked


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors"])
@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"zeros": (1 << 28, 8)}, "the model lacks 'zeros'"),
    ({"pos_embedding": (1, 1 << 28, 32)}, "pos_embedding.* got 268,435,456$"),
    ({"head/kernel": (32, 1 << 28)}, r"head/kernel.* got \(32, 268435456\)"),
    ({"cls": (1 << 28, 24)}, r"'cls': expected 3 axes"),
    ({"embedding/kernel": (4, 4, 3, 1 << 24)}, "embedding/kernel.* expected"),
  ],
)
def test_names_and_shapes_are_judged_before_arrays_are_read(
  tmp_path, unpacked, monkeypatch, name, changed, words
):
  # Headers alone, with no number behind them.
  monkeypatch.setattr(opening, "check_memory", lambda *_: None)
  shapes = {n: x.shape for n, x in flat(drawn.params(**FIELDS)).items()}
  shapes |= changed
  path = tmp_path / name
  if name == "w.npz":
    with zipfile.ZipFile(path, "w") as archive:
      for leaf, shape in shapes.items():
        header = dict(descr="<f4", fortran_order=False, shape=shape)
        with archive.open(f"{leaf}.npy", "w") as file:
          np.lib.format.write_array_header_1_0(file, header)
  else:
    entries, end = {}, 0
    for leaf, shape in shapes.items():
      begin, end = end, end + 4 * math.prod(shape)
      entries[leaf] = dict(dtype="F32", shape=shape, data_offsets=[begin, end])
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
  with pytest.raises(ValueError, match=words):
    load(path)
  assert not unpacked
