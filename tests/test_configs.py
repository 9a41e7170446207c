"""Every config with every argument builds, and no key of it goes unread."""

import ast
import dataclasses
import importlib.util
import pathlib

from absl import flags
import ml_collections
from ml_collections import config_flags
import pytest

from vitkd_jax.configs import common
from vitkd_jax.data import datasets
from vitkd_jax.distill import methods
from vitkd_jax.models import variants, vit
from vitkd_jax.training import (
  assembly,
  durations,
  experiment,
  inputs,
  method_sections,
  sections,
)
from vitkd_jax.training import fields as student_fields

FOLDER = pathlib.Path(common.__file__).parent

CASES = [
  ("quickstart", "method=baseline"),
  ("quickstart", "method=vitkd"),
  ("quickstart", "method=nkd"),
  ("quickstart", "method=both"),
  ("quickstart", "epochs=2,batch_size=64,seed=5"),
  ("quickstart_teacher", None),
  ("quickstart_teacher", "epochs=2,batch_size=64,seed=5"),
  ("vitkd_i1k", None),
  ("vitkd_i1k", "pair=b3-s,method=vitkd,recipe=deit"),
  ("vitkd_i1k", "pair=l3-b,method=nkd"),
  ("vitkd_i1k", "runlocal"),
  ("multi_teacher_i1k", None),
  ("multi_teacher_i1k", "student=b,recipe=deit,runlocal"),
  ("baseline_i1k", "pair=l3-b"),
  ("baseline_i1k", "recipe=deit,epochs=100"),
  ("folder", "data=fashion_mini"),
  ("folder", "data=fashion_mini,teacher=shipped:fashion_teacher"),
  ("cifar", None),
  ("cifar", "data=cifar100,student=pico,epochs=4,batch_size=64"),
]
# What a config needs.
NEEDED = {"folder": "data=fashion_mini"}
# ImageNet's numbers; neither it nor a teacher is read.
IMAGENET = inputs.Planned(
  info=datasets.Info(
    name="imagenet2012",
    num_classes=1000,
    image_size=None,
    num_examples={"train": 1_281_167, "validation": 50_000},
    class_names=("",) * 1000,
  ),
  image_size=(224, 224),
  num_train=1_281_167,
)


def load(name, arg):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


# Of the models whose steps are traced; each config names blocks of fewer.
DEPTH = 3

DESCRIBING = ("student", "teachers", "methods", "task")
STEP = (*DESCRIBING, "augment", "optimizer")


def test_every_config_file_is_tried():
  files = {p.stem for p in FOLDER.glob("*.py")} - {
    "__init__",
    "common",
    "choices",
  }
  assert files == {name for name, _ in CASES}


def reads(path):
  """Names of the attributes that a module reads."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
      yield node.attr


def test_no_field_of_a_section_goes_unread():
  """A known key that nobody reads would change nothing, and nobody would know.

  The keys of other sections are a function's keywords, which the linter holds
  to be used.
  """
  # Their fields are passed on as keywords, all of them.
  passed_on = {sections.Schedule}
  package = pathlib.Path(sections.__file__).parents[1]
  files = set(package.rglob("*.py")) - {pathlib.Path(sections.__file__)}
  read = {name for path in files for name in reads(path)}
  kinds = [x for x in vars(sections).values() if dataclasses.is_dataclass(x)]
  assert passed_on < set(kinds)
  for kind in set(kinds) - passed_on:
    unread = {field.name for field in dataclasses.fields(kind)} - read
    # `durations.in_steps` reads all of them by their parts.
    unread -= {field.name for field in dataclasses.fields(durations.Every)}
    assert not unread, kind


def nodes(tree):
  """Each dict of the tree that has leaves, with their names."""
  named = [name for name, value in tree.items() if not isinstance(value, dict)]
  if named:
    yield tree, named
  for value in tree.values():
    if isinstance(value, dict):
      yield from nodes(value)


def build(name, arg):
  config = load(name, arg)
  if name.endswith("i1k"):
    return config, experiment.build(config, planned=IMAGENET)
  # Only these images are shipped; the sections are read all the same.
  config.data.name = "fashion_mini"
  return config, experiment.build(config)


@pytest.fixture(scope="module")
def traced():
  """The sections whose step was traced."""
  return set()


@pytest.mark.parametrize("name, arg", CASES)
def test_every_config_builds(name, arg, monkeypatch, traced):
  """Its blocks exist in its models; the steps are traced of fewer blocks."""
  check = experiment.Experiment.check
  with monkeypatch.context() as patch:
    patch.setattr(experiment.Experiment, "check", lambda self: None)
    config, parts = build(name, arg)
  assert parts.total_steps > 0
  # Another batch, length or rate makes no other step.
  step = repr([config.to_dict().get(section) for section in STEP])
  if step in traced:
    return
  traced.add(step)
  if not name.endswith("i1k"):
    check(parts)
    return
  for known, variant in variants.NAMED.items():
    fields = variant.fields | {"depth": DEPTH}
    shallow = dataclasses.replace(variant, fields=fields)
    monkeypatch.setitem(variants.NAMED, known, shallow)
  _, parts = build(name, arg)
  assert parts.objective.student.depth == DEPTH


@pytest.mark.parametrize(
  "name, arg",
  [
    ("quickstart", "method=both"),
    ("quickstart_teacher", None),
  ],
)
def test_every_leaf_under_another_name_is_refused(
  name, arg, monkeypatch, untraced
):
  make, made = assembly.make_objective, []

  def make_once(section, *args, **kwargs):
    """The models are made anew only for sections that describe them."""
    described = [section[name] for name in DESCRIBING]
    if not made or described != made[0]:
      made[:] = described, make(section, *args, **kwargs)
    return made[1]

  monkeypatch.setattr(assembly, "make_objective", make_once)
  config, _ = build(name, arg)
  planned = IMAGENET if name.endswith("i1k") else None
  tree = config.to_dict()
  for node, names in list(nodes(tree)):
    for name in names:
      node[f"{name}_x"] = value = node.pop(name)
      with pytest.raises(ValueError, match=r"unknown|missing"):
        experiment.build(ml_collections.ConfigDict(tree), planned=planned)
      del node[f"{name}_x"]
      node[name] = value


FIELDS = dict(
  patch_size=(8, 8), width=96, depth=3, mlp_dim=100, num_heads=2,
  posemb="sincos2d", rep_size=7, dropout=0.1, pool_type="gap",
  head_zeroinit=False, scan=True, remat_policy="dots_saveable",
  dtype_mm="float16", gelu="tanh", layerscale_init=0.5, drop_path=0.2,
  distilled=False, registers=2, init_scheme="big_vision", class_token=True,
  fc_norm=True, norm_eps=1e-5, lift=24, last_width=24, last_heads=3,
)  # fmt: skip


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_every_field_of_the_student_can_be_overridden(name, monkeypatch):
  assert FIELDS.keys() == student_fields.FIELDS.keys()
  config = load(name, NEEDED.get(name))
  values = flags.FlagValues()
  words = ["program"]
  words += [
    f"--config.student.{name}={value}" for name, value in FIELDS.items()
  ]
  monkeypatch.setattr("sys.argv", words)
  config_flags.DEFINE_config_dict("config", config, flag_values=values)
  values(words)
  found = student_fields.given(config).student.to_dict()
  wanted = load(name, NEEDED.get(name)).student.variant
  assert found.pop("variant") == wanted
  assert found == FIELDS


def test_fields_that_nobody_set_are_the_variants():
  wanted = dict(variant="deit_pico_patch4_28", init_scheme="big_vision")
  config = load("quickstart", None)
  assert student_fields.given(config).student.to_dict() == wanted
  # What was a plain dict in between makes the same model.
  again = ml_collections.ConfigDict(config.to_dict())
  found = student_fields.given(again).student.to_dict()
  assert vit.Model(**found) == vit.Model(**wanted), found
  # A None that was written stays: deit3 without its LayerScale.
  own = ml_collections.ConfigDict({"student": {"layerscale_init": None}})
  assert student_fields.given(own).student.to_dict() == {
    "layerscale_init": None
  }


TRIALS = sorted({name for name, _ in CASES}) + ["labs/methods"]


@pytest.mark.parametrize("name", TRIALS)
@pytest.mark.parametrize("epochs, steps", [(1, 8), (0.5, 4)])
def test_a_trial_is_short_and_may_be_shorter(
  name, epochs, steps, monkeypatch, untraced
):
  """Of 64 images; no warm-up outlasts it, and nothing but the length counts."""
  wanted = {"folder": "data=fashion_mini", "labs/methods": "arm=none"}
  parts = [wanted.get(name, ""), "runlocal", "epochs=1" * (epochs == 1)]
  config = load(name, ",".join(filter(None, parts)))
  if epochs == 0.5:
    config.run.epochs = epochs
  for key in "train_split", "eval_split":
    assert config.data[key].endswith("[:64]")
  trial = None
  if not name.endswith("i1k"):
    config.data.name = "fashion_mini"
  else:
    trial = dataclasses.replace(IMAGENET, num_train=64)
  parts = experiment.build(config, planned=trial)
  assert parts.total_steps == steps
  assert config.data.num_workers == 0
  assert (parts.run.log_every, parts.run.eval_every) == (1, 0)


@pytest.mark.parametrize("recipe", ["mmcls", "deit"])
def test_a_trial_of_each_recipe(recipe, untraced):
  config = load("baseline_i1k", f"runlocal,recipe={recipe}")
  trial = dataclasses.replace(IMAGENET, num_train=64)
  assert experiment.build(config, planned=trial).total_steps == 16


def test_a_trial_of_few_images_that_are_one_split(monkeypatch):
  """A slice beyond a split's end is refused by TFDS."""
  info = dataclasses.replace(
    datasets.info("fashion_mini"), num_examples={"train": 50}
  )
  monkeypatch.setattr(datasets, "info", lambda *_: info)
  config = load("folder", "data=fashion_mini,runlocal")
  assert config.data.train_split == "train[:45]"
  assert config.data.eval_split == "train[-5:]"


def test_the_learning_rate_can_be_overridden():
  config = load("quickstart", None)
  config.schedule.peak = 5e-4
  assert config.schedule.peak == 5e-4


def test_overriding_the_batch_size_scales_the_learning_rate():
  config = load("quickstart", None)
  before = config.schedule.peak
  config.run.batch_size *= 2
  assert config.schedule.peak == pytest.approx(2 * before)


def test_methods_differ_in_nothing_but_the_losses():
  baseline, both = (load("quickstart", f"method={m}").to_dict()
                    for m in ("baseline", "both"))  # fmt: skip
  for section in ("run", "data", "augment", "student", "schedule", "optimizer"):
    assert baseline[section] == both[section]


def test_the_papers_recipe():
  """Numbers of method.md's source: the paper's DeiT configs (mmcls 0.x)."""
  config = load("vitkd_i1k", "pair=l3-b")
  assert config.schedule.peak == pytest.approx(1e-3)
  assert config.schedule.warmup_start == pytest.approx(1e-6)
  assert config.schedule.end == pytest.approx(1e-5)
  assert config.schedule.warmup_epochs == 20
  assert config.optimizer.clip_norm == 5
  assert config.optimizer.weight_decay == 0.05
  assert config.student.drop_path == 0.1
  assert config.run.ema_decay == 0.99996
  assert config.data.repeats == 1
  assert config.methods.vitkd.weights.mimic == 3e-5
  assert config.methods.vitkd.weights.generation == 3e-6
  assert config.methods.nkd.weights.nkd == 1
  assert config.methods.nkd.gamma == 1
  assert config.augment.randaugment_ops == 2
  assert config.augment.erase == 0.25
  config.run.batch_size = 4096  # linear scaling, the warm-up's ends with it
  assert config.schedule.peak == pytest.approx(4e-3)
  assert config.schedule.end == pytest.approx(4e-5)
  tiny = load("vitkd_i1k", "pair=s3-ti")
  assert tiny.student.drop_path == 0
  assert tiny.run.ema_decay == 0


def test_deits_recipe():
  """Numbers of DeiT's main.py (arXiv:2012.12877, table 9)."""
  config = load("baseline_i1k", "pair=s3-ti,recipe=deit")
  assert config.schedule.warmup_epochs == 5
  assert config.schedule.warmup_start == 1e-6
  assert config.schedule.end == 1e-5
  assert config.optimizer.clip_norm == 0
  assert config.student.drop_path == 0.1
  assert config.run.ema_decay == 0.99996
  assert config.data.repeats == 3
  assert not config.teachers


@pytest.mark.parametrize(
  "arg, said",
  [
    ("methd=both", "unknown config argument 'methd'; the nearest is 'method'"),
    ("method=vitk", "the nearest is 'vitkd'"),
    ("epochs=many", "epochs to be of type float, got 'many'"),
  ],
)
def test_wrong_arguments_are_refused(arg, said):
  with pytest.raises(ValueError, match=said):
    load("quickstart", arg)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_is_refused(text):
  with pytest.raises(
    ValueError, match=f"epochs to be a finite .* got '{text}'"
  ):
    common.parse_arg(f"epochs={text}", epochs=0.0)


def test_a_bare_name_is_true():
  assert common.parse_arg("runlocal", runlocal=False) == {"runlocal": True}
  assert common.parse_arg("runlocal=False", runlocal=True) == {
    "runlocal": False
  }


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_works_in_the_quickstart(name, untraced):
  config = student_fields.given(load("quickstart", f"method={name}"))
  parts = experiment.build(method_sections.completed(config))
  assert parts.objective.methods.keys() == {name}
