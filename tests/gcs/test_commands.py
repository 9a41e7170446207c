"""Every command on workdirs and weights that lie on gs://."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import drawn
from etils import epath
import gcsfs
import jax
import numpy as np
import pytest
import quick

from vitkd_jax import convert, doctor, report, weights
from vitkd_jax.data import datasets
from vitkd_jax.evaluation import resuming, scoring
from vitkd_jax.runs import checkpoint
from vitkd_jax.training import experiment
from vitkd_jax.weights import resolve

pytestmark = pytest.mark.filterwarnings(
  # gcsfs hands aiohttp whole files.
  "ignore:Sending a large body directly:ResourceWarning"
)
ROOT = pathlib.Path(__file__).parents[2]
VARIANT = "deit_pico_patch4_28"
_NUMBERS = itertools.count(1)


def parameters(seed):
  """Random parameters of a student of Fashion-MNIST's classes."""
  return drawn.params(10, seed, deviation=0.1, variant=VARIANT)


@pytest.fixture
def run(server):
  """gs:// of what a run leaves: two checkpoints and an exported student."""
  # gcsfs keeps listings within a process: each test has a folder of its own.
  path = f"gs://runs/{next(_NUMBERS)}"
  config = {
    "student": {"variant": VARIANT},
    "data": {"name": "fashion_mini", "eval_split": "test[:20]"},
    "run": {"seed": 0, "batch_size": 16},
    "weights": {"task": 1.0, "kl": 1.0},
    "teacher": {"weights": "gs://x/teacher", "variant": "S/16"},
  }
  record = {"config": config, "teacher_sha256": "ab" * 32, "teacher_step": 7}
  folder = epath.Path(path)
  (folder / "config.json").write_text(json.dumps(record))
  lines = [{"step": 3, "loss": 2.0}, {"step": 6, "eval_top1": 0.8125}]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text)
  checkpoints = checkpoint.Checkpoints(f"{path}/checkpoints")
  for step in (3, 6):
    ema = parameters(100 + step)
    state = {"params": {"student": parameters(step)}, "ema": ema}
    checkpoints.save(step, state, top1=step / 10)
    checkpoints.wait()
  checkpoints.close()
  weights.save(
    f"{path}/student.safetensors",
    parameters(9),
    variant=VARIANT,
    format="flat",
    image_size=28,
  )
  gcsfs.GCSFileSystem.clear_instance_cache()
  return path


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_workdir_is_scored_as_one_on_the_disk_is(run):
  info = datasets.info("fashion_mini")
  for asked, seed in (({}, 9), ({"step": "3"}, 103), ({"which": "student"}, 6)):
    assert_same(scoring.load(run, info, **asked).params, parameters(seed))
  # A file alone says its model, too, from its header.
  file = f"{run}/student.safetensors"
  assert resolve.stated(file).variant == VARIANT
  assert_same(scoring.load(file, info).params, parameters(9))


@pytest.mark.parametrize(
  "path", ["gs://runs/none", "gs://runs/none.safetensors", "gs://run-0/a"]
)
def test_what_is_not_there_is_one_sentence(run, server, path):
  info = datasets.info("fashion_mini")
  with pytest.raises(ValueError, match=r"^expected weights at 'gs://"):
    scoring.load(path, info)
  options = convert.Options(input=path, output="gs://runs/o.npz", to="flat")
  with pytest.raises(ValueError, match=r"^expected weights at 'gs://"):
    convert.convert(options)
  assert "o.npz" not in set(server.store.names("runs"))
  with pytest.raises(report.command.RefusedError, match="there is no folder"):
    report.report([path])


def test_evaluate_reads_and_writes_gs(run, server):
  done = subprocess.run(
    [sys.executable, "-m", "vitkd_jax.evaluate", f"--weights={run}"]
    + [f"--teacher={run}/checkpoints", f"--teacher-variant={VARIANT}"]
    + ["--out=gs://runs/out", "--batch-size=20"],
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": quick.FLAGS},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert f"{run}: the student that the run exported" in done.stdout
  assert "moving average of the checkpoint of step 6" in done.stdout
  content = server.store.objects["runs", "out/evaluation.json"][1]
  found = json.loads(content)
  assert found["count"] == 20
  assert found["split"] == "test[:20]"
  names = set(server.store.names("runs"))
  assert "out/confusion.png" in names
  assert not [name for name in names if "unfinished" in name]


def test_an_evaluation_is_kept_on_gs(server):
  path, rows = "gs://runs/kept/features", {"x": np.float32([1, 2])}
  first = resuming.Pass(path, "the pass", {}, grows=True)
  first.save(2, rows)
  first.save(3, rows)
  gcsfs.GCSFileSystem.clear_instance_cache()  # as in another process
  second = resuming.Pass(path, "the pass", {}, grows=True)
  assert second.done == 3
  assert_same(second.found, [rows, rows])


def test_convert_reads_and_writes_gs(run, server, tmp_path, capsys):
  def to(output, format, **options):
    options = convert.Options(run, str(output), format, **options)
    return convert.convert(options)

  to(tmp_path / "timm", "timm", check=False)
  card = (tmp_path / "timm" / "README.md").read_text()
  assert "| top1 | 0.8125 |" in card
  assert "`teacher`, step 7, SHA-256 `abab" in card
  assert "the student that the run exported" in capsys.readouterr().out
  written = to("gs://runs/flat.npz", "flat", step="3")
  said = capsys.readouterr().out
  assert "moving average of the checkpoint of step 3" in said
  assert "the file read back: max |difference| 0.0e+00" in said
  options = dict(variant=VARIANT, num_classes=10)
  assert_same(weights.load(written, **options), parameters(103))
  before = sorted(ROOT.iterdir())
  to("gs://runs/folder", "timm")
  assert "not compared, as timm reads local folders only" in (
    capsys.readouterr().out
  )
  assert {"folder/model.safetensors", "folder/config.json"} < set(
    server.store.names("runs")
  )
  loaded = weights.load("gs://runs/folder", image_size=28, **options)
  assert_same(loaded, parameters(9))
  assert sorted(ROOT.iterdir()) == before  # no folder named "gs:"


def test_report_reads_and_writes_gs(run, server):
  out, markdown = report.report([run])
  assert out == f"{run}/report"
  assert "0.8125" in markdown or "81.25" in markdown
  page = server.store.objects["runs", f"{run[10:]}/report/index.html"][
    1
  ].decode()
  assert "gs://x/teacher, step 7, SHA-256 abab" in page


@pytest.mark.parametrize(
  "file, step", [("", 6), ("/student.safetensors", None)]
)
def test_a_teacher_may_lie_on_gs(run, tiny_config, file, step):
  if step:
    epath.Path(f"{run}/student.safetensors").unlink()
    gcsfs.GCSFileSystem.clear_instance_cache()
  tiny_config.teachers.teacher.update(weights=run + file, variant=VARIANT)
  parts = experiment.build(tiny_config)
  assert parts.teacher_pins["teacher"].step == step
  assert len(parts.teacher_pins["teacher"].sha256) == 64
  want = parameters(106 if step else 9)["head"]["bias"]
  np.testing.assert_array_equal(
    parts.teacher_params["teacher"]["head"]["bias"], want
  )


def test_doctor_examines_a_teacher_on_gs(run, tiny_config):
  tiny_config.teachers.teacher.update(weights=run, variant=VARIANT)
  findings = list(doctor.examine(tiny_config))
  said = [finding.found for finding in findings]
  assert "the student that the run exported" in said
