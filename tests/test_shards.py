"""Tests of vitkd_jax.data.builders.shards: interruptions and second starts."""

import dataclasses
import signal
import subprocess
import sys

import numpy as np
import pytest
from trees import contents, make_tree, picture, run, simple_tree

from vitkd_jax.data import datasets
from vitkd_jax.data.builders import records, shards, tree


def planned(root):
  return records.plan(tree.dataset("pets", root), num_shards=3)


KILLED = """
import dataclasses, os, signal, sys
from vitkd_jax.data.builders import images, records, shards, tree

calls = []
def read(example):
  calls.append(example)
  if len(calls) == 18:  # of 24: within the second shard of the second split
    os.kill(os.getpid(), signal.SIGKILL)
  return images.read(example)

dataset = tree.dataset("pets", sys.argv[1])
dataset = dataclasses.replace(dataset, read=read)
shards.write(records.plan(dataset, num_shards=3), sys.argv[2])
"""


def test_a_kill_loses_one_shard_and_changes_no_byte(tmp_path):
  root = simple_tree(tmp_path / "root")
  whole = shards.write(planned(root), tmp_path / "whole")
  killed = subprocess.run(
    [sys.executable, "-c", KILLED, root, tmp_path / "out"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  folder = tmp_path / "out" / "pets" / "1.0.0"
  done = {p: p.stat().st_mtime_ns for p in folder.glob("*-of-00003")}
  assert len(done) == 4
  assert not datasets._versions(tmp_path / "out" / "pets")  # not yet a set
  reported = []
  assert (
    shards.write(planned(root), tmp_path / "out", reported.append) == folder
  )
  assert sum(reported) == 24
  assert reported == [4] * 4 + [1] * 8  # what is there, then one by one
  assert contents(folder) == contents(whole)
  for path, time in done.items():
    assert path.stat().st_mtime_ns == time  # not written again


FULL = """
import resource, sys
from vitkd_jax import prepare
limit = 250_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
status = prepare.main(sys.argv[1:])
assert "tensorflow" not in sys.modules
sys.exit(status)
"""


def test_a_full_disk_keeps_what_is_done(tmp_path, capsys):
  large = np.random.RandomState(0).bytes(300_000)
  files = {f"train/{name}/1.jpg": picture(0) for name in ("cat", "dog")}
  files |= {"val/cat/1.jpg": b"BM" + large}
  root = make_tree(tmp_path / "root", files)
  args = ("pets", "--source", root, "--data-dir")
  full = subprocess.run(
    [sys.executable, "-c", FULL, *args, tmp_path / "out"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert full.returncode == 1, full.stderr
  assert "File too large" in full.stderr
  assert "Finished shards are kept; the same command resumes" in full.stderr
  assert "Traceback" not in full.stderr
  folder = tmp_path / "out" / "pets" / "1.0.0"
  assert {p.name for p in folder.iterdir()} == {
    "pets-train.array_record-00000-of-00001",
    "preparation.json",
  }
  assert run(capsys, *args, tmp_path / "out")[0] == 0
  assert run(capsys, *args, tmp_path / "whole")[0] == 0
  assert contents(folder) == contents(tmp_path / "whole" / "pets" / "1.0.0")


def test_a_second_start_knows_its_own_folder(tmp_path, capsys):
  root = simple_tree(tmp_path / "root")
  args = ("pets", "--source", root, "--data-dir", tmp_path)
  assert run(capsys, *args)[0] == 0
  folder = tmp_path / "pets" / "1.0.0"
  before = contents(folder), folder.stat().st_mtime_ns
  assert run(capsys, *args)[0] == 0  # nothing to do
  make_tree(root, {"train/cat/new.jpg": picture(77)})
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "was begun with other files or options" in err
  assert (contents(folder), folder.stat().st_mtime_ns) == before
  (folder / "preparation.json").unlink()
  status, _, err = run(capsys, *args)
  assert status == 2
  assert "holds files that this program did not write" in err


def test_too_little_room_is_said_before_the_first_shard(tmp_path):
  shard = shards.Shard("x.array_record-0", 1, 10**18, lambda seen: [b"1"])
  plan = shards.Plan("huge/1.0.0", "1", [shard], lambda *made: None)
  with pytest.raises(
    ValueError, match=r"expected 1,000,000,000,000.00 MB of free"
  ):
    shards.write(plan, tmp_path)
  small = dataclasses.replace(plan, shards=[], fingerprint="2")
  shards.write(small, tmp_path)  # the folder may be begun anew


def test_a_second_process_is_kept_out(tmp_path):
  other = []

  def start_another(count):
    with pytest.raises(ValueError, match="another process is preparing"):
      shards.write(plan, tmp_path)
    other.append(count)

  def one(seen):
    seen(None)
    yield b"1"

  shard = shards.Shard("x.array_record-0", 1, 1, one)
  plan = shards.Plan("one/1.0.0", "1", [shard], lambda *made: None)
  shards.write(plan, tmp_path, start_another)
  assert other == [1]


def test_a_file_that_shrank_is_named(tmp_path):
  root = simple_tree(tmp_path / "root")
  plan = planned(root)
  (tmp_path / "root" / "val" / "dog" / "3.jpg").write_bytes(b"\xff\xd8\xff")
  with pytest.raises(OSError, match=r"val/dog/3.jpg changed while it was read"):
    shards.write(plan, tmp_path)
