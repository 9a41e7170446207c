"""The flagship: killed at random moments, and nothing is lost (faults 1, 5)."""

import hashlib
import random
import time

import numpy as np
import pytest
import runner
import safetensors.numpy
import tiny

from vitkd_jax.data import datasets

pytestmark = pytest.mark.slow
# One epoch: several processes on few cores spend their time in Gloo.
SHORT = "--config.run.epochs=1.0"


def eaten(path):
  """{step: images} of the last time that each step was taken.

  Asserts that each time was the same.
  """
  parts, found = {}, {}
  for line in path.read_text().splitlines():
    step, process, *hashes = line.split()
    known = parts.setdefault((int(step), int(process), len(hashes)), hashes)
    assert known == hashes, f"step {step} of process {process} changed"
  for (step, _, size), hashes in sorted(parts.items()):
    found.setdefault((step, size), []).extend(hashes)
  whole = {}
  for (step, _), hashes in found.items():
    if len(hashes) == tiny.BATCH:  # a killed start may not have got all parts
      assert whole.setdefault(step, hashes) == hashes
  return whole


def assert_each_example_once_an_epoch(path, epochs):
  source = datasets.load("fashion_mini", f"train[:{tiny.EXAMPLES}]")
  images = [source[i]["image"] for i in range(len(source))]
  number = {hashlib.md5(x.tobytes()).hexdigest(): i
            for i, x in enumerate(images)}  # fmt: skip
  assert len(number) == tiny.EXAMPLES
  batches = eaten(path)
  steps = tiny.EXAMPLES // tiny.BATCH
  assert set(range(epochs * steps)) <= set(batches)
  orders = []
  for epoch in range(epochs):
    order = [
      number[image]
      for step in range(epoch * steps, (epoch + 1) * steps)
      for image in batches[step]
    ]
    assert sorted(order) == list(range(tiny.EXAMPLES))
    orders.append(tuple(order))
  assert len(set(orders)) == epochs


def kill_at(training, step, rng):
  """Kills it at a random moment soon after a step; checks what is saved."""
  training.until_step(step)
  time.sleep(rng.uniform(0, 0.3))  # also in the middle of a save
  training.kill()
  died_at = max(runner.losses(training.workdir))
  assert died_at >= step
  # At most what lies between two saves, one of them perhaps in flight.
  saved = max(runner.saved_steps(training.workdir), default=0)
  assert died_at - saved <= 10
  return saved


def export(workdir):
  return safetensors.numpy.load_file(workdir / "student.safetensors")


def assert_same(workdir, expected, steps):
  """Bit for bit: metrics of every step, evaluations, and the student."""
  found, wanted = runner.metrics(workdir), runner.metrics(expected)
  assert sorted(wanted) == list(range(1, steps + 1))
  assert found == wanted
  one, other = export(workdir), export(expected)
  assert one.keys() == other.keys()
  assert all(one[name].tobytes() == other[name].tobytes() for name in one)
  left = [p.name for p in (workdir / "checkpoints").iterdir()]
  assert not [name for name in left if "tmp" in name]


@pytest.mark.parametrize(
  "processes, devices, kills, options",
  [
    (1, 8, (7, 22, 39, 52), ()),
    (1, 2, (13, 46), ()),
    (2, 4, (12,), (SHORT,)),
  ],
)
def test_on_the_same_devices_nothing_changes(
  start, unbroken, tmp_path, processes, devices, kills, options
):
  expected = unbroken(processes, devices, *options)
  rng = random.Random(devices)
  workdir, env = tmp_path / "run", {"EATEN": str(tmp_path / "eaten")}
  reached = 0
  where = dict(processes=processes, devices=devices, env=env)
  for step in kills:
    with start(workdir, *options, **where) as training:
      saved = kill_at(training, step, rng)
    assert saved >= reached
    reached = saved
  with start(workdir, *options, **where) as training:
    assert "resumed from the checkpoint of step" in training.end()
  epochs = 1 if options else 3
  assert_same(workdir, expected, epochs * 20)
  assert_each_example_once_an_epoch(tmp_path / "eaten", epochs)


def test_across_devices_the_losses_stay(start, unbroken, tmp_path, capsys):
  rng = random.Random(0)
  workdir, env = tmp_path / "run", {"EATEN": str(tmp_path / "eaten")}
  for processes, devices, step in ((1, 8, 17), (2, 4, 25), (1, 2, 43)):
    with start(
      workdir, processes=processes, devices=devices, env=env
    ) as training:
      kill_at(training, step, rng)
  fsdp = ("--config.run.fsdp=4", "--config.run.fsdp_teacher=True")
  with start(workdir, *fsdp, devices=8, env=env) as training:
    assert "resumed from the checkpoint of step" in training.end()
  assert_each_example_once_an_epoch(tmp_path / "eaten", 3)

  def spread(one, other):
    one, other = runner.losses(one), runner.losses(other)
    assert sorted(one) == sorted(other) == list(range(1, tiny.STEPS + 1))
    return max(abs(one[i] / other[i] - 1) for i in one)

  eight, two = unbroken(1, 8), unbroken(1, 2)
  found = spread(workdir, eight)
  with capsys.disabled():
    print(f"\nlosses differ by {found:.1e}; unbroken runs on 8 and on 2 "
          f"devices by {spread(eight, two):.1e}")  # fmt: skip
  assert found < 1e-5


def test_two_processes_train_as_one(unbroken):
  one, two = (
    runner.losses(unbroken(*where, SHORT)) for where in ((1, 8), (2, 4))
  )
  assert sorted(one) == sorted(two) == list(range(1, 21))
  np.testing.assert_allclose(
    [one[i] for i in sorted(one)], [two[i] for i in sorted(two)], rtol=1e-5
  )


def test_two_processes_hold_the_same_images(start, unbroken, tmp_path):
  """Each has the whole split, and gathers its part of every batch."""
  wanted = runner.metrics(unbroken(2, 2, SHORT))
  place = "--config.data.placement=device"
  with start(
    tmp_path / "run", SHORT, place, processes=2, devices=2
  ) as training:
    training.end()
  found = runner.metrics(training.workdir)
  assert list(found) == list(wanted)
  assert len(found) == tiny.EXAMPLES // tiny.BATCH
  # The host's step is another program, which may round otherwise.
  for step, values in wanted.items():
    assert found[step] == pytest.approx(values, rel=1e-3)
