"""Data sets, checkpoints and whole runs on gs://, against a fake of it."""

import json
import os
import pathlib
import subprocess
import sys

from etils import epath
import gcsfs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from vitkd_jax.data import datasets
from vitkd_jax.runs import checkpoint

pytestmark = [
  # gcsfs hands aiohttp whole files.
  pytest.mark.filterwarnings(
    "ignore:Sending a large body directly:ResourceWarning"
  ),
  # When one array of a save fails, Orbax closes its event loop, and tensorstore
  # still reports the other arrays' writes to it.
  pytest.mark.filterwarnings(
    "ignore:Exception ignored in.* None:pytest.PytestUnraisableExceptionWarning"
  ),
]
ROOT = pathlib.Path(__file__).parents[2]
MINI = ROOT / "vitkd_jax" / "data" / "fashion_mini" / "1.0.0"


def state(scale):
  return {
    "kernel": scale * jnp.arange(64 * 64.0).reshape(64, 64),
    "bias": scale * jnp.ones(64, jnp.bfloat16),
  }


def restore(checkpoints):
  like = jax.eval_shape(lambda: state(1.0))
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  where = jax.tree.map(lambda _: device, like)
  return checkpoints.restore(like, where).state


def save_two(folder):
  """The checkpoints of steps 1 and 2, durable."""
  checkpoints = checkpoint.Checkpoints(folder)
  for step in (1, 2):
    checkpoints.save(step, state(float(step)), top1=None)
    checkpoints.wait()
  checkpoints.close()


def test_a_data_set_is_read_as_from_the_disk(server):
  for file in MINI.iterdir():
    path = epath.Path("gs://data/copy/1.0.0") / file.name
    path.write_bytes(file.read_bytes())
  info = datasets.info("copy", "gs://data")
  assert info.num_examples == {"train": 8000, "test": 2000}
  far = datasets.load("copy", "test", data_dir="gs://data")
  near = datasets.load("fashion_mini", "test")
  assert len(far) == len(near)
  for i in (0, 1, 999, 1999):
    np.testing.assert_array_equal(far[i]["image"], near[i]["image"])
    assert far[i]["label"] == near[i]["label"]


def test_checkpoints_are_saved_pruned_and_restored(server):
  with_best = {1: 0.2, 2: 0.9, 3: 0.3, 4: 0.4}
  checkpoints = checkpoint.Checkpoints("gs://runs/a/checkpoints", keep=2)
  for step, top1 in with_best.items():
    checkpoints.save(step, state(float(step)), top1=top1)
    checkpoints.wait()
  assert checkpoints.steps() == [4, 3, 2]
  found = restore(checkpoints)
  checkpoints.close()
  assert jax.tree.all(
    jax.tree.map(lambda a, b: bool(jnp.all(a == b)), found, state(4.0))
  )
  # What was pruned is gone, down to its last object.
  names = server.store.names("runs")
  assert not [n for n in names if n.startswith("a/checkpoints/1/")]


def test_a_flipped_bit_is_found_and_the_step_before_taken(server):
  folder = "gs://runs/b/checkpoints"
  save_two(folder)
  objects = server.store.objects
  largest = max(
    (key for key in objects if key[1].startswith("b/checkpoints/2/state")),
    key=lambda key: len(objects[key][1]),
  )
  generation, data = objects[largest]
  middle = len(data) // 2
  flipped = bytes([data[middle] ^ 1])
  data = data[:middle] + flipped + data[middle + 1 :]
  objects[largest] = generation, data
  checkpoints = checkpoint.Checkpoints(folder)
  found = restore(checkpoints)
  checkpoints.close()
  assert float(found["kernel"][0, 1]) == 1.0


def test_a_half_written_step_is_passed_over(server):
  folder = "gs://runs/c/checkpoints"
  save_two(folder)
  # What a process that dies before the end of a save leaves on gs://.
  for key in list(server.store.objects):
    if key[1].startswith("c/checkpoints/2/") and "commit_success" in key[1]:
      del server.store.objects[key]
  checkpoints = checkpoint.Checkpoints(folder)
  found = restore(checkpoints)
  checkpoints.close()
  assert float(found["kernel"][0, 1]) == 1.0


def test_a_service_that_stumbles_is_asked_again(server):
  failed = []

  def broken(method, path):
    stumbles = method == "POST" and "ocdbt" in path and len(failed) < 3
    if stumbles:
      failed.append(path)
    return stumbles

  server.store.broken = broken
  checkpoints = checkpoint.Checkpoints("gs://runs/d/checkpoints")
  checkpoints.save(1, state(1.0), top1=None)
  checkpoints.wait()
  found = restore(checkpoints)
  checkpoints.close()
  assert float(found["kernel"][0, 1]) == 1.0
  assert len(failed) == 3


def test_a_bucket_that_refuses_leaves_the_steps_before(server):
  checkpoints = checkpoint.Checkpoints("gs://runs/e/checkpoints")
  checkpoints.save(1, state(1.0), top1=None)
  checkpoints.wait()
  server.store.refused = lambda method, path: (
    method == "POST" and "ocdbt" in path
  )
  checkpoints.save(2, state(2.0), top1=None)
  with pytest.raises(Exception, match="no permission to do that"):
    checkpoints.wait()
  checkpoints.close()
  server.store.refused = lambda method, path: False
  # What the next start sees: gcsfs keeps listings within a process.
  gcsfs.GCSFileSystem.clear_instance_cache()
  checkpoints = checkpoint.Checkpoints("gs://runs/e/checkpoints")
  found = restore(checkpoints)
  assert float(found["kernel"][0, 1]) == 1.0
  checkpoints.save(3, state(3.0), top1=None)
  checkpoints.wait()
  assert checkpoints.steps()[0] == 3
  checkpoints.close()


@pytest.mark.parametrize("what", ["dataset_info.json", "array_record"])
def test_a_data_set_that_lacks_a_file_is_refused(server, what):
  for file in MINI.iterdir():
    if what not in file.name:
      path = epath.Path("gs://data/part/1.0.0") / file.name
      path.write_bytes(file.read_bytes())

  def read():
    return datasets.load("part", "test", data_dir="gs://data")[0]

  with pytest.raises(ValueError, match="part"):
    read()


def train(workdir, *options):
  return subprocess.run(
    [sys.executable, "-m", "vitkd_jax.train"]
    + ["--config=configs/quickstart.py:method=both,batch_size=16"]
    + [f"--workdir={workdir}", "--config.data.name=copy"]
    + ["--config.data.data_dir=gs://data"]
    + ["--config.data.train_split=train[:160]"]
    + ["--config.data.eval_split=test[:64]", "--config.run.epochs=2.0"]
    + ["--config.run.log_every=5", "--config.run.eval_every=10"]
    + ["--config.run.profile_at=2"]
    + ["--config.run.checkpoint_every=10", *options],
    cwd=ROOT,
    env={
      **os.environ,
      "XLA_FLAGS": quick.FLAGS,
      # Else what is kept depends on how long the machine takes.
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    },
    capture_output=True,
    text=True,
    timeout=900,
  )


def compiled_steps(server):
  """{name: (generation, content)} of the kept steps."""
  return {
    name: server.store.objects["runs", name]
    for name in server.store.names("runs")
    if "compilation_cache/jit_step-" in name
  }


def test_a_whole_run_reads_and_writes_nothing_but_gs(server):
  for file in MINI.iterdir():
    path = epath.Path("gs://data/copy/1.0.0") / file.name
    path.write_bytes(file.read_bytes())
  before = sorted(ROOT.iterdir())
  first = train("gs://runs/one")
  assert first.returncode == 0, first.stderr
  assert sorted(ROOT.iterdir()) == before  # no folder named "gs:"
  names = server.store.names("runs")
  assert {"one/config.json", "one/metrics.jsonl", "one/student.safetensors"} < (
    set(names)
  )
  assert any("tfevents" in name for name in names)
  assert any("one/plugins/profile" in name for name in names)
  log = server.store.objects["runs", "one/train.log"][1].decode()
  assert "student written to gs://runs/one/student.safetensors" in log
  assert "one/lock" not in names
  compiled = compiled_steps(server)
  assert compiled
  metrics = server.store.objects["runs", "one/metrics.jsonl"][1].decode()
  steps = [json.loads(line)["step"] for line in metrics.splitlines()]
  assert sorted(set(steps)) == [5, 10, 15, 20]

  # Its newest checkpoint is lost half-way, as a preemption may leave it.
  for name in names:
    if name.startswith("one/checkpoints/20/") and "commit_success" in name:
      del server.store.objects["runs", name]
  second = train("gs://runs/one")
  assert second.returncode == 0, second.stderr
  assert "resumed from the checkpoint of step 10" in second.stdout
  again = server.store.objects["runs", "one/metrics.jsonl"][1].decode()

  def losses(text):
    values = map(json.loads, text.splitlines())
    return {v["step"]: v["loss"] for v in values if "loss" in v}

  assert losses(again) == losses(metrics)
  assert compiled == compiled_steps(server)  # found, so not written again

  other = train("gs://runs/one", "--config.run.seed=1")
  assert other.returncode == 2
  assert "holds a different run: config.run.seed" in other.stderr
