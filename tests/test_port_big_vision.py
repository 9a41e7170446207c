"""ports/big_vision without big_vision: its two functions stand in for it."""

import ast
import importlib.util
import pathlib
import re
import sys
import types

import big_vision_names as known
import drawn
from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from vitkd_jax import weights
from vitkd_jax.cluster import sharding
from vitkd_jax.commandline import elsewhere
from vitkd_jax.configs import quickstart
from vitkd_jax.diagnostics import similarity
from vitkd_jax.models import posemb, vit
from vitkd_jax.training import experiment

PORT = pathlib.Path(__file__).parents[1] / "ports" / "big_vision"
FILES = sorted(PORT.glob("*/proj/vitkd/*.py"))


def parse_arg(arg, lazy=False, **spec):
  """As big_vision's, for strings and flags."""
  given = dict(x.partition("=")[::2] for x in (arg or "").split(",") if x)
  assert given.keys() <= spec.keys()
  assert not lazy
  read = {
    name: type(spec[name])(value) if value else True
    for name, value in given.items()
  }
  return ml_collections.ConfigDict(spec | read)


@pytest.fixture(scope="module")
def port():
  """(name of a folder, of a file) -> the module, with stubs of big_vision."""
  stubs = {
    "big_vision": {},
    "big_vision.configs": {},
    "big_vision.configs.common": dict(parse_arg=parse_arg),
    "big_vision.evaluators": {},
    "big_vision.evaluators.common": dict(eval_input_pipeline=None),
  }
  before = {name: sys.modules.get(name) for name in stubs}
  for name, values in stubs.items():
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(values)
    parent, _, last = name.rpartition(".")
    if parent:
      setattr(sys.modules[parent], last, sys.modules[name])

  def find(folder, name):
    path = PORT / folder / "proj" / "vitkd" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"port_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module

  yield find
  for name, module in before.items():
    if module is None:
      del sys.modules[name]
    else:
      sys.modules[name] = module


@pytest.fixture(scope="module")
def install():
  spec = importlib.util.spec_from_file_location(
    "port_install", PORT / "install.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def shipped(name):
  """A module of models whose teacher is the shipped one."""
  del name

  def load(init, file, fields):
    params = weights.load(file, num_classes=10, **fields)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, init)
    return params

  return types.SimpleNamespace(Model=vit.Model, load=load)


@pytest.mark.parametrize(
  "devices, options",
  [
    (1, ""),
    pytest.param(4, ",fsdp", marks=pytest.mark.slow),
    pytest.param(1, ",scan", marks=pytest.mark.slow),
  ],
)
def test_an_update_is_the_quickstarts(port, devices, options):
  theirs = port("configs", "fashion").get_config(
    "teacher=shipped:fashion_teacher,runlocal" + options
  )
  ours = quickstart.get_config("method=both,batch_size=16")
  ours.run.fsdp = 4 if "fsdp" in options else 1
  ours.student.scan = "scan" in options
  parts = experiment.build(ours, devices=jax.devices()[:devices])
  state = drawn.state(parts)
  start = jax.device_get((state.params, state.opt_state))
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (16, 28, 28, 3), np.uint8),
    "label": rng.integers(0, 10, 16, np.int32),
  }
  batch = sharding.global_batch(batch, parts.mesh)
  found = port("trainers", "update").make(
    theirs,
    vit.Model(theirs.num_classes, **theirs.model),
    batch["image"].shape,
    shipped,
  )
  taught = found.teachers()
  where = parts.state_shardings()
  params = jax.device_put(start[0], where.params)
  key = jax.random.fold_in(jax.random.key(ours.run.seed), 0)
  loss, grads, measured = jax.jit(found.gradients)(
    params, taught, key, jnp.int32(0), batch["image"], batch["label"]
  )
  updates, _ = parts.optimizer.update(grads, start[1], start[0])
  params = optax.apply_updates(start[0], updates)

  state, report = parts.make_train_step()(state, parts.teacher_params, batch)
  means = {k: a / b for k, (a, b) in jax.device_get(report["metrics"]).items()}
  np.testing.assert_allclose(loss, means["loss"], rtol=1e-5)
  assert set(parts.objective.terms) == {
    name.removeprefix("training_") for name in measured
  } - {"accuracy"}
  for term in parts.objective.terms:
    value = measured[f"training_{term}"]
    np.testing.assert_allclose(value, means[term], rtol=1e-5, err_msg=term)
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(state.params),
    jax.tree.leaves(params),
    strict=True,
  )
  for (path, a), b in pairs:
    # Softmax ignores the keys' biases: their gradient is rounding alone.
    if "['key']['bias']" not in jax.tree_util.keystr(path):
      np.testing.assert_allclose(
        a, b, atol=1e-5, rtol=0, err_msg=jax.tree_util.keystr(path)
      )


@pytest.mark.parametrize("name", ["fashion", "i1k"])
@pytest.mark.parametrize("trial", ["", "runlocal"])
def test_every_key_of_a_config_is_read(port, name, trial):
  config = port("configs", name).get_config(trial)
  assert set(config) <= known.KEYS | known.OURS
  assert ("total_steps" in config) == bool(trial)
  assert set(config.evals) >= {"val", *config.teachers}


@pytest.mark.parametrize(
  "pair, teachers",
  [("s3-ti", ["s3"]), ("l3-b", ["l3"]), ("s3+b3-ti", ["b3", "s3"])],
)
def test_the_papers_pairs_are_made(port, pair, teachers):
  config = port("configs", "i1k").get_config(f"pair={pair}")
  model = vit.Model(1000, **config.model)
  assert model.drop_path == (0.1 if pair == "l3-b" else 0)
  found = port("trainers", "update").make(
    config, model, (8, 224, 224, 3), shipped
  )
  objective = found.objective
  assert sorted(objective.teachers) == teachers
  # The weights of the paper's sum over tokens and channels, shared.
  expected = {"task": 1.0}
  for name in config.teachers:
    expected |= {
      f"vitkd_{name}/mimic": 3e-5 * 196 * 384 / len(teachers),
      f"vitkd_{name}/generation": 3e-6 * 196 * 384 / len(teachers),
      f"nkd_{name}": 1 / len(teachers),
    }
  assert objective.weights == pytest.approx(expected)
  mean, std = objective.teachers[teachers[0]].stats
  assert (mean[0], std[2]) == (0.485, 0.225)
  params = jax.eval_shape(
    lambda key: objective.init_params(key, (1, 224, 224, 3)), jax.random.key(0)
  )
  assert params["student"]["head"]["kernel"].shape[1] == 1000


@pytest.mark.parametrize(
  "change, sentence",
  [
    (dict(loss="sigmoid_xent"), "expected config.loss='softmax_xent', got"),
    (dict(mixup=dict(p=0.2)), "config.mixup or config.augment, got both"),
    (dict(teachers={}), "expected a teacher in config.teachers, got none"),
    (
      {"teachers.nano.init": ""},
      "expected config.teachers.nano.init, a file of weights, got none",
    ),
    (
      {"methods.nkd.weigths": 1},
      "a field of config.methods.nkd to be one of 'temperature', 'gamma'",
    ),
    ({"methods.vitkd.weights.mimick": 1.0}, "the nearest is 'mimic'"),
    ({"methods.nkd.teacher": "nana"}, "the nearest is 'nano'"),
    ({"methods.vitkd.low_blocks": (9,)}, "config.methods.vitkd: "),
    (
      {"teachers.nano.num_classes": 7},
      "expected a teacher of 10 classes for the logits of config.methods.nkd",
    ),
    ({"methods": {}}, "no method learns from config.teachers.nano"),
    (
      {"teachers.nano.image_size": 56},
      "set config.teachers.nano.resample=True",
    ),
  ],
)
def test_what_cannot_be_trained_is_refused(port, change, sentence):
  values = port("configs", "fashion").get_config("teacher=FILE").to_dict()
  for name, value in change.items():
    *parents, last = name.split(".")
    place = values
    for part in parents:
      place = place[part]
    place[last] = value
  config = ml_collections.ConfigDict(values)
  model = vit.Model(10, **config.model)
  with pytest.raises(ValueError, match=re.escape(sentence)):
    port("trainers", "update").make(config, model, (8, 28, 28, 3), shipped)


def leaves(tokens, classes=5, blocks=2, prefix=0):
  rng = np.random.default_rng(1)

  def draw(*shape):
    return rng.standard_normal(shape, np.float32)

  own = {"cls": draw(1, 1, 8)} if prefix else {}
  for block in range(blocks):
    own[f"Transformer/encoderblock_{block}/MlpBlock_0/Dense_0/bias"] = draw(4)
  return own | {
    "pos_embedding": draw(1, tokens, 8),
    "head/bias": draw(classes),
    "head/kernel": draw(8, classes),
  }


def nested(flat):
  return traverse_util.unflatten_dict(flat, sep="/")


def flat(tree):
  return traverse_util.flatten_dict(tree, sep="/")


def test_parameters_are_adapted_as_ours(port):
  adapt = port("models", "model").adapt
  source, wanted = leaves(10, prefix=1), leaves(12, prefix=1)
  found = flat(adapt(nested(source), nested(wanted), grid=(3, 4)))
  # The entry of the CLS token, and nine patches of 3 x 3.
  np.testing.assert_array_equal(
    found["cls"], source["cls"] + source["pos_embedding"][:, :1]
  )
  np.testing.assert_allclose(
    found["pos_embedding"],
    posemb.resize_posemb(jnp.asarray(source["pos_embedding"][:, 1:]), (3, 4)),
    rtol=1e-6,
  )
  np.testing.assert_array_equal(found["head/kernel"], source["head/kernel"])
  with pytest.raises(ValueError, match="grid of the model's 12 patch tokens"):
    adapt(nested(source), nested(wanted))


def test_blocks_are_stacked_and_taken_apart(port):
  adapt = port("models", "model").adapt
  apart = leaves(4, blocks=11)
  name = "Transformer/encoderblock{}/MlpBlock_0/Dense_0/bias"
  each = [apart[name.format(f"_{i}")] for i in range(11)]
  stacked = {k: v for k, v in apart.items() if "encoderblock" not in k}
  stacked[name.format("")] = np.stack(each)
  for a, b in ((apart, stacked), (stacked, apart)):
    found = flat(adapt(nested(a), jax.tree.map(np.zeros_like, nested(b))))
    assert found.keys() == b.keys()
    for key, value in b.items():
      np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_a_head_of_other_classes_is_kept_or_refused(port):
  adapt = port("models", "model").adapt
  source, wanted = leaves(4, classes=7), leaves(4, classes=5)
  with pytest.raises(ValueError, match=r"expected head/bias of shape \(5,\)"):
    adapt(nested(source), nested(wanted))
  found = flat(adapt(nested(source), nested(wanted), ["head/.*"]))
  np.testing.assert_array_equal(found["head/bias"], wanted["head/bias"])
  del source["head/bias"]
  with pytest.raises(ValueError, match=r"1 are missing \(head/bias\)"):
    adapt(nested(source), nested(leaves(4, classes=7)))


def test_the_evaluator_compares_two_models(port, monkeypatch):
  compare = port("evaluators", "compare")
  rng = np.random.default_rng(2)
  images = rng.standard_normal((24, 8, 12, 3), np.float32)
  batches = [
    {"image": images[:16], "_mask": np.ones(16)},
    # Eight, and as many that are there to fill the batch.
    {
      "image": np.concatenate([images[16:], images[:8]]),
      "_mask": np.repeat([1, 0], 8),
    },
  ]
  monkeypatch.setattr(
    compare.common,
    "eval_input_pipeline",
    lambda **options: (lambda: iter(batches), len(batches)),
  )

  def model(depth, seed):
    kernel = np.random.default_rng(seed).standard_normal((depth, 3, 6))

    def apply(image):
      x = image[:, ::4, ::4].reshape(len(image), 6, 3)
      maps = {
        f"block{i:02d}": {"+mlp": jnp.float32(x @ kernel[i])}
        for i in range(depth)
      }
      return maps["block00"]["+mlp"].sum(1)[:, :5], {"encoder": maps}

    side = types.SimpleNamespace(depth=depth, num_prefix_tokens=0)
    return apply, side

  (own, side), (theirs, other) = model(1, 3), model(2, 4)

  def predict(train_state, batch):
    del train_state
    return (own(batch["image"]), side), (theirs(batch["image"]), other)

  found = dict(compare.Evaluator(predict, batch_size=16).run({}))
  a, b = (np.float64(f(images)[0]) for f in (own, theirs))
  log_a, log_b = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (a, b))
  kl = np.sum(np.exp(log_b) * (log_b - log_a), -1)
  np.testing.assert_allclose(found["kl"], kl.mean(), rtol=1e-5)
  np.testing.assert_allclose(
    found["agreement"], np.mean(a.argmax(-1) == b.argmax(-1)), rtol=1e-6
  )
  # Of the whole batch alone, with the teacher's last block.
  x, y = (
    similarity.kernel(
      f(images[:16])[1]["encoder"][name]["+mlp"].reshape(16, -1)
    )
    for f, name in ((own, "block00"), (theirs, "block01"))
  )
  expected = similarity.cka(
    np.asarray(similarity.hsic(x[None], y[None])),
    np.asarray(similarity.own_hsic(x[None])),
    np.asarray(similarity.own_hsic(y[None])),
  )
  assert set(found) == {"kl", "agreement", "cka/block_00"}
  np.testing.assert_allclose(found["cka/block_00"], expected.item(), rtol=1e-5)


def test_the_pages_names_are_those_that_errors_give():
  page = PORT.parents[1] / "docs" / "big_vision.md"
  rows = re.findall(r"^\| (`\w.*`) \| (.*) \|$", page.read_text(), re.M)
  keys = frozenset(elsewhere._OURS.values())
  told = 0
  for theirs, ours in rows:
    names, own = (re.findall(r"`([\w.]+)`", x) for x in (theirs, ours))
    for name in names:
      if found := elsewhere.ours(name, keys):
        told += 1
        assert f"config.{found}" in own, name
  assert told >= 15


def used(path):
  """(module of big_vision, name in it) of all that a file uses."""
  tree = ast.parse(path.read_text())
  modules = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        modules[alias.asname or alias.name] = alias.name
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        name = alias.asname or alias.name
        modules[name] = f"{node.module}.{alias.name}"
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      module = modules.get(node.value.id, "")
      if module.startswith("big_vision"):
        yield module, node.attr


def test_nothing_else_of_big_vision_is_used():
  found = {pair for path in FILES for pair in used(path)}
  expected = {(m, name) for m, names in known.NAMES.items() for name in names}
  assert found == expected


def test_the_updates_module_imports_no_big_vision():
  assert not list(used(PORT / "trainers" / "proj" / "vitkd" / "update.py"))


def train_py(install):
  """A text with every place that is changed, and no more."""
  text = "import functools\n"
  for find, count, _ in install._EDITS:
    text += "".join(f"# {i}\n{find}\n" for i in range(count))
  return f"{text}{install._FROM}rng, 2)\n    gone = 1\n{install._UNTIL}"


def test_the_trainer_is_made_of_their_own(install):
  text = train_py(install)
  made = install.trainer(text)
  assert "gone" not in made
  assert install._LOSS + install._UNTIL in made
  for find, count, new in install._EDITS:
    assert made.count(new) >= count
    with pytest.raises(ValueError, match="another version of big_vision"):
      install.trainer(text.replace(find, "", 1))
    with pytest.raises(ValueError, match="another version of big_vision"):
      install.trainer(text + find)


def test_a_checkout_gets_everything_or_nothing(install, tmp_path, capsys):
  checkout = tmp_path / "checkout"
  assert install.main([str(checkout)]) == 2
  assert "expected a checkout of big_vision" in capsys.readouterr().err
  package = checkout / "big_vision"
  package.mkdir(parents=True)
  (package / "train.py").write_text("import jax\n")
  assert install.main([str(checkout)]) == 2
  assert list(package.iterdir()) == [package / "train.py"]
  (package / "train.py").write_text(train_py(install))
  assert install.main([str(checkout)]) == install.main([str(checkout)]) == 0
  names = {
    str(path.relative_to(package))
    for path in package.rglob("*.py")
    if "vitkd_jax" not in path.parts
  }
  assert names == {
    "train.py",
    "configs/proj/vitkd/fashion.py",
    "configs/proj/vitkd/i1k.py",
    "evaluators/proj/vitkd/compare.py",
    "models/proj/vitkd/model.py",
    "trainers/proj/vitkd/train.py",
    "trainers/proj/vitkd/update.py",
  }
  # What was carried imports itself, and is all there.
  for path in package.rglob("*.py"):
    if "proj" not in path.parts or path.name == "train.py":  # no code here
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      if not isinstance(node, ast.ImportFrom):
        continue
      assert not node.module.startswith("vitkd_jax")
      if not f"{node.module}.".startswith(f"{install.PACKAGE}."):
        continue
      place = checkout.joinpath(*node.module.split("."))
      if place.with_suffix(".py").is_file():
        continue
      for alias in node.names:
        names = (f"{alias.name}.py", f"{alias.name}/__init__.py")
        own = (place / "__init__.py").read_text()
        there = any((place / x).is_file() for x in names)
        assert there or re.search(rf"\b{alias.name}\b", own), alias.name
