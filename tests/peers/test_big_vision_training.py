"""Live: big_vision's own loop, in a copy with what ports/big_vision adds.

It needs a Python with big_vision's requirements (TensorFlow, clu), which
BIG_VISION_PYTHON names; by default this one.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = os.environ.get("BIG_VISION_PYTHON", sys.executable)
MODULE = "big_vision.trainers.proj.vitkd.train"
CONFIG = "big_vision/configs/proj/vitkd/fashion.py:runlocal"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
  """A copy of the checkout with the port, the teacher and a dataset."""
  spec = importlib.util.find_spec("big_vision")
  if spec is None:
    pytest.skip(
      "the training in big_vision's own loop needs a checkout of "
      "github.com/google-research/big_vision: PYTHONPATH=CHECKOUT "
      "BIG_VISION_PYTHON=PYTHON pytest tests/peers"
    )
  place = tmp_path_factory.mktemp("checkout")
  source = pathlib.Path(spec.submodule_search_locations[0])
  shutil.copytree(source, place / "big_vision")
  done = run("-c", "import clu, einops, tensorflow", place=place)
  if done.returncode:
    pytest.skip(f"{PYTHON} lacks {done.stderr.strip().splitlines()[-1]}")
  for command in (
    [ROOT / "ports" / "big_vision" / "install.py", place],
    ["-m", "vitkd_jax.prepare", "fashion_mini", "--source"]
    + [ROOT / "vitkd_jax" / "data", "--data-dir", place / "data"]
    + ["--to", "tfrecord"],
    ["-m", "vitkd_jax.convert", "--weights", "shipped:fashion_teacher"]
    + ["--to", "big_vision", "--output", place / "t.npz"],
  ):
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)
  return place


def run(*args, place, devices=1, start=subprocess.run, **options):
  env = dict(
    PYTHONPATH=str(place),
    JAX_PLATFORMS="cpu",
    XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
  )
  return start(
    [PYTHON, *map(str, args)],
    cwd=place,
    env={**os.environ, **env},
    text=True,
    stderr=subprocess.PIPE,
    **options,
  )


def train(checkout, name, *, options="", devices=1, start=subprocess.run):
  arguments = f"{CONFIG},teacher={checkout}/t.npz,data_dir={checkout}/data"
  return run(
    *("-m", MODULE, "--workdir", checkout / name, "--config"),
    arguments + options,
    # Files and records in their order, so that runs see the same images.
    "--config.input.shuffle_buffer_size=1",
    place=checkout,
    devices=devices,
    start=start,
  )


def metrics(checkout, name):
  """{step: {name: value}} of a run, the last of each step."""
  found = {}
  text = (checkout / name / "big_vision_metrics.txt").read_text()
  for line in filter(None, text.splitlines()):
    values = json.loads(line)
    found.setdefault(values.pop("step"), {}).update(values)
  return found


@pytest.fixture(scope="module")
def unbroken(checkout):
  done = train(checkout, "one")
  assert done.returncode == 0, done.stderr[-2000:]
  return metrics(checkout, "one")


LOGGED = (
  "training_loss",
  "training_vitkd/mimic",
  "training_vitkd/generation",
  "training_nkd",
  "l2_grads",
  "l2_params",
)


@pytest.mark.parametrize("options", ["", ",fsdp"])
def test_four_devices_train_as_one(checkout, unbroken, options):
  name = f"four{options.strip(',')}"
  done = train(checkout, name, options=options, devices=4)
  assert done.returncode == 0, done.stderr[-2000:]
  found = metrics(checkout, name)
  # Its writer loses a step's line now and then.
  logged = [
    {step for step, values in run.items() if LOGGED[0] in values}
    for run in (found, unbroken)
  ]
  for step in logged[0] & logged[1] | {12}:
    for key in LOGGED:
      assert found[step][key] == pytest.approx(unbroken[step][key], rel=1e-5)
  same = ("val/prec@1", "nano/agreement", "fewshot/a/fashion_10shot-seed-0")
  for key in same:
    assert found[12][key] == pytest.approx(unbroken[12][key], abs=1e-3), key
  assert found[12]["nano/cka/block_00"] > 0.1


def test_a_scan_trains(checkout):
  done = train(checkout, "scan", options=",scan")
  assert done.returncode == 0, done.stderr[-2000:]
  found = metrics(checkout, "scan")
  assert np.isfinite(found[12]["training_loss"])
  assert found[12]["val/prec@1"] > 0.15


def test_a_killed_run_resumes_on_other_devices(checkout, unbroken):
  process = train(
    checkout, "killed", options=",fsdp", devices=4, start=subprocess.Popen
  )
  last = checkout / "killed" / "checkpoint.bv-LAST"
  with process:
    for line in process.stderr:  # until it says that a checkpoint is there
      if "on_commit_callback successfully ran" in line and last.exists():
        process.send_signal(signal.SIGKILL)
        break
    process.stderr.read()
  saved = int(last.read_text().partition("-")[0])  # "000000004-tmp"
  assert process.returncode == -signal.SIGKILL
  assert saved in (1, 4, 8)
  done = train(checkout, "killed")
  assert done.returncode == 0, done.stderr[-2000:]
  assert "Resuming training from checkpoint" in done.stderr
  found = metrics(checkout, "killed")
  # Its data starts anew, so that only the step of the schedule is the same.
  assert found[12]["global_schedule"] == unbroken[12]["global_schedule"]


def test_evaluate_scores_the_checkpoint_as_its_own_evaluator(
  checkout, unbroken
):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "vitkd_jax.evaluate", "--data", "fashion_mini"),
      *("--weights", f"{checkout}/one/checkpoint.bv:student"),
      *("--variant", "deit_pico_patch4_28", "--out", checkout / "scores"),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads((checkout / "scores" / "evaluation.json").read_text())
  assert found["top1"] == pytest.approx(unbroken[12]["val/prec@1"], abs=1e-6)
