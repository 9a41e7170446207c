"""Tests of vitkd_jax.data.loader on a source whose labels are its indices."""

import collections
import contextlib
import itertools
import multiprocessing
from multiprocessing import shared_memory
import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest

from vitkd_jax.data import decode, loader, workers


class Numbers:
  """Example i has label i and an image of the bytes of i."""

  def __init__(self, length):
    self._length = length

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    image = np.full((2, 3, 3), index % 256, np.uint8)
    return {"image": image, "label": np.int32(index)}


class Files(Numbers):
  """Numbers as files: the bytes of i, of which the `bad` are damaged."""

  def __init__(self, length, bad=()):
    super().__init__(length)
    self._bad = frozenset(bad)

  def read(self, index, crop):
    if index in self._bad:
      raise decode.BadRecordError(f"record {index}: made to fail")
    image = crop(int(index).to_bytes(4, "big"))
    return {"image": image, "label": np.int32(index)}


def draws(data, rng):
  """A crop whose pixels are the index and what the generator says."""
  number = int.from_bytes(data, "big")
  return np.array([[[number % 256, *rng.integers(0, 256, 2)]]], np.uint8)


def cropped(source, steps, **options):
  """Labels int [steps, b] and pixels [steps, b, 3] of the first batches."""
  options = {"batch_size": 8, "seed": 5, "crop": draws, **options}
  batches = loader.train_batches(source, **options)
  found = list(itertools.islice(batches, steps))
  batches.close()
  labels, images = (
    np.stack([batch[key] for batch in found]) for key in ("label", "image")
  )
  return labels, images[:, :, 0, 0]


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


@pytest.mark.parametrize("count", [1, 2, 4])
def test_an_epoch_holds_every_example_once(count):
  # 3 batches of 16 are an epoch of 48; nothing is dropped.
  options = {"batch_size": 16, "seed": 5, "process_count": count}
  for start in (0, 3, 9):
    parts = [
      train_labels(48, 3, process_index=i, start_step=start, **options)
      for i in range(count)
    ]
    np.testing.assert_array_equal(
      np.sort(np.concatenate(parts, axis=None)), np.arange(48)
    )


def test_20_kills_with_other_process_counts_change_nothing():
  whole_labels, whole_pixels = cropped(Files(50), 60)
  rng = np.random.default_rng(0)
  stops = [0, *sorted(rng.choice(np.arange(1, 60), 20, replace=False)), 60]
  labels, pixels = [], []
  for begin, end in itertools.pairwise(map(int, stops)):
    count = int(rng.choice([1, 2, 4, 8]))
    parts = [
      cropped(
        Files(50),
        end - begin,
        start_step=begin,
        process_index=i,
        process_count=count,
      )
      for i in range(count)
    ]
    labels.append(np.concatenate([part[0] for part in parts], axis=1))
    pixels.append(np.concatenate([part[1] for part in parts], axis=1))
  assert len(labels) == 21
  np.testing.assert_array_equal(np.concatenate(labels), whole_labels)
  np.testing.assert_array_equal(np.concatenate(pixels), whole_pixels)


def test_a_crop_depends_on_seed_epoch_and_example_alone():
  labels, pixels = (x.reshape(3, 48, -1) for x in cropped(Files(48), 18))
  by_epoch = [
    pixels[epoch][np.argsort(labels[epoch, :, 0])] for epoch in range(3)
  ]
  for one, other in itertools.combinations(by_epoch, 2):
    assert (one[:, 0] == other[:, 0]).all()  # the same examples
    assert (one[:, 1:] != other[:, 1:]).any(-1).mean() > 0.9
  assert len(np.unique(by_epoch[0][:, 1:], axis=0)) > 40
  # Another batch size makes another order of batches, of the same crops.
  labels, pixels = cropped(Files(48), 3, batch_size=16)
  order = np.argsort(labels.ravel())
  np.testing.assert_array_equal(pixels.reshape(48, -1)[order], by_epoch[0])
  labels, pixels = cropped(Files(48), 6, seed=6)
  other = pixels.reshape(48, -1)[np.argsort(labels.ravel())]
  assert (other[:, 1:] != by_epoch[0][:, 1:]).any(-1).mean() > 0.9


@pytest.mark.parametrize("length, distinct", [(48, 16), (50, 17)])
def test_repeats_come_in_a_row_each_with_its_own_crop(length, distinct):
  once = cropped(Files(length), 3 * length // 2, batch_size=2)[0]
  labels, pixels = cropped(
    Files(length), 3 * length // 2, batch_size=2, repeats=3
  )
  labels = labels.reshape(3, length)
  pixels = pixels.reshape(3, length, 3)
  for epoch, permutation in enumerate(once.reshape(3, length)):
    # An epoch stays as long; it is the start of the same permutation.
    np.testing.assert_array_equal(
      labels[epoch], np.repeat(permutation[:distinct], 3)[:length]
    )
  for copies in pixels[0, :48].reshape(16, 3, 3):
    assert (copies[:, 0] == copies[0, 0]).all()
    assert len(np.unique(copies, axis=0)) == 3
  parts = [
    cropped(Files(length), 9, repeats=3, process_index=i, process_count=4)[0]
    for i in range(4)
  ]
  np.testing.assert_array_equal(
    np.concatenate(parts, axis=1), cropped(Files(length), 9, repeats=3)[0]
  )


# Bad records.


def test_a_bad_record_is_replaced_by_the_next_good_one(caplog):
  bad = {3, 4, 47}
  whole, _ = cropped(Files(48), 12)
  labels, _ = cropped(Files(48, bad), 12)
  wanted = np.select([whole == 3, whole == 4, whole == 47], [5, 5, 0], whole)
  np.testing.assert_array_equal(labels, wanted)
  # On resume, in another process and in worker processes, too.
  for options in ({}, {"num_workers": 2}):
    rest, _ = cropped(
      Files(48, bad),
      4,
      start_step=5,
      process_index=1,
      process_count=2,
      **options,
    )
    np.testing.assert_array_equal(rest, wanted[5:9, 4:])
  # In two epochs each is read twice, and named once.
  caplog.clear()
  cropped(Files(48, bad), 12)
  messages = [record.getMessage() for record in caplog.records]
  assert {text.partition(": ")[2] for text in messages} == {
    f"record {i}: made to fail" for i in bad
  }
  assert len(messages) == len(bad)


def test_too_many_bad_records_end_the_run():
  bad = range(0, 480, 10)
  batches = loader.train_batches(
    Files(480, bad), batch_size=8, seed=0, crop=draws, max_bad_share=0.05
  )
  with pytest.raises(loader.InputError, match="got 11 of ") as stop:
    collections.deque(batches, maxlen=0)
  batches.close()
  assert "max_bad_share=0.05" in str(stop.value)
  assert "record " in str(stop.value)
  assert "\n" not in str(stop.value)
  # A share that allows them.
  cropped(Files(480, bad), 200, max_bad_share=0.2)


def test_one_bad_record_of_a_small_set_may_come_in_every_epoch():
  batches = loader.train_batches(
    Files(48, {7}), batch_size=8, seed=0, crop=draws
  )
  with contextlib.closing(batches):
    for _ in range(30 * 6):  # epochs of six batches
      next(batches)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_file_ends_the_run_at_once(num_workers):
  batches = loader.train_batches(
    Files(480, range(480)),
    batch_size=8,
    seed=0,
    crop=draws,
    max_bad_share=1.0,
    num_workers=num_workers,
  )
  with pytest.raises(loader.InputError, match="20 consecutive records") as stop:
    next(batches)
  batches.close()
  assert "made to fail" in str(stop.value)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_that_dies_is_reported():
  batches = loader.train_batches(
    Numbers(50), batch_size=8, seed=0, num_workers=1
  )
  next(batches)
  (worker,) = multiprocessing.active_children()
  # Killed with a lock of the queues in its hand, close() would wait for it.
  until_it_waits(worker.pid)
  os.kill(worker.pid, signal.SIGKILL)
  with pytest.raises(loader.InputError, match="exit code -9"):
    collections.deque(batches, maxlen=0)  # what it had ready still comes
  batches.close()


class Dead:
  """An iterator whose worker process is gone, as Grain says it."""

  def __init__(self, code):
    self._code = code

  def __next__(self):
    raise RuntimeError(
      f"Worker process was terminated unexpectedly with exit code {self._code}."
      " Search the logs above for the source of the crash."
    )


@pytest.mark.parametrize(
  "code, said",
  [
    (-9, r"exit code -9 \(killed.*decrease config.data.num_workers\)$"),
    (
      -7,
      r"-7 \(a bus error.*/dev/shm, .* is full.*--shm-size.*num_workers=0\)$",
    ),
    (1, "exit code 1$"),
  ],
)
def test_how_a_worker_died_says_what_to_do(code, said):
  batches = loader._Checked(
    Dead(code), loader._Reader(Numbers(1), None), max_bad_share=0
  )
  with pytest.raises(loader.InputError, match=said):
    next(batches)


def until_it_waits(pid, looks=20):
  """Returns when all threads of a process slept at so many looks in a row."""
  slept, used = 0, None
  while slept < looks:
    time.sleep(0.02)
    states, now = set(), 0
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/stat"):
      fields = path.read_text().rpartition(")")[2].split()
      states.add(fields[0])
      now += int(fields[11]) + int(fields[12])  # ticks of user and system
    slept = slept + 1 if (states, now) == ({"S"}, used) else 0
    used = now


def test_eval_leaves_bad_records_out():
  batches = loader.eval_batches(Files(20, {0, 7}), batch_size=8, crop=draws)
  rows = list(batches)
  batches.close()
  found = {key: np.concatenate([b[key] for b in rows]) for key in rows[0]}
  weight = np.ones(24)
  weight[[0, 7, 20, 21, 22, 23]] = 0
  np.testing.assert_array_equal(found["weight"], weight)
  np.testing.assert_array_equal(
    found["label"], np.where(weight, np.arange(24), 0)
  )
  assert not found["image"][weight == 0].any()
  batches = loader.eval_batches(
    Files(80, range(0, 80, 3)), batch_size=8, crop=draws
  )
  with pytest.raises(loader.InputError, match="max_bad_share"):
    list(batches)
  batches.close()


def test_worker_processes_change_nothing():
  options = {"batch_size": 8, "seed": 5, "start_step": 3}
  for share in ({}, {"process_index": 1, "process_count": 2}):
    np.testing.assert_array_equal(
      train_labels(50, 5, num_workers=2, **options, **share),
      train_labels(50, 5, num_workers=0, **options, **share),
    )


def test_a_worker_outlives_a_preemption_notice():
  names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
  before = [signal.getsignal(name) for name in names]
  try:
    workers.ignore_signals()
    assert all(signal.getsignal(name) == signal.SIG_IGN for name in names)
  finally:
    for name, handler in zip(names, before, strict=True):
      signal.signal(name, handler)


def test_workers_end_of_themselves_at_close():
  # One killed instead may hold a lock for which close() waits for ever.
  batches = loader.train_batches(
    Numbers(50), batch_size=8, seed=0, num_workers=2
  )
  next(batches)
  workers = multiprocessing.active_children()
  batches.close()
  assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
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
  deadline = time.monotonic() + 600
  while alive := [pid for pid in workers if is_alive(pid)]:
    if time.monotonic() > deadline:
      for pid in alive:
        os.kill(int(pid), signal.SIGKILL)
      pytest.fail(f"workers {alive} outlived the trainer")
    time.sleep(0.05)


def dies_making(name):
  """Dies as a worker that has made shared memory but not yet sized it."""
  workers.start(0, 1)
  os.ftruncate = lambda *_: os._exit(7)
  shared_memory.SharedMemory(name, create=True, size=8)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev/shm")
def test_shared_memory_of_a_worker_that_dies_making_it_is_removed():
  name = f"vitkd_{uuid.uuid4().hex}"
  code = f"""
import multiprocessing, os
from tests import test_loader
if __name__ == "__main__":
  worker = multiprocessing.get_context("spawn").Process(
    target=test_loader.dies_making, args=("{name}",)
  )
  worker.start()
  worker.join()
  print(worker.exitcode, os.path.exists("/dev/shm/{name}"))
"""
  # Its output ends with Python's resource tracker, which holds it open.
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parent.parent,
    check=True,
  )
  assert done.stdout == "7 True\n", done.stderr
  assert not os.path.exists(f"/dev/shm/{name}")


def is_alive(pid):
  try:
    status = pathlib.Path("/proc", pid, "stat").read_text()
  except OSError:  # even while it is read
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
    ({"batch_size": 0}, r"batch_size .*got 0"),
    ({"batch_size": 2.5}, r"batch_size .*got 2.5"),
    ({"batch_size": 10, "process_count": 4}, "not divisible by the 4"),
    ({"process_index": 2, "process_count": 2}, r"process_index .*got 2"),
    ({"process_index": -1}, r"process_index .*got -1"),
    ({"seed": -1}, r"seed .*got -1"),
    ({"start_step": -3}, r"start_step .*got -3"),
    ({"num_workers": None}, r"num_workers .*got None"),
    ({"seed": float("nan")}, r"seed .*got nan"),
    ({"repeats": 0}, r"repeats .*got 0"),
  ],
)
def test_train_batches_refuses(options, words):
  options = {"batch_size": 8, "seed": 0, **options}
  with pytest.raises(ValueError, match=words):
    loader.train_batches(Numbers(20), **options)


def test_eval_batches_refuses_what_does_not_fit():
  with pytest.raises(ValueError, match="not divisible by the 3"):
    loader.eval_batches(Numbers(20), batch_size=8, process_count=3)
  with pytest.raises(ValueError, match="got an empty one"):
    loader.eval_batches(Numbers(0), batch_size=8)
