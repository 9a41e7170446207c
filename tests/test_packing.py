"""Students side by side: each as it would be alone."""

import copy
import functools
import pathlib
import shutil

import jax
import numpy as np
import pytest
from saved import last_states
from test_train import metrics

from vitkd_jax import errors, pack, train
from vitkd_jax.cluster import preemption
from vitkd_jax.commandline import command
from vitkd_jax.distill import objective
from vitkd_jax.training import experiment, loop, packing, programs, session


@pytest.fixture
def arms(tiny_config, monkeypatch, drawn_state):
  """Trainings of one seed: of the labels, of logits, of maps and logits."""
  build = functools.partial(experiment.build, devices=jax.devices()[:1])
  monkeypatch.setattr(experiment, "build", build)

  def with_methods(*names):
    config = copy.deepcopy(tiny_config)
    config.methods = {name: tiny_config.methods[name] for name in names}
    config.teachers = tiny_config.teachers if names else {}
    config.run.accumulate = 2
    # Adam would make whole steps of the rounding of a gradient that is zero.
    config.optimizer.eps = 1e-2
    return config

  return {
    "none": with_methods(),
    "nkd": with_methods("nkd"),
    "both": with_methods("vitkd", "nkd"),
  }


def together(arms, folder):
  """What became of each arm, by its name."""
  starts = [
    session.Start(config, str(folder / name), "test")
    for name, config in arms.items()
  ]
  return dict(zip(arms, session.train(starts), strict=True))


def same(arms, one, other):
  """Checks that runs are equal within a compiler's freedom."""
  for name, config in arms.items():
    ours, theirs = metrics(one / name), metrics(other / name)
    assert len(ours) == 8  # six logs, two evaluations
    for index, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
      # Roundings add up over the steps.
      rel = 1e-6 if index == 0 else 1e-4
      assert mine == pytest.approx(yours, rel=rel), (name, index)
    jax.tree.map(close, *last_states(config, one / name, other / name))


def close(ours, theirs):
  error = np.linalg.norm(np.float64(ours) - np.float64(theirs))
  # Some gradients are zero but for rounding.
  assert error <= 1e-3 * np.linalg.norm(theirs) + 1e-6


def test_students_side_by_side_equal_each_alone(
  arms, tmp_path, monkeypatch, capsys
):
  for name, config in arms.items():
    train.train(config, str(tmp_path / "alone" / name))
  capsys.readouterr()
  shared = tmp_path / "shared"
  ends = together(arms, shared)
  assert [set(end) for end in ends.values()] == [
    {f"{kind}_{score}" for kind in ("eval", "eval_ema")
     for score in ("top1", "top5", "loss")}
  ] * 3  # fmt: skip
  same(arms, shared, tmp_path / "alone")
  lines = capsys.readouterr().out.splitlines()
  assert all(line.startswith("shared/") for line in lines)
  assert "shared/nkd: saved the checkpoint of step 12" in lines

  # They were stopped at different steps: those behind catch up, and the others
  # wait for them.
  broken = tmp_path / "broken"
  save = loop.Loop._save

  def save_and_die(self, step, *args, **kwargs):
    save(self, step, *args, **kwargs)
    self._checkpoints.wait()
    # By then "none" has saved it, too, and "both" has not.
    if step == 6 and self._parts.objective.methods:
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(loop.Loop, "_save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
      together(arms, broken)
  steps = {
    name: max(int(x.name) for x in (broken / name / "checkpoints").iterdir())
    for name in arms
  }
  assert steps == {"none": 6, "nkd": 6, "both": 3}
  ends = together(arms, broken)
  same(arms, broken, tmp_path / "alone")
  # What has ended is not trained again.
  assert together(arms, broken) == ends


def test_one_that_fails_drops_out(arms, tmp_path, capsys):
  arms["nkd"].schedule.peak = 1e36
  arms["nkd"].schedule.warmup_start = 1e-3
  arms["nkd"].run.max_bad_steps = 2
  kept = {name: arms[name] for name in ("none", "both")}
  ends = together(arms, tmp_path / "shared")
  assert isinstance(ends["nkd"], errors.FailedError)
  assert "2 consecutive updates skipped" in str(ends["nkd"])
  together(kept, tmp_path / "kept")
  same(kept, tmp_path / "shared", tmp_path / "kept")


def test_all_save_when_they_are_told_to_stop(arms, tmp_path, monkeypatch):
  told = iter([False] * 20)
  monkeypatch.setattr(preemption, "noticed", lambda: next(told, True))
  ends = together(arms, tmp_path)
  for name, end in ends.items():
    assert isinstance(end, errors.PreemptedError), end
    found = {int(x.name) for x in (tmp_path / name / "checkpoints").iterdir()}
    assert f"the state of step {max(found)} is saved" in str(end)
    assert max(found) < 12


def test_a_teacher_is_applied_once(arms):
  parts = {name: experiment.build(config) for name, config in arms.items()}

  def flops(*names):
    members = [parts[name] for name in names]
    shapes = [x.step_shapes() for x in members]
    step = programs.packed(members)
    lowered = step.lower([x[0] for x in shapes], shapes[-1][1], shapes[0][2])
    return lowered.cost_analysis()["flops"]

  every = parts["both"].objective
  image = jax.ShapeDtypeStruct((8, 28, 28, 3), np.float32)
  seen = jax.jit(objective.together([every]).teacher_views).lower(
    parts["both"].teacher_params, image
  )
  both, nkd, none = flops("both"), flops("nkd"), flops("none")
  teacher = seen.cost_analysis()["flops"]
  # The rest is augmentation, which is shared as well.
  assert nkd - none > teacher
  assert both + nkd - flops("both", "nkd") == pytest.approx(teacher, rel=0.1)


@pytest.mark.parametrize(
  "section, key, value, said",
  [
    ("run", "seed", 4, "config.run.seed differs (3 and 4)"),
    ("run", "batch_size", 8, "config.run.batch_size differs (16 and 8)"),
    ("augment", "shift", 1, "config.augment.shift differs (2 and 1)"),
    ("data", "train_split", "train[:48]", "config.data.train_split differs"),
  ],
)
def test_those_that_do_not_go_together_are_refused(
  arms, section, key, value, said
):
  one, other = (copy.deepcopy(arms["both"]).to_dict() for _ in range(2))
  assert packing.differ(one, arms["none"].to_dict()) == ""
  other[section][key] = value
  assert said in packing.differ(one, other)


def test_a_teacher_of_one_name_is_one_teacher(arms, tmp_path):
  weights = pathlib.Path(arms["both"].teachers.teacher.weights)
  copied = str(shutil.copy(weights, tmp_path / weights.name))
  arms["nkd"].teachers = copy.deepcopy(arms["nkd"].teachers)
  arms["nkd"].teachers.teacher.weights = copied
  said = packing.differ(arms["both"].to_dict(), arms["nkd"].to_dict())
  assert said.startswith("config.teachers.teacher differs")


@pytest.mark.parametrize(
  "argv, said",
  [
    ([], "at least two trainings, each after a \"--\", got none"),
    (["--config=a", "--workdir=b"], "at least two trainings"),
    (["--config=a", "--", "--config=a", "--workdir=b"], "--workdir is missing"),
    (["--workdir=a", "--", "--workdir=b"], "--config is missing"),
    (["--config=a", "--workdir=b", "--", "--config=c", "--workdir", "b"],
     "trainings in different workdirs, got b twice"),
    (["--config=a", "--workdir=b", "--cleanup"], "got '--cleanup'"),
  ],
)  # fmt: skip
def test_command_lines_that_are_refused(argv, said):
  with pytest.raises(command.RefusedError) as refused:
    pack.parse(argv)
  assert said in str(refused.value)


def test_a_command_line_is_several_trainings():
  one = ["--config", "a:b=1", "--config.run.seed=2", "--workdir=~/x"]
  found = pack.parse([*one, "--", "--workdir=y", "--config=c"])
  home = str(pathlib.Path("~/x").expanduser())
  assert found == [(home, ["a:b=1", "--config.run.seed=2"]), ("y", ["c"])]
