"""big_vision's checkpoints: their layout is written here by jax itself."""

import json
import shutil

import drawn
from flax import traverse_util
import jax
from jax.experimental.array_serialization import serialization
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from vitkd_jax import convert, weights
from vitkd_jax.models import fitting, vit
from vitkd_jax.runs import reading, students
from vitkd_jax.runs import workdir as workdirs
from vitkd_jax.training import defaults, experiment
from vitkd_jax.weights import bv_steps

FIELDS = dict(variant="test/7", depth=2, pool_type="gap")
OPTIONS = dict(num_classes=10, image_size=28, **FIELDS)


def save(folder, step, tree):
  """As `save_checkpoint_ts` of big_vision: an array a folder, then -LAST."""
  leaves = traverse_util.flatten_dict(tree, sep="~")
  paths = [f"{folder}/checkpoint.bv-{step}/{name}" for name in leaves]
  manager = serialization.GlobalAsyncCheckpointManager()
  manager.serialize_with_paths(
    list(map(jnp.asarray, leaves.values())),
    paths,
    on_commit_callback=lambda: None,
  )
  manager.wait_until_finished()
  (folder / "checkpoint.bv-LAST").write_text(step)


def state(params):
  """With what is not read: the optimiser's state and clocks."""
  zeros = jax.tree.map(np.zeros_like, params)
  return {
    "params": params,
    "opt": {"1": {"mu": zeros}},
    "chrono": {"accum_train_time": np.float32(1)},
  }


def parameters(seed=0):
  return drawn.params(10, seed, **FIELDS)


def scanned(params):
  leaves = traverse_util.flatten_dict(params, sep="/")
  return traverse_util.unflatten_dict(fitting.stack(leaves), sep="/")


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture
def workdir(tmp_path):
  """A run of big_vision's with two checkpoints."""
  folder = tmp_path / "run"
  folder.mkdir()
  save(folder, "000000006-tmp", state(parameters(6)))
  save(folder, "000000012", state(parameters(12)))
  return folder


@pytest.mark.parametrize(
  "path, step",
  [
    ("", 12),
    ("checkpoint.bv", 12),
    ("checkpoint.bv-LAST", 12),
    ("checkpoint.bv-000000012", 12),
    ("checkpoint.bv-000000006-tmp/", 6),
  ],
)
def test_every_path_of_a_checkpoint_is_read(workdir, path, step):
  loaded = students.load(workdir / path, **OPTIONS)
  assert_same(loaded.params, parameters(step))
  assert_same(weights.load(workdir / path, **OPTIONS), parameters(step))
  assert loaded.sha256() == weights.sha256(loaded.file)


@pytest.mark.parametrize("scan", [False, True])
def test_scanned_and_sharded_models(tmp_path, scan):
  params = parameters()
  mesh = jax.make_mesh((8,), ("data",))

  def shard(leaf):
    spec = ["data" if n % 8 == 0 else None for n in leaf.shape[:1]]
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    return jax.device_put(leaf, where)

  save(tmp_path, "000000001", state(jax.tree.map(shard, scanned(params))))
  files = sorted((tmp_path / "checkpoint.bv-000000001").glob("params~*~kernel"))
  assert any(len(list(file.iterdir())) > 2 for file in files)
  got = weights.load(tmp_path / "checkpoint.bv", scan=scan, **OPTIONS)
  assert_same(got, scanned(params) if scan else params)


def test_bfloat16_becomes_float32(tmp_path):
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters())
  save(tmp_path, "000000001", state(params))
  got = weights.load(tmp_path, **OPTIONS)
  assert_same(got, jax.tree.map(lambda x: x.astype(np.float32), params))
  assert got["head"]["bias"].dtype == np.float32


def parts():
  """What big_vision's trainers of two models save as parameters."""
  return {"img": parameters(1), "student": parameters(2), "t": np.zeros(1)}


@pytest.mark.parametrize("prefix", ["", "params", "opt/target"])
def test_a_part_of_an_npz(tmp_path, prefix):
  leaves = traverse_util.flatten_dict(parts(), sep="/")
  path = tmp_path / "w.npz"
  np.savez(path, **{f"{prefix}/{k}".strip("/"): v for k, v in leaves.items()})
  assert_same(weights.load(f"{path}:img", **OPTIONS), parameters(1))
  loaded = students.load(f"{path}:student", **OPTIONS)
  assert_same(loaded.params, parameters(2))
  assert loaded.sha256() == weights.sha256(path)
  with pytest.raises(ValueError, match=r"'img', 'student'; add .* ':img'"):
    weights.load(path, **OPTIONS)
  with pytest.raises(ValueError, match="a part 'txt', got 'img', 'student'"):
    weights.load(f"{path}:txt", **OPTIONS)


def test_a_part_of_a_checkpoint_and_its_hash(tmp_path):
  save(tmp_path, "000000001", state(parts()))
  loaded = students.load(f"{tmp_path}/checkpoint.bv:student", **OPTIONS)
  assert_same(loaded.params, parameters(2))
  with pytest.raises(ValueError, match=r"'img', 'student'; add .* ':img'"):
    weights.load(tmp_path, **OPTIONS)
  with pytest.raises(ValueError, match="a part 'txt', got 'img', 'student'"):
    weights.load(f"{tmp_path}:txt", **OPTIONS)
  # Of what was read alone.
  other = {**parts(), "img": parameters(3)}
  (tmp_path / "b").mkdir()
  save(tmp_path / "b", "000000001", state(other))
  hashes = {
    students.load(f"{tmp_path}/{path}", **OPTIONS).sha256()
    for path in ("checkpoint.bv:student", "b:student", "b:img")
  }
  assert len(hashes) == 2


def test_a_path_with_a_colon_has_no_part(tmp_path):
  path = tmp_path / "a:b"
  with path.open("wb") as file:
    np.savez(file, **traverse_util.flatten_dict(parameters(), sep="/"))
  assert_same(weights.load(path, **OPTIONS), parameters())
  assert bv_steps.split("gs://bucket/file") == ("gs://bucket/file", None)
  assert bv_steps.split("gs://b/w.npz:img") == ("gs://b/w.npz", "img")


def step(workdir):
  return workdir / "checkpoint.bv-000000012"


@pytest.mark.parametrize(
  "damage, words",
  [
    (
      lambda w: next(step(w).glob("params~head~kernel/0*")).unlink(),
      r"truncated or damaged checkpoint \(array 'head/kernel'\)",
    ),
    (
      lambda w: next(step(w).glob("params~head~bias/0")).write_bytes(b"odd"),
      r"truncated or damaged checkpoint \(array 'head/bias'\)",
    ),
    (
      lambda w: (step(w) / "params~head~bias/.zarray").write_text("{"),
      r"truncated or damaged checkpoint \(array 'head/bias'\)",
    ),
    (lambda w: shutil.rmtree(step(w)), "LAST' names the step 000000012"),
    (
      lambda w: (w / "checkpoint.bv-LAST").write_text("../../a"),
      r"to name a step, such as 000000123, got '../../a'",
    ),
    (
      lambda w: shutil.rmtree(step(w) / "params~head~bias"),
      "the file has no 'head'",
    ),
    (
      lambda w: [shutil.rmtree(p) for p in step(w).glob("params~*")],
      "arrays' names begin with params~, got 'chrono~",
    ),
  ],
)
def test_damaged_ones_are_refused_in_a_sentence(workdir, damage, words):
  damage(workdir)
  with pytest.raises(ValueError, match=words) as error:
    students.load(workdir, **OPTIONS)
  assert "\n" not in str(error.value)


def test_a_workdir_says_what_it_trained(workdir, tmp_path, capsys):
  model = {"variant": "test/7", "depth": 2, "pool_type": "gap", "dropout": 0.1}
  text = json.dumps({"model_name": "vit", "model": model, "num_classes": 10})
  (workdir / "config.json").write_text(text)
  written = convert.convert(
    convert.Options(str(workdir), str(tmp_path / "w.safetensors"), "flat")
  )
  assert "resized" not in capsys.readouterr().out
  assert students.stated(workdir).image_size == (28, 28)
  assert_same(weights.load(written, **OPTIONS), parameters(12))
  (workdir / "config.json").write_text('{"model_name": "siglip"}')
  with pytest.raises(ValueError, match="does not state its model"):
    convert.convert(convert.Options(str(workdir), "w.npz", "flat"))


def test_as_a_student_s_start_and_as_a_teacher(tiny_config, workdir, untraced):
  tiny_config.student = dict(**FIELDS, init=f"{workdir}/checkpoint.bv")
  tiny_config.teachers.teacher = dict(
    weights=str(workdir),
    variant="test/7",
    fields=dict(depth=2),
    dtype="float32",
  )
  built = experiment.build(tiny_config)
  assert_same(built.start.params(), parameters(12))
  np.testing.assert_array_equal(
    built.teacher_params["teacher"]["head"]["bias"],
    parameters(12)["head"]["bias"],
  )
  digest = weights.sha256(f"{workdir}/checkpoint.bv-000000012")
  assert built.start.pin.sha256 == digest
  assert built.teacher_pins["teacher"].sha256 == digest


@pytest.mark.parametrize(
  "fields",
  [
    dict(pool_type="tok", rep_size=True),
    dict(pool_type="map", posemb="sincos2d"),
  ],
)
@pytest.mark.parametrize("stated", [True, False])
def test_a_teacher_of_other_fields(
  tiny_config, tmp_path, fields, stated, untraced
):
  """As the workdir's config.json states them, or as they are given."""
  fields = dict(variant="test/7", **fields)
  params = drawn.params(10, **fields)
  save(tmp_path, "000000001", state(params))
  if stated:
    text = json.dumps({"model_name": "vit", "model": fields})
    (tmp_path / "config.json").write_text(text)
  tiny_config.methods = dict(kl={}, regress={})
  tiny_config.teachers.teacher = dict(
    weights=f"{tmp_path}/checkpoint.bv",
    dtype="float32",
    mean=(0.1, 0.2, 0.3),
    std=(0.5, 0.25, 2.0),
    **(dict(variant="test/7") if stated else _given(fields)),
  )
  built = experiment.build(tiny_config)
  found = built.objective.teachers["teacher"]
  pixels = np.random.default_rng(0).random((2, 28, 28, 3), np.float32)
  images = (pixels - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
  want = jax.jit(vit.Model(10, **fields).apply)({"params": params}, images)[0]
  got = jax.jit(found.model.apply)(
    {"params": built.teacher_params["teacher"]}, found.images(pixels)
  )[0]
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def _given(fields):
  own = {name: value for name, value in fields.items() if name != "variant"}
  return dict(variant=fields["variant"], fields=own)


def test_the_image_tower_of_two_teaches_its_maps(
  tiny_config, tmp_path, untraced
):
  """As of SigLIP: a MAP head, no classes, bfloat16, a part of an npz."""
  fields = dict(variant="test/7", pool_type="map")
  params = drawn.params(None, **fields)
  tree = {"params": {"img": params, "txt": {"head": {"bias": np.zeros(3)}}}}
  leaves = traverse_util.flatten_dict(tree, sep="/")
  path = tmp_path / "siglip.npz"
  np.savez(path, **{k: v.astype(jnp.bfloat16) for k, v in leaves.items()})
  tiny_config.methods = dict(regress={})
  tiny_config.teachers.teacher = dict(
    weights=f"{path}:img", dtype="float32", **_given(fields)
  )
  built = experiment.build(tiny_config)
  got = built.teacher_params["teacher"]
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  assert_same(got, jax.tree.map(lambda x: x.astype(np.float32), rounded))


@pytest.mark.parametrize("config", [None, '{"model_name": "vit"}'])
def test_its_run_is_neither_resumed_nor_reported(workdir, config):
  if config is not None:
    (workdir / "config.json").write_text(config)
  for read in (
    reading.record,
    lambda path: workdirs.claim(
      path, ml_collections.ConfigDict(), default=defaults.default
    ),
  ):
    with pytest.raises(ValueError, match="holds a run of big_vision's"):
      read(str(workdir))
  with pytest.raises(reading.NotARunError, match="run of big_vision's"):
    reading.read(str(workdir), "a")
  assert reading.record_of(str(workdir)) is None
