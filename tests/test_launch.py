"""The launch scripts: what they print is what they do; the clouds are fakes."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted(
  str(p.relative_to(ROOT))
  for pattern in ("*.sh", "*.sbatch")
  for p in (ROOT / "launch").glob(pattern)
)
TRAIN = ["--config", "configs/vitkd_i1k.py:pair=l3-b", "--workdir", "gs://b/r"]

# A program that writes down how it was called.
FAKE = """#!/usr/bin/env bash
source {root}/launch/dry_run.sh
show "${{0##*/}}" "$@" >>"$LOG"
case "$*" in *describe*) echo "${{STATE:-ACTIVE}}" ;; esac
"""


def run(*args, **env):
  return subprocess.run(
    ["bash", *args],
    cwd=ROOT,
    env=os.environ | {"VITKD_PYTHON": sys.executable} | env,
    capture_output=True,
    text=True,
    timeout=600,
  )


@pytest.fixture
def fakes(tmp_path):
  """Environment in which gcloud, xpk, git and Slurm only write a log."""
  folder = tmp_path / "bin"
  folder.mkdir()
  for name in ("gcloud", "xpk", "git", "scontrol", "scancel"):
    (folder / name).write_text(FAKE.format(root=ROOT))
    (folder / name).chmod(0o755)
  (tmp_path / "log").touch()
  return {
    "PATH": f"{folder}:{os.environ['PATH']}",
    "LOG": str(tmp_path / "log"),
  }


def commands(text):
  return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.skipif(
  not shutil.which("shellcheck"), reason="shellcheck is not installed"
)
def test_shellcheck_finds_nothing():
  found = subprocess.run(
    ["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True
  )
  assert not found.stdout


@pytest.mark.parametrize("script", [s for s in SCRIPTS if "dry_run" not in s])
def test_scripts_begin_as_the_house_wants(script):
  lines = (ROOT / script).read_text().splitlines()
  assert lines[0] == "#!/usr/bin/env bash"
  code = next(line for line in lines if line and not line.startswith("#"))
  assert code == "set -euo pipefail"


TPU = "launch/tpu_vm.sh"
GKE = "launch/gke.sh"
SLURM = "launch/slurm.sbatch"
GOLDEN = {
  (TPU, "create", "pod", "--zone=z", "--type=v4-32", "--spot"): """\
gcloud compute tpus queued-resources create pod --node-id=pod --zone=z \
--accelerator-type=v4-32 --runtime-version=tpu-ubuntu2204-base --spot
# until its state is ACTIVE:
gcloud compute tpus queued-resources describe pod --zone=z \
'--format=value(state.state)'
""",
  (TPU, "run", "pod", "--zone=z", "--project=p", "--", *TRAIN): """\
gcloud compute tpus tpu-vm ssh pod --zone=z --project=p --worker=all \
'--command=cd vitkd_jax; if [ -e train.pid ] && kill -0 $(cat train.pid) \
2>/dev/null; then echo '\\''the training runs already'\\''; exit 1; fi; nohup \
setsid .venv/bin/python -m vitkd_jax.train --config \
configs/vitkd_i1k.py:pair=l3-b --workdir gs://b/r </dev/null >>train.log 2>&1 \
& echo $! >train.pid'
""",
  (TPU, "stop", "pod", "--zone=z"): """\
gcloud compute tpus tpu-vm ssh pod --zone=z --worker=all \
'--command=kill -TERM $(cat vitkd_jax/train.pid)'
""",
  (TPU, "delete", "pod", "--zone=z"): """\
gcloud compute tpus queued-resources delete pod --zone=z --force --quiet
""",
  (GKE, "create", "c", "--zone=z", "--type=v5e-256", "--spot"): """\
xpk cluster create --cluster=c --zone=z --tpu-type=v5litepod-256 \
--num-slices=1 --spot
""",
  (GKE, "run", "c", "--zone=z", "--type=v4-32", "--name=r", "--", *TRAIN): """\
xpk workload create --cluster=c --zone=z --workload=r --tpu-type=v4-32 \
--num-slices=1 --base-docker-image=python:3.12 --script-dir=. \
--max-restarts=100 --restart-on-exit-codes=1 \
--termination-grace-period-seconds=120 '--command=pip install --quiet \
--root-user-action=ignore --editable . '\\''jax[tpu]'\\'' gcsfs && \
VITKD_PYTHON=python exec bash launch/until_done.sh gs://b/r python -m \
vitkd_jax.train --config configs/vitkd_i1k.py:pair=l3-b --workdir gs://b/r'
""",
}


def with_dry_run(args):
  at = args.index("--") if "--" in args else len(args)
  return [*args[:at], "--dry-run", *args[at:]]


@pytest.mark.parametrize("args", GOLDEN, ids=lambda a: " ".join(a[:2]))
def test_a_dry_run_prints_the_commands_and_runs_none(args, fakes, tmp_path):
  printed = run(*with_dry_run(args), **fakes)
  assert printed.stdout == GOLDEN[args]
  assert printed.returncode == 0
  assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize(
  "args",
  [*GOLDEN, (TPU, "setup", "pod", "--zone=z"), (GKE, "list", "c", "--zone=z")],
  ids=lambda a: " ".join(a[:2]),
)
def test_what_a_dry_run_prints_is_what_runs(args, fakes, tmp_path):
  printed = run(*with_dry_run(args), **fakes)
  done = run(*args, **fakes)
  assert done.returncode == 0, done.stderr
  log = (tmp_path / "log").read_text()
  log = re.sub(r"/tmp\.\w{10}/", "/tmp.XXXXXXXXXX/", log)  # mktemp's
  assert log.splitlines() == commands(printed.stdout)


def test_setup_writes_through_no_link_of_another_user(fakes, tmp_path):
  slice_, victim = f"pod-{os.getpid()}-{time.time_ns()}", tmp_path / "victim"
  guess = pathlib.Path("/tmp", f"vitkd_jax-{slice_}.tar.gz")
  git = tmp_path / "bin" / "git"
  git.write_text(
    "#!/usr/bin/env bash\nfor a; do case $a in --output=*) f=${a#*=}; "
    'echo code >"$f"; stat -c %a "${f%/*}" >>"$LOG";; esac; done\n'
  )
  (scratch := tmp_path / "scratch").mkdir()
  guess.symlink_to(victim)
  try:
    done = run(TPU, "setup", slice_, "--zone=z", **fakes, TMPDIR=str(scratch))
  finally:
    guess.unlink()
  assert done.returncode == 0, done.stderr
  assert not victim.exists()
  assert (tmp_path / "log").read_text().startswith("700\n")
  assert not list(scratch.iterdir())


EVIL = "x[$(touch $EVIL)]"


@pytest.mark.parametrize(
  "args, env",
  [
    (["launch/quickstart_seeds.sh", EVIL], {}),
    ([SLURM, "--dry-run", *TRAIN], {"SLURM_JOB_ID": EVIL, "SLURM_NTASKS": "1"}),
    ([SLURM, "--dry-run", *TRAIN], {"VITKD_RETRIES": EVIL}),
    (["benchmarks/accelerator.sh", "/dev/null/out", EVIL], {"PYTHON": "true"}),
  ],
)
def test_no_number_is_run_as_a_command(args, env, fakes, tmp_path):
  evil = tmp_path / "evil"
  done = run(*args, EVIL=str(evil), **env, **fakes)
  assert done.returncode == 2
  assert done.stderr.startswith("error: expected ")
  assert f"to be a whole number, got '{EVIL}'" in done.stderr
  assert not evil.exists()


@pytest.mark.parametrize(
  "state, first", [("ACTIVE", "tpu-vm ssh"), ("SUSPENDED", "delete")]
)
def test_resume_makes_only_a_lost_slice_anew(state, first, fakes, tmp_path):
  args = ["resume", "pod", "--zone=z", "--type=v5e-8", "--", *TRAIN]
  done = run(TPU, *args, STATE=state, **fakes)
  log = (tmp_path / "log").read_text().splitlines()
  acted = [line for line in log if "describe" not in line]
  assert first in acted[0]
  if state == "ACTIVE":
    assert len(acted) == 1
    return
  # The fake never becomes ACTIVE: that is said, and nothing starts.
  assert [line.split()[4] for line in acted] == ["delete", "create"]
  assert done.returncode == 2
  assert "SUSPENDED" in done.stderr


LOCAL = ["--", "--config", "configs/a.py", "--workdir", "/tmp/r"]


@pytest.mark.parametrize(
  "args, sentence",
  [
    ([TPU, "fly"], "unknown action 'fly'"),
    ([TPU, "run", "--zone=z"], "name is missing"),
    ([TPU, "create", "pod"], "--zone is missing"),
    ([TPU, "create", "pod", "--zone=z"], "--type is missing"),
    ([TPU, "create", "pod", "--zone", "z"], "unknown option '--zone'"),
    ([TPU, "run", "pod", "--zone=z"], "-- --config FILE --workdir DIR"),
    ([TPU, "run", "pod", "--zone=z", *LOCAL], "expected --workdir gs://"),
    ([GKE, "create", "c", "--zone=z"], "--type is missing"),
    ([GKE, "stop", "c", "--zone=z"], "--name is missing"),
    (
      [GKE, "run", "c", "--zone=z", "--type=v4-8", "--name=r", *LOCAL],
      "expected --workdir gs://",
    ),
    ([SLURM, "--config", "configs/a.py"], "--workdir is missing"),
    ([SLURM, "--workdir", "d"], "--config is missing"),
    ([SLURM, "--workdir"], "--workdir needs a value"),
    ([SLURM, *LOCAL[1:]], "this is a batch script"),
  ],
)
def test_refusals_are_one_sentence_and_run_nothing(
  args, sentence, fakes, tmp_path
):
  done = run(*args, **fakes)
  assert done.returncode == 2
  assert done.stderr.startswith("error: ")
  assert sentence in done.stderr
  assert done.stderr.count("\n") == 1
  assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("script", [TPU, GKE, SLURM])
def test_help_is_the_head_of_the_script(script):
  done = run(script, "--help")
  assert done.returncode == 0
  assert f"{script} " in done.stdout
  assert "set -e" not in done.stdout
  assert run(script).returncode == 2


@pytest.mark.parametrize("complete", [True, False])
def test_until_done_tells_complete_from_preempted(complete, tmp_path):
  if complete:
    (tmp_path / "student.safetensors").touch()
  done = run("launch/until_done.sh", str(tmp_path), "true")
  assert done.returncode == (0 if complete else 42)


def test_until_done_keeps_the_status_of_a_failure(tmp_path):
  done = run("launch/until_done.sh", str(tmp_path), "bash", "-c", "exit 7")
  assert done.returncode == 7


def test_until_done_passes_sigterm_on_and_waits(tmp_path):
  child = """trap 'sleep 0.5; echo saved; exit 0' TERM
    echo ready; while :; do sleep 0.1; done"""
  with subprocess.Popen(
    ["bash", "launch/until_done.sh", str(tmp_path), "bash", "-c", child],
    cwd=ROOT,
    env=os.environ | {"VITKD_PYTHON": sys.executable},
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=600)
  assert out == "saved\n"
  assert process.returncode == 42


def job(tmp_path, fakes, script, **env):
  """Runs slurm.sbatch as Slurm would, with a fake srun."""
  srun = tmp_path / "bin" / "srun"
  srun.write_text(f"#!/usr/bin/env bash\n{script}\n")
  srun.chmod(0o755)
  return run(
    SLURM,
    "--config=configs/a.py",
    f"--workdir={tmp_path}",
    SLURM_JOB_ID="77",
    SLURM_NTASKS="8",
    SLURM_JOB_NUM_NODES="1",
    SLURM_SUBMIT_DIR=str(ROOT),
    **(fakes | env),
  )


@pytest.mark.parametrize(
  "script, restarts, requeued, status",
  [
    ("touch $DIR/student.safetensors", 0, False, 0),
    ("true", 5, True, 0),  # preempted, however often
    ("exit 134", 0, True, 0),  # a peer died
    ("exit 134", 3, False, 134),
    ("exit 2", 0, False, 2),  # the config is wrong
  ],
)
def test_a_slurm_job_queues_again_unless_it_is_hopeless(
  script, restarts, requeued, status, fakes, tmp_path
):
  done = job(
    tmp_path,
    fakes,
    script,
    SLURM_RESTART_COUNT=str(restarts),
    DIR=str(tmp_path),
  )
  assert done.returncode == status, done.stderr
  log = (tmp_path / "log").read_text()
  assert log == ("scontrol requeue 77\n" if requeued else "")


def test_slurm_signals_its_tasks_when_time_is_up(fakes, tmp_path):
  # The fake tasks end when scancel has been called.
  wait = """echo ready >$DIR/ready
    until grep -q scancel "$LOG"; do sleep 0.1; done"""
  srun = tmp_path / "bin" / "srun"
  srun.write_text(f"#!/usr/bin/env bash\n{wait}\n")
  srun.chmod(0o755)
  with subprocess.Popen(
    ["bash", SLURM, "--config=c", f"--workdir={tmp_path}"],
    cwd=ROOT,
    env=os.environ
    | fakes
    | dict(
      VITKD_PYTHON=sys.executable,
      DIR=str(tmp_path),
      SLURM_JOB_ID="77",
      SLURM_SUBMIT_DIR=str(ROOT),
    ),
  ) as process:
    while not (tmp_path / "ready").exists():
      assert process.poll() is None
      time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=600) == 0
  assert (tmp_path / "log").read_text().splitlines() == [
    "scancel --signal=TERM 77",
    "scontrol requeue 77",
  ]


def test_one_process_a_node_is_told_its_place():
  done = run(
    SLURM,
    "--dry-run",
    "--config=c",
    "--workdir=d",
    SLURM_NTASKS="4",
    SLURM_JOB_NUM_NODES="4",
    SLURM_JOB_ID="5000",
  )
  # JAX's own rule: a port of the last 4096, by the job's number.
  assert "JAX_COORDINATOR_ADDRESS=NODE:62344,JAX_NUM_PROCESSES=4" in done.stdout
  assert "JAX_PROCESS_ID=$SLURM_PROCID exec" in done.stdout
