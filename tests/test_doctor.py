"""What the doctor says of a training, and of a step compiled for a slice."""

import pathlib
import re

import ml_collections
import pytest

from vitkd_jax import doctor
from vitkd_jax.estimate import findings

ROOT = pathlib.Path(__file__).parents[1]


def found(findings):
  return {finding.what.strip(): finding for finding in findings}


# As topology.examine gives it; the figures are chosen to be easy.
REPORT = {
  "slice": "v5e:2x4",
  "chips": 8,
  "hbm_gb": 16,
  "batch_size": 1024,
  "fsdp": 1,
  "terms": ["task", "mimic"],
  "fits": True,
  "devices": 8,
  "images_per_device": 128,
  "memory": {"student": 2**20, "program": 3 * 2**20},
  "memory_total": 2**32,
  "collectives": [
    {"kind": "all-reduce", "arrays": 9, "bytes": 2**20, "times": 3},
    {"kind": "all-reduce", "arrays": 1, "bytes": 4, "times": 1},
    {"kind": "all-gather", "arrays": 1, "bytes": 2**21, "times": 1},
  ],
  "flops": 197e9,
  "cycles": 3_000_000,
  "loops_counted_once": 2,
  "compile_seconds": 61.2,
}


def test_a_slices_report_becomes_findings():
  said = found(findings.of_report(REPORT))
  assert said["batch"].found.startswith("1024 images, 128 per chip")
  assert said["student"].found.strip() == "1.0 MiB"
  assert said["memory of a chip"].found == "4.00 GiB of 16 GB"
  assert said["memory of a chip"].good is True
  # Three times nine arrays; the counter of 4 bytes is told apart.
  assert said["all-reduce"].found.startswith("3 of 9 arrays, 3.0 MiB per step")
  assert said["all-reduce"].found.endswith("1 smaller than 1 KiB")
  assert said["all-gather"].found.startswith("1 of 1 arrays, 2.0 MiB")
  # 197 GFLOP at 197 TFLOP/s, and 3 million cycles at 1.5 GHz.
  assert "1.0 ms at the peak of 197 TFLOP/s" in said["work"].found
  assert "2.0 ms at 1.50 GHz; 2 loops" in said["cycles"].found


def test_a_step_that_does_not_fit_is_wrong():
  refusal = "Used 20.00G of 15.75G hbm"
  report = REPORT | {"fits": False, "refusal": refusal}
  said = found(findings.of_report(report))
  assert said["memory of a chip"].good is False
  assert said["memory of a chip"].found == refusal
  assert "cycles" not in said


def test_a_training_is_examined(tiny_config, drawn_state):
  tiny_config.augment = dict(label_smoothing=0.1)
  said = found(doctor.examine(tiny_config))
  assert said["run"].found.startswith("12 steps of 16 images")
  assert said["labels"].good
  assert said["pixels"].good
  # A random teacher is found out, a random head learns.
  assert said["teacher's accuracy"].good is False
  assert said["gradients of the methods"].good
  shares = [
    re.search(r"(\d+)% of the total and (\d+)% of the student", found.found)
    for name, found in said.items()
    if name.endswith(" loss")
  ]
  assert len(shares) == 4
  for column in (1, 2):  # each rounded to a percent
    assert abs(sum(int(share[column]) for share in shares) - 100) <= 2
  assert said["vitkd/mimic loss"].good
  assert "GFLOP per step and device" in said["work"].found


@pytest.fixture
def baseline(tiny_config, one_device):
  """A student alone, whose head starts at zero."""
  plain = tiny_config.to_dict() | {"methods": {}, "augment": {}}
  for name in ("teachers", "methods", "task"):  # may be left out
    del plain[name]
  plain["student"] |= {"head_zeroinit": True}
  return ml_collections.ConfigDict(plain)


def test_a_head_that_starts_at_zero_is_no_alarm(baseline):
  gradients = found(doctor.examine(baseline))["gradients of the student"]
  assert gradients.good is True
  total = gradients.found.split()[0]
  assert gradients.found.startswith(f"{total} of {total} parameters get one; ")
  assert f"{int(total) - 2} of them from the second step on" in gradients.found


def test_parameters_without_a_gradient_are_named():
  norms = {
    "student": {"a": {"b": 0.0, "c": 1.0}, "d": float("nan")},
    "head": {"e": 2.0},
  }
  assert doctor._without_gradient(norms) == {
    "student": ["a/b", "d"],
    "head": [],
  }


def test_what_takes_a_while_is_announced_before_it(baseline, monkeypatch):
  said = doctor.findings_of(baseline)
  monkeypatch.setattr(doctor.experiment, "build", None)  # not called yet
  assert "dataset" in next(said)


def test_findings_are_printed_one_by_one(capsys):
  shown = findings.Shown()
  shown.show("compiling")
  assert "(compiling ...)" in capsys.readouterr().out
  shown.show(doctor.Finding("pixels", "[/b] \x1b[31m", False))
  out = capsys.readouterr().out
  assert out.split() == ["WRONG", "pixels", "[/b]", "\ufffd[31m"]
  assert shown.wrong == ["pixels"]


@pytest.mark.parametrize(
  "options, said",
  [
    (["--json=x.json"], "--json needs --topology"),
    (["--topology=h100"], "v4, v5e, v5p, v6e, got 'h100'"),
  ],
)
def test_wrong_options_are_refused_in_one_sentence(
  options, said, tmp_path, forks
):
  config = f"--config={ROOT}/configs/quickstart.py"
  done = forks.run("doctor", config, *options, cwd=tmp_path)
  assert done.returncode == 2
  assert said in done.stderr
  assert done.stderr.count("\n") == 1
  assert not list(tmp_path.iterdir())
