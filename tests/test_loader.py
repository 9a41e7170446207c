"""Tests of vitkd_jax.data.loader on a source whose labels are its indices."""

import collections
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vitkd_jax.data import loader


class Numbers:
  """Example i has label i and an image of the bytes of i."""

  def __init__(self, length):
    self._length = length

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    image = np.full((2, 3, 3), index % 256, np.uint8)
    return {"image": image, "label": np.int32(index)}


def train_labels(length, steps, **options):
  """int [steps, b]: labels of the first batches."""
  batches = loader.train_batches(Numbers(length), **options)
  labels = [batch["label"] for batch in itertools.islice(batches, steps)]
  batches.close()
  return np.stack(labels)


def test_batches_have_the_promised_shapes_and_types():
  batches = loader.train_batches(Numbers(10), batch_size=4, seed=0)
  batch = next(batches)
  batches.close()
  assert set(batch) == {"image", "label"}
  assert batch["image"].shape == (4, 2, 3, 3)
  assert batch["image"].dtype == np.uint8
  assert batch["label"].dtype == np.int32
  np.testing.assert_array_equal(batch["image"][:, 1, 2, 0], batch["label"])


def test_every_epoch_is_a_new_permutation_and_nothing_is_dropped():
  # 3 epochs of 10 examples are 7.5 batches of 4: batches cross the seams.
  labels = train_labels(10, 15, batch_size=4, seed=3).reshape(6, 10)
  for epoch in labels:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
  assert len({tuple(epoch) for epoch in labels}) == 6


def test_a_batch_may_exceed_the_source():
  labels = train_labels(3, 2, batch_size=6, seed=0)
  counts = collections.Counter(labels.ravel().tolist())
  assert counts == {0: 4, 1: 4, 2: 4}


def test_seed_decides_the_order():
  one = train_labels(50, 3, batch_size=10, seed=1)
  np.testing.assert_array_equal(one, train_labels(50, 3, batch_size=10, seed=1))
  assert (one != train_labels(50, 3, batch_size=10, seed=2)).any()
  assert (one.ravel() != np.sort(one.ravel())).any()


@pytest.mark.parametrize("start", [1, 5, 33])
def test_resumed_batches_equal_the_unbroken_ones(start):
  options = {"batch_size": 8, "seed": 7}
  whole = train_labels(50, start + 6, **options)
  rest = train_labels(50, 6, start_step=start, **options)
  np.testing.assert_array_equal(rest, whole[start:])


def test_a_far_step_is_reached_at_once():
  labels = train_labels(60_000, 1, batch_size=1024, seed=0, start_step=10**7)
  assert labels.shape == (1, 1024)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 33])
def test_processes_together_see_the_global_batch(count, start):
  options = {"batch_size": 8, "seed": 5, "start_step": start}
  whole = train_labels(50, 7, **options)
  parts = [
    train_labels(50, 7, process_index=i, process_count=count, **options)
    for i in range(count)
  ]
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_worker_processes_change_nothing():
  options = {"batch_size": 8, "seed": 5, "start_step": 3}
  for share in ({}, {"process_index": 1, "process_count": 2}):
    np.testing.assert_array_equal(
      train_labels(50, 5, num_workers=2, **options, **share),
      train_labels(50, 5, num_workers=0, **options, **share),
    )


def test_a_worker_outlives_a_preemption_notice():
  before = signal.getsignal(signal.SIGTERM)
  try:
    loader._ignore_sigterm()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl")
def test_workers_die_with_a_killed_trainer(tmp_path):
  code = """
import multiprocessing, os, signal
from tests import test_loader
from vitkd_jax.data import loader
if __name__ == "__main__":
  batches = loader.train_batches(
    test_loader.Numbers(50), batch_size=8, seed=0, num_workers=2
  )
  next(batches)
  print(*[child.pid for child in multiprocessing.active_children()], flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""
  path = tmp_path / "workers"  # a pipe would stay open with the workers
  with path.open("w") as file:
    done = subprocess.run(
      [sys.executable, "-c", code],
      stdout=file,
      stderr=subprocess.DEVNULL,
      cwd=pathlib.Path(__file__).parent.parent,
      check=False,
    )
  workers = path.read_text().split()
  assert done.returncode == -signal.SIGKILL
  assert workers
  deadline = time.monotonic() + 10
  while alive := [pid for pid in workers if is_alive(pid)]:
    if time.monotonic() > deadline:
      for pid in alive:
        os.kill(int(pid), signal.SIGKILL)
      pytest.fail(f"workers {alive} outlived the trainer")
    time.sleep(0.05)


def is_alive(pid):
  try:
    status = pathlib.Path("/proc", pid, "stat").read_text()
  except FileNotFoundError:
    return False
  return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("length", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_eval_sees_every_example_once(length, count):
  parts = []
  for i in range(count):
    batches = loader.eval_batches(
      Numbers(length), batch_size=8, process_index=i, process_count=count
    )
    parts.append(list(batches))
    batches.close()
  assert {len(part) for part in parts} == {-(-length // 8)}
  joined = {
    key: np.concatenate(
      [
        np.concatenate([batch[key] for batch in step])
        for step in zip(*parts, strict=True)
      ]
    )
    for key in ("image", "label", "weight")
  }
  assert joined["weight"].dtype == np.float32
  real = joined["weight"] == 1
  np.testing.assert_array_equal(joined["label"][real], np.arange(length))
  np.testing.assert_array_equal(joined["weight"][~real], 0)
  assert not joined["label"][~real].any()
  assert not joined["image"][~real].any()
  assert joined["label"].dtype == np.int32
  assert joined["image"].dtype == np.uint8


@pytest.mark.parametrize(
  "options, words",
  [
    ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": 2.5}, "batch_size is 2.5"),
    ({"batch_size": 10, "process_count": 4}, "not divisible by the 4"),
    ({"process_index": 2, "process_count": 2}, "process_index is 2"),
    ({"process_index": -1}, "process_index is -1"),
    ({"seed": -1}, "seed is -1"),
    ({"start_step": -3}, "start_step is -3"),
    ({"num_workers": None}, "num_workers is None"),
    ({"seed": float("nan")}, "seed is nan"),
  ],
)
def test_train_batches_refuses(options, words):
  options = {"batch_size": 8, "seed": 0, **options}
  with pytest.raises(ValueError, match=words):
    loader.train_batches(Numbers(20), **options)


def test_eval_batches_refuses_what_does_not_fit():
  with pytest.raises(ValueError, match="not divisible by the 3"):
    loader.eval_batches(Numbers(20), batch_size=8, process_count=3)
  with pytest.raises(ValueError, match="holds no example"):
    loader.eval_batches(Numbers(0), batch_size=8)
