"""A lab whose folder is on gs://: what is finished is found and compared."""

import json

from etils import epath
import gcsfs
import pytest

from vitkd_jax import lab as command_lab
from vitkd_jax.commandline import arguments
from vitkd_jax.labs import description, launching, plan, records
from vitkd_jax.runs import lock

pytestmark = pytest.mark.filterwarnings(
  # Of ml_collections, which loads config files.
  "ignore:the load_module",
  # gcsfs hands aiohttp whole files.
  "ignore:Sending a large body directly:ResourceWarning",
)
FILE = "configs/labs/methods.py:part=nulls,epochs=1"
FOLDER = "gs://runs/lab"


def leave(run, config, top1):
  """What a finished training of an arm leaves."""
  folder = epath.Path(run.workdir)
  recorded = json.loads(json.dumps(config, default=str))
  recorded["run"]["seed"] = run.seed
  (folder / "config.json").write_text(json.dumps(dict(config=recorded)))
  line = dict(step=125, eval_top1=top1, images_per_second=9, eta_seconds=0)
  (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
  (folder / "student.safetensors").write_bytes(b"-")
  records.add(run, 12.5)


def test_a_lab_on_a_bucket(server):
  lab = description.make(
    {**arguments.load(FILE).to_dict(), "seeds": 2, "name": "nulls"}
  )
  loaded = {arm: arguments.load(plan.with_arm(FILE, arm)) for arm in lab.arms}
  configs = plan.completed(lab, loaded)
  runs = plan.runs(lab, FILE, FOLDER)
  assert runs[0].workdir == "gs://runs/lab/none/seed_0"
  assert not plan.finished(runs[0])
  for run in runs:
    leave(run, configs[run.arm], 0.8 + 0.01 * run.seed + 0.02 * (run.arm > "o"))
  gcsfs.GCSFileSystem.clear_instance_cache()
  with lock.hold(FOLDER):
    for run in runs:
      plan.check_holds(run, configs[run.arm])
    outcome = launching.train(runs, jobs=1, say=lambda line, ended: None)
    assert outcome == launching.Outcome({}, ())
    command_lab.report(lab, runs, configs, FOLDER, 0.5)
  assert records.seconds(runs[3]) == 12.5
  table = epath.Path(f"{FOLDER}/table.md").read_text()
  assert "| vitkd     | ViTKD" in table
  assert "gains 2.00 ± 0.00" in table
  lines = epath.Path(f"{FOLDER}/results.jsonl").read_text().splitlines()
  assert len(lines) == 2 * len(lab.arms)
  assert "<svg" in epath.Path(f"{FOLDER}/report/index.html").read_text()
