"""Labs: their configs, their runs as stand-in processes, what they show."""

import functools
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import ml_collections
import numpy as np
import pytest

from vitkd_jax.commandline import arguments
from vitkd_jax.configs.labs import bases
from vitkd_jax.labs import (
  description,
  estimates,
  figures,
  launching,
  machine,
  plan,
  records,
  results,
  shown,
)
from vitkd_jax.reporting import figures as reports
from vitkd_jax.reporting import rendering
from vitkd_jax.runs import lock

# Of ml_collections, which loads config files.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

ROOT = pathlib.Path(__file__).parents[1]
LABS = ROOT / "configs" / "labs"
DESCRIBED = dict(
  name="l",
  question="Which?",
  reference="none",
  seeds=2,
  varies=("methods", "teachers"),
  arms=dict(none=dict(says="labels"), nkd=dict(says="NKD", claim="+2")),
)

# What a training leaves: its top-1 is ARM's score plus the seed.
STAND_IN = """
import json, os, pathlib, sys, time
options = dict(x.lstrip("-").split("=", 1) for x in sys.argv[1:])
folder = pathlib.Path(options["workdir"])
arm, seed = folder.parent.name, int(options["config.run.seed"])
folder.mkdir(parents=True, exist_ok=True)
with open(folder.parents[1] / "order", "a") as order:
  print(arm, seed, file=order)
if arm == "refused":
  print("error: no such thing", file=sys.stderr)
  sys.exit(2)
if arm == "broken":
  raise MemoryError("out of memory")
while not (folder.parents[1] / "go").exists():
  time.sleep(0.01)
config = dict(run=dict(seed=seed, batch_size=2), methods={}, task={})
(folder / "config.json").write_text(json.dumps(dict(config=config)))
score = dict(none=0.5, nkd=0.52, wttm=0.51)[arm] + seed / 100
line = dict(step=4, eval_top1=score, images_per_second=10.0, eta_seconds=0.0)
(folder / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
(folder / "student.safetensors").write_bytes(b"")
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
  """Trainings that are a few lines of Python."""
  monkeypatch.setattr(
    plan.Run,
    "command",
    property(lambda run: [sys.executable, "-c", STAND_IN, *run.options]),
  )
  (tmp_path / "go").touch()
  return tmp_path


def described(*arms, **changes):
  listed = {name: dict(says=name) for name in arms or ("none", "nkd")}
  return description.make({**DESCRIBED, "arms": listed, **changes})


def runs_of(lab, folder):
  return plan.runs(lab, "lab.py:epochs=1", str(folder))


def train(runs, *, jobs=1, **options):
  said = []
  outcome = launching.train(
    runs, jobs=jobs, say=lambda line, ended: said.append(line), **options
  )
  return outcome, said


def order(folder):
  lines = (folder / "order").read_text().splitlines()
  return [(arm, int(seed)) for arm, seed in map(str.split, lines)]


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(seed=3), "unknown key config.seed of a lab; the nearest is 'seeds'"),
    (dict(question=""), "expected a lab with config.question, got none"),
    (dict(seeds=0), "expected a lab with config.seeds"),
    (dict(seeds=-1), "expected an integer config.seeds >= 1, got -1"),
    (dict(reference="nnd"), "config.reference to be one of 'none', 'nkd'"),
    (dict(arms=dict(none={})), "expected at least two arms"),
    (dict(arms={"none": {}, "a/b": {}}), "they are folders, got 'a/b'"),
    (
      dict(arms=dict(none={}, nkd=dict(say="x"))),
      "unknown key config.arms.nkd.say; the nearest is 'says'",
    ),
    (
      dict(claims=dict(a=dict(says="x", better="nkd", worse="non"))),
      "an arm of config.claims to be one of 'none', 'nkd', got 'non'",
    ),
    (
      dict(arms=dict(none={}, nkd=dict(against="kd"))),
      "config.arms.nkd.against to be one of",
    ),
  ],
)
def test_descriptions_that_are_refused(changes, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    description.make({**DESCRIBED, **changes})


def test_a_training_is_no_lab():
  with pytest.raises(ValueError, match=r"a lab's config.*got a training's"):
    description.make(arguments.load(str(ROOT / "configs/quickstart.py")))


def test_every_arm_is_compared_with_the_reference_or_its_own():
  arms = dict(none={}, a={}, b=dict(against="a"))
  lab = description.make({**DESCRIBED, "arms": arms})
  against = {name: arm.against for name, arm in lab.arms.items()}
  assert against == {"none": "", "a": "none", "b": "a"}


def configs(**changes):
  """Configs of two arms that differ in their methods, and in `changes`."""
  one = arguments.load(f"{LABS / 'methods.py'}:arm=none")
  two = arguments.load(f"{LABS / 'methods.py'}:arm=nkd")
  for key, value in changes.items():
    section, _, name = key.partition("__")
    two[section][name] = value
  return dict(none=one, nkd=two)


def test_arms_differ_in_what_the_lab_varies_alone():
  lab = described()
  plan.completed(lab, configs())
  # The seed, and what changes no result, may differ.
  plan.completed(lab, configs(run__seed=7, run__log_every=3))
  with pytest.raises(
    ValueError,
    match=r"arm nkd differs from none in config\.run\.ema_decay \(0\.5 "
    r"for 0\.0\)"
    ".*it varies methods, teachers",
  ):
    plan.completed(lab, configs(run__ema_decay=0.5))
  varied = described(varies=("methods", "teachers", "run.ema_decay"))
  plan.completed(varied, configs(run__ema_decay=0.5))


def test_arms_that_are_the_same_are_refused():
  found = configs()
  with pytest.raises(ValueError, match="arms none and nkd are the same"):
    plan.completed(described(), dict(none=found["nkd"], nkd=found["nkd"]))


def test_a_digest_is_of_the_training_without_its_seed():
  lab = described()
  same = [
    plan.digest(plan.completed(lab, configs(**changes))["nkd"])
    for changes in ({}, dict(run__seed=5), dict(run__log_every=9))
  ]
  assert len(set(same)) == 1
  other = plan.completed(
    described(varies=("methods", "teachers", "run")), configs(run__epochs=9.0)
  )
  assert plan.digest(other["nkd"]) != same[0]


def test_runs_go_seed_by_seed_and_state_their_command(tmp_path):
  runs = runs_of(described("none", "nkd", "wttm"), tmp_path)
  assert [(run.arm, run.seed) for run in runs] == list(
    (arm, seed) for seed in range(2) for arm in ("none", "nkd", "wttm")
  )
  assert runs[4].command == [
    sys.executable,
    "-m",
    "vitkd_jax.train",
    "--config=lab.py:epochs=1,arm=nkd",
    "--config.run.seed=1",
    f"--workdir={tmp_path}/nkd/seed_1",
  ]


def test_shares_are_disjoint_and_whole(tmp_path):
  runs = runs_of(described("none", "nkd", "wttm"), tmp_path)
  shares = [plan.share(runs, f"{i}/4") for i in range(1, 5)]
  assert sorted(map(str, itertools.chain(*shares))) == sorted(map(str, runs))
  assert [len(share) for share in shares] == [2, 2, 1, 1]
  for wrong in ("0/4", "5/4", "4", "a/b"):
    with pytest.raises(ValueError, match="expected --only=i/n"):
      plan.share(runs, wrong)


def test_a_lab_trains_what_is_missing(stand_in):
  runs = runs_of(described(), stand_in)
  outcome, said = train(runs)
  assert outcome == launching.Outcome({}, ())
  assert order(stand_in) == [("none", 0), ("nkd", 0), ("none", 1), ("nkd", 1)]
  assert said[0].startswith("0 of 4 runs done, none seed 0: ")
  assert said[-1] == "4 of 4 runs done"
  record = records.record(runs[0])
  assert record["starts"] == 1
  assert record["host"] == machine.said()
  assert records.seconds(runs[0]) == record["seconds"] > 0
  train(runs)
  assert len(order(stand_in)) == 4  # nothing is trained twice
  (stand_in / "nkd" / "seed_1" / "student.safetensors").unlink()
  train(runs)
  assert order(stand_in)[4:] == [("nkd", 1)]
  assert records.record(runs[3])["starts"] == 2


def test_an_arm_that_fails_does_not_stop_the_others(stand_in):
  runs = runs_of(described("none", "refused", "broken", "nkd"), stand_in)
  # One at a time: of several, the refused one's process may be the last to run.
  outcome, said = train(runs)
  why = {str(run): text for run, text in outcome.failed.items()}
  # Another seed of a refused config would be refused, too.
  assert why == {
    "refused seed 0": "no such thing",
    "refused seed 1": "no such thing",
    "broken seed 0": "MemoryError: out of memory",
    "broken seed 1": "MemoryError: out of memory",
  }
  assert ("refused", 1) not in order(stand_in)
  assert said[-1] == "4 of 8 runs done, 4 failed"


def test_a_run_that_another_process_trains_is_waited_for(stand_in, monkeypatch):
  monkeypatch.setattr(launching, "_LOOK_SECONDS", 0.05)
  runs = runs_of(described(), stand_in)
  other, done = lock.hold(runs[0].workdir), []

  def say(line, ended):
    done.append(line)
    if "is being trained by another process" in line:
      other.__exit__(None, None, None)

  with other:
    outcome = launching.train(runs, jobs=1, say=say)
    assert lock.is_held(runs[0].workdir) is False
  assert not outcome.failed
  assert ("none", 0) in order(stand_in)
  assert order(stand_in)[0] != ("none", 0)


def test_a_budget_trims_seeds_before_arms(stand_in, monkeypatch):
  runs = runs_of(described(), stand_in)
  train(runs[:2])
  monkeypatch.setattr(records, "seconds", lambda run: 100.0)
  # Enough for one run, but not for both of a seed.
  outcome, _ = train(runs, budget=150.0)
  assert [str(run) for run in outcome.left] == [str(run) for run in runs[2:]]
  train(runs, budget=250.0)
  assert order(stand_in)[2:] == [("none", 1), ("nkd", 1)]
  more = runs_of(described(seeds=3), stand_in)
  outcome, _ = train(more, budget=0.0)
  assert len(outcome.left) == 2


def test_a_signal_reaches_the_trainings(stand_in, monkeypatch):
  """Which end, and are left for the next start."""
  monkeypatch.setattr(launching, "_LOOK_SECONDS", 0.05)
  (stand_in / "go").unlink()
  runs, sent = runs_of(described(), stand_in), []

  def say(line, ended):
    # Both have started, or there is nothing to interrupt.
    started = (stand_in / "order").exists() and len(order(stand_in)) == 2
    if started and not sent:
      sent.append(line)
      signal.raise_signal(signal.SIGTERM)

  outcome = launching.train(runs, jobs=2, say=say)
  assert outcome.stopped == signal.SIGTERM
  assert not outcome.failed
  assert len(outcome.left) == 4
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_pack_is_of_one_seed(stand_in, monkeypatch):
  """A process trains several, and says of each how it ended."""
  several = """
import subprocess, sys
groups = " ".join(sys.argv[1:]).split(" -- ")
statuses = []
for group in groups:
  options = group.removeprefix("-- ").split()
  done = subprocess.run(
    [sys.executable, "-c", ONE, *options], stderr=subprocess.DEVNULL
  )
  if done.returncode:
    print(f"error: {options[-1].removeprefix('--workdir=')}: it broke")
  statuses.append(done.returncode)
print("error: some did not end well, see above")
sys.exit(bool(any(statuses)))
"""
  started = []

  def command(runs):
    started.append([str(run) for run in runs])
    code = several.replace("ONE", repr(STAND_IN))
    return [sys.executable, "-c", code, *plan_command(runs)[4:]]

  plan_command = plan.command
  monkeypatch.setattr(plan, "command", command)
  lab = described("none", "broken", "nkd", "wttm")
  runs = runs_of(lab, stand_in)
  outcome, said = train(
    runs, pack=3, together=lambda one, other: one.seed == other.seed
  )
  assert started == [
    ["none seed 0", "broken seed 0", "nkd seed 0"],
    ["wttm seed 0"],
    ["none seed 1", "broken seed 1", "nkd seed 1"],
    ["wttm seed 1"],
  ]
  assert {str(run): why for run, why in outcome.failed.items()} == {
    "broken seed 0": "it broke",
    "broken seed 1": "it broke",
  }
  assert "6 of 8 runs done, 2 failed" in said[-1]
  took = [records.seconds(run) for run in runs if run.arm in ("none", "nkd")]
  assert took[0] == took[1]  # each is a third of the process
  # Those that ended are not taken into a pack again.
  started.clear()
  train(runs, pack=3, together=lambda one, other: one.seed == other.seed)
  assert started == [["broken seed 0"], ["broken seed 1"]]


def test_trainings_side_by_side_share_the_machine(monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
  assert machine.device(1, 3) == {"CUDA_VISIBLE_DEVICES": "5"}
  assert machine.device(0, 1) == {}  # one has them all
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  assert machine.device(1, 2) == {}
  before = os.sched_getaffinity(0)
  if len(before) > 1:
    with machine.cores(1, 2):
      inside = subprocess.run(
        [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"],
        capture_output=True,
        text=True,
        check=True,
      ).stdout
    assert len(eval(inside)) == len(before) // 2
  assert os.sched_getaffinity(0) == before


def test_results_are_differences_paired_by_seed(stand_in):
  claims = dict(a=dict(says="NKD helps", better="nkd", worse="none"))
  lab = described("none", "nkd", "wttm", seeds=3, claims=claims)
  runs = runs_of(lab, stand_in)
  train(runs[:7])  # the last seed of none alone
  found = results.read(lab, runs, 0.5)
  by_arm = {x.arm: x for x in found.compared}
  assert by_arm["nkd"].difference.seeds == 2
  assert by_arm["nkd"].difference.mean == pytest.approx(2.0)
  assert by_arm["wttm"].by_seed == pytest.approx({0: 1.0, 1: 1.0})
  arms, tested = shown.make_tables(found)
  assert [row[0] for row in arms.rows] == ["none", "nkd", "wttm"]
  assert arms.rows[0][3] == "51.00 ± 1.00"
  assert arms.rows[1][4:] == ("+2.00 ± 0.00", "0.000", "gains 2.00 ± 0.00", "2")
  assert "Not finished, with the number of seeds: nkd (1), wttm (1)." in (
    arms.notes
  )
  assert tested.rows[0][:3] == ("NKD helps", "nkd - none", "+2.00 ± 0.00")
  _, lead = shown.headline(found)
  assert lead.startswith("3 arms, 3 seeds: 2 better than none, 0 worse so far")


def test_rows_state_what_ran(stand_in):
  lab = described()
  runs = runs_of(lab, stand_in)
  train(runs)
  completed = plan.completed(lab, configs())
  found = results.read(lab, runs, 0.5)
  lines = results.jsonl(results.rows(found, runs, completed)).splitlines()
  first = json.loads(lines[1])
  assert len(lines) == 4
  assert {k: first[k] for k in ("lab", "dataset", "arm", "seed", "steps")} == {
    "lab": "l",
    "dataset": "fashion_mini",
    "arm": "nkd",
    "seed": 0,
    "steps": 4,
  }
  assert first["metrics"] == {"top1": 0.52}
  assert first["config_sha256"] == plan.digest(completed["nkd"])
  assert first["host"] == machine.said()
  assert first["seconds"] > 0


def test_every_picture_is_drawn(stand_in):
  lab = described("none", "nkd", "wttm")
  runs = runs_of(lab, stand_in)
  train(runs)
  found = results.read(lab, runs, 0.5)
  for draw in (
    functools.partial(figures.gains, found),
    functools.partial(reports.accuracy, found.groups),
    functools.partial(figures.costs, found),
  ):
    drawing = rendering.both(draw, "figure")
    assert drawing.png.startswith(b"\x89PNG")
    for text in ("nkd", "wttm"):
      assert text in drawing.wide
      assert text in drawing.narrow


def test_a_teacher_that_changed_is_told(stand_in):
  lab = described()
  runs = runs_of(lab, stand_in)
  train(runs)
  for run, sha in zip(runs, "aabb", strict=True):
    path = pathlib.Path(run.workdir) / "config.json"
    record = json.loads(path.read_text())
    record["config"]["teachers"] = dict(t=dict(weights="w"))
    record["teachers"] = dict(t=dict(sha256=sha, step=None))
    path.write_text(json.dumps(record))
  table, *_ = shown.make_tables(results.read(lab, runs, 0.5))
  assert table.notes[-1].startswith(
    "the teacher w changed between runs (none seed 0 and none seed 1)"
  )


def test_another_training_in_a_folder_is_refused(tmp_path):
  lab = described()
  run = runs_of(lab, tmp_path)[1]
  completed = plan.completed(lab, configs())["nkd"]
  plan.check_holds(run, completed)  # nothing there yet
  folder = pathlib.Path(run.workdir)
  folder.mkdir(parents=True)
  recorded = json.loads(json.dumps(completed, default=str))
  recorded["run"]["seed"] = run.seed
  (folder / "metrics.jsonl").touch()

  def record():
    (folder / "config.json").write_text(json.dumps(dict(config=recorded)))

  record()
  plan.check_holds(run, completed)
  recorded["methods"]["nkd"]["weights"]["nkd"] = 7.0
  record()
  with pytest.raises(
    ValueError, match=r"config\.methods\.nkd\.weights\.nkd was 7\.0 and is 2\.0"
  ):
    plan.check_holds(run, completed)


@pytest.mark.parametrize(
  "file, arguments_",
  [
    ("guidelines", ""),
    ("guidelines", "part=widths"),
    ("guidelines", "data=imagenet,part=shallow"),
    ("methods", "part=all"),
    ("methods", "part=nulls"),
    ("methods", "part=on_wttm,data=imagenet"),
    ("weights", "method=vitkd+nkd"),
    ("weights", "method=manifold,data=imagenet"),
    ("data", "method=both"),
    ("data", "data=imagenet"),
    ("tuning", ""),
    ("methods", "part=core"),
  ],
)
def test_the_labs_that_ship_build(file, arguments_):
  """Their arms differ in what they say, and each can be trained."""
  path = f"{LABS / file}.py:{arguments_}"
  lab = description.make(arguments.load(path).to_dict())
  loaded = {arm: arguments.load(plan.with_arm(path, arm)) for arm in lab.arms}
  completed = plan.completed(lab, loaded)
  costs = {arm: estimates.of(lab, completed[arm]) for arm in lab.arms}
  # To a step, or a thousandth where the images of a share are not whole steps.
  images = [cost.images for cost in costs.values()]
  assert max(images) - min(images) <= max(64, max(images) / 1000)
  least = costs[lab.reference if file != "weights" else "none"].flops
  assert all(
    cost.flops >= 0.999 * least
    for arm, cost in costs.items()
    if lab.arms[arm].against != "equal_none"
  )
  if "imagenet" in arguments_:
    # docs/clusters.md has 36 for the whole method, of one generator.
    assert all(5 < cost.chip_hours < 70 for cost in costs.values())


@pytest.mark.parametrize(
  "file, train, evaluation",
  [
    ("guidelines.py:part=all", "train[:10000]", "test"),
    ("methods.py:part=core", "train[:10000]", "test"),
    ("weights.py:method=nkd", "train[:8000]", "train[8000:10000]"),
    ("tuning.py:method=core", "train[:8000]", "train[8000:10000]"),
  ],
)
def test_what_is_tuned_never_sees_the_test_split(file, train, evaluation):
  path = f"{LABS}/{file},data=cifar10,teacher=shipped:fashion_teacher"
  for arm in description.make(arguments.load(path).to_dict()).arms:
    config = arguments.load(plan.with_arm(path, arm))
    assert config.data.train_split == train
    assert config.data.eval_split == evaluation
    assert list(config.teachers) == (["teacher"] if config.methods else [])


def test_cifar10_needs_a_teacher():
  path = f"{LABS}/methods.py:part=core,data=cifar10"
  assert not arguments.load(plan.with_arm(path, "none")).teachers
  with pytest.raises(
    arguments.RefusedError, match="images that the students do not"
  ):
    arguments.load(plan.with_arm(path, "nkd"))


def test_all_weights_of_a_method_are_scaled(monkeypatch):
  path = f"{LABS}/tuning.py:method=vitkd+nkd"
  arm = arguments.load(plan.with_arm(path, "vitkd_quarter"))
  # The quickstart's are 0.2 and 1.
  assert arm.methods.vitkd.weights.to_dict() == dict(
    mimic=0.05, generation=0.25
  )
  assert list(arm.methods) == ["vitkd"]
  monkeypatch.setitem(bases.FACTORS, "fashion", dict(nkd=4.0))
  path = f"{LABS}/methods.py:part=core"
  both = arguments.load(plan.with_arm(path, "nkd+vitkd")).methods
  assert both.nkd.weights.nkd == 8.0
  assert both.vitkd.weights.to_dict() == dict(mimic=0.2, generation=1.0)


def test_numbers_of_flops_have_their_unit():
  said = [estimates.in_words(x) for x in (5.0, 1234.0, 7.7e18, 1e22)]
  assert said == ["5 FLOP", "1.23 KFLOP", "7.7 EFLOP", "1e+04 EFLOP"]


def call(*options):
  return subprocess.run(
    [sys.executable, "-m", "vitkd_jax.lab", *options],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, "COLUMNS": "80"},
  )


def test_the_command_plans_a_lab(tmp_path):
  done = call(
    "--config=configs/labs/methods.py:part=nulls,epochs=1",
    f"--workdir={tmp_path}/lab",
    "--only=2/5",
    "--dry-run",
    "--",
    "--config.run.batch_size=32",
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[-1].startswith("# 4 of 4 runs to train")
  commands = [line for line in lines if line.startswith("python -m ")]
  assert commands[0].endswith(
    "--config=configs/labs/methods.py:part=nulls,epochs=1,arm=nkd "
    "--config.run.seed=0 --config.run.batch_size=32 "
    f"--workdir={tmp_path}/lab/nkd/seed_0"
  )
  assert not (tmp_path / "lab").exists()


@pytest.mark.parametrize(
  "options, message",
  [
    (["--config=configs/labs/methods.py"], "--workdir is missing"),
    (
      ["--config=configs/quickstart.py", "--workdir=x"],
      "expected a lab's config",
    ),
    (
      ["--config=configs/labs/methods.py", "--workdir=x", "--", "x"],
      "expected what follows -- to be --config.SECTION.KEY=VALUE, got 'x'",
    ),
    (
      ["--config=configs/labs/methods.py:part=alon", "--workdir=x"],
      "the nearest is 'alone'",
    ),
    (
      [
        "--config=configs/labs/methods.py:part=nulls",
        "--workdir=x",
        "--",
        "--config.run.epoch=3",
      ],
      "unknown config key config.run.epoch; the nearest is 'epochs'",
    ),
  ],
)
def test_wrong_command_lines(options, message, tmp_path):
  done = call(*options)
  (line,) = done.stderr.splitlines()
  assert done.returncode == 2
  assert message in line


def test_overrides_reach_every_arm():
  found = arguments.load(
    f"{LABS / 'methods.py'}:arm=nkd", ["--config.run.batch_size=32"]
  )
  assert found.run.batch_size == 32
  assert isinstance(found, ml_collections.ConfigDict)
  # As from the command line: the rate follows the batch size.
  np.testing.assert_allclose(found.schedule.peak, 1.5e-3 / 2)


def test_threads_are_left_alone(stand_in):
  before = threading.active_count()
  train(runs_of(described(), stand_in), jobs=2)
  assert threading.active_count() <= before
