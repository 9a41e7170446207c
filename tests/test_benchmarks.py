"""The benchmarks refuse what does not fit in one sentence."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import augment, checkpoint, growth, smaller, tpu_estimate
from benchmarks import input as reading


@pytest.mark.parametrize(
  "main, args, sentence",
  [
    (augment.main, ["--batch=0"], "--batch: expected an integer >= 1, got '0'"),
    (augment.main, ["--slice=v9:2"], "of v4, v5e, v5p, v6e, got 'v9:2'"),
    (checkpoint.main, ["--directory=/proc/x"], "/proc/x"),
    (growth.main, ["arms"], "expected a case such as arms:200, got 'arms'"),
    (growth.main, ["log:x"], "expected an integer >= 1, got 'x'"),
    (reading.main, ["/proc"], "no /proc/train/.*make_jpegs"),
    (reading.main, [], "expected either ROOT or --real TAR"),
    (
      reading.main,
      ["--real=/proc/version"],
      "expected a tar archive, got /proc/version",
    ),
    (
      smaller.main,
      ["/proc/version"],
      "expected a tar archive, got /proc/version",
    ),
    (tpu_estimate.main, ["--slice=v9:2"], "of v4, v5e, v5p, v6e, got 'v9:2'"),
    (tpu_estimate.main, ["--option=fast"], "expected NAME=VALUE, got 'fast'"),
    (
      tpu_estimate.main,
      ["--images=2.5"],
      "an integer >= 1, got '2.5'",
    ),
  ],
)
def test_refusals_are_one_sentence(main, args, sentence, capsys):
  with pytest.raises(SystemExit, match="2"):
    main(args)
  said = capsys.readouterr()
  assert not said.out
  assert re.search(f"error: .*{sentence}", said.err)


@pytest.mark.slow
def test_the_accelerator_s_script_runs_small(tmp_path):
  """On a CPU, where only its figures' meaning is lost."""
  done = subprocess.run(
    ["bash", "benchmarks/accelerator.sh", str(tmp_path), "1200"],
    env=os.environ | {"TINY": "1", "PYTHON": sys.executable, "XLA_FLAGS": ""},
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "exit status" not in done.stdout
  agreement, step = map(
    json.loads, (tmp_path / "figures.jsonl").read_text().splitlines()
  )
  assert agreement["augmentation"]["largest"] == 0  # a CPU beside itself
  assert agreement["attention"]["xla"]["gradient"] < 0.03
  ours = step["rows"]["ours"]
  assert ours["repeats"]
  assert len(ours["seconds"]) == 1
  assert "student written" in (tmp_path / "train-device.log").read_text()
