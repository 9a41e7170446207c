"""Starts real trainings and evaluations, and looks at what they leave."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import quick

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
# Seconds; these tests run on two cores that others may use, too.
_PATIENCE = 900
TIMES = ("images_per_second", "data_wait", "eta_seconds")


def options(teacher, workdir):
  """Those of every training."""
  return [f"--config={HERE / 'tiny.py'}:{teacher}", f"--workdir={workdir}"]


class Training:
  """One start of a training, of one process or of several; a context.

  Args:
    workdir: of the run.
    teacher: path of its weights.
    cache: folder of compiled steps, shared by many starts.
    processes: number of processes.
    devices: virtual CPU devices of each.
    options: more of the command line.
    env: more of the environment.
    redirect: of its standard streams, as a shell has it.
  """

  def __init__(
    self,
    workdir,
    *options,
    teacher,
    cache,
    processes=1,
    devices=2,
    env=None,
    redirect=None,
  ):
    self.workdir = pathlib.Path(workdir)
    self._log = self.workdir.with_suffix(f".{time.monotonic_ns()}.log")
    self._file = open(self._log, "w")  # noqa: SIM115, closed by __exit__
    command = [*self._command(teacher), *options]
    env = {
      **os.environ,
      "PYTHONPATH": str(ROOT),
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "PYTHONUNBUFFERED": "1",
      **(env or {}),
    }
    env["XLA_FLAGS"] = (
      f"{quick.FLAGS} --xla_force_host_platform_device_count={devices}"
    )
    if processes > 1:
      command = [
        str(ROOT / "launch" / "local_processes.py"),
        str(processes),
        f"--devices={devices}",
        "--",
        *command,
      ]
    self._launched = processes > 1
    command = [sys.executable, *command]
    if redirect:
      command = ["bash", "-c", f'exec "$@" {redirect}', "bash", *command]
    # Through a pipe: a training whose disk is full must still be heard.
    self._copy = subprocess.Popen(
      ["cat"], stdin=subprocess.PIPE, stdout=self._file
    )
    self.process = subprocess.Popen(
      command,
      cwd=ROOT,
      env=env,
      stdout=self._copy.stdin,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    self._copy.stdin.close()

  def _command(self, teacher):
    return [str(HERE / "trainer.py"), *options(teacher, self.workdir)]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    # The launcher's children lead groups of their own.
    for pid in {self.process.pid, *self.trainers()}:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    self.process.wait()
    self._copy.kill()
    self._copy.wait()
    self._file.close()

  @property
  def output(self):
    return self._log.read_text()

  def until(self, text, timeout=_PATIENCE):
    """Waits until it has printed `text`."""
    deadline = time.monotonic() + timeout
    while text not in self.output:
      assert self.process.poll() is None, self.output
      assert time.monotonic() < deadline, self.output
      time.sleep(0.02)

  def until_step(self, step):
    """Waits until the metrics of a step are written."""
    deadline = time.monotonic() + _PATIENCE
    while max(losses(self.workdir), default=0) < step:
      assert self.process.poll() is None, self.output
      assert time.monotonic() < deadline, self.output
      time.sleep(0.02)

  def end(self, status=0, timeout=_PATIENCE):
    """Waits for the end, and checks the status; returns what it printed."""
    found = self.process.wait(timeout)
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._copy.wait(60)  # for what was said last
    assert found == status, f"status {found}: {self.output}"
    return self.output

  def trainers(self):
    """Process ids of the trainers, in their order."""
    pid = self.process.pid
    return children(pid) if self._launched else [pid]

  def workers(self):
    """Process ids of the workers that read data for the trainers."""
    return [
      child
      for trainer in self.trainers()
      for child in children(trainer)
      if b"spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()
    ]

  def kill(self):
    """Kills every trainer without warning, and what started them."""
    pids = self.trainers()
    for pid in pids:
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    self.process.kill()
    self.process.wait()


class Pack(Training):
  """One start of several trainings in a process; `workdir` is the first's.

  The others' options come after it, each after a "--".
  """

  def _command(self, teacher):
    return ["-m", "vitkd_jax.pack", "--", *options(teacher, self.workdir)]


class Evaluation(Training):
  """One start of an evaluation of the teacher, which writes to its workdir."""

  def _command(self, teacher):
    script = str(HERE / "evaluator.py")
    return [script, f"--weights={teacher}", f"--out={self.workdir}"]

  def until_kept(self, name):
    """Waits until a pass has been saved."""
    deadline = time.monotonic() + _PATIENCE
    while not (self.workdir / "unfinished" / name).exists():
      assert self.process.poll() is None, self.output
      assert time.monotonic() < deadline, self.output
      time.sleep(0.02)


def children(pid):
  """Process ids of the children of a process, in their order."""
  # Not from /proc/PID/task/*/children, as threads end while they are read.
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):  # it has ended
      if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
        found.append(int(path.parent.name))
  return sorted(found)


def alive(pid):
  """Whether a process runs: a zombie does not."""
  try:
    status = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return False
  return status.rpartition(")")[2].split()[0] != "Z"


def gone(pids, within):
  """Whether all processes are gone after so many seconds."""
  deadline = time.monotonic() + within
  while any(map(alive, pids)) and time.monotonic() < deadline:
    time.sleep(0.05)
  return not any(map(alive, pids))


def metrics(workdir):
  """{step: metrics} without those of the clock, as far as they are whole."""
  path, found = pathlib.Path(workdir) / "metrics.jsonl", {}
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      values = json.loads(line)
    except ValueError:
      continue  # half written
    for name in TIMES:
      values.pop(name, None)
    found.setdefault(values["step"], {}).update(values)
  return found


def losses(workdir):
  """{step: loss}."""
  found = metrics(workdir)
  return {step: m["loss"] for step, m in found.items() if "loss" in m}


def saved_steps(workdir):
  """Numbers of the checkpoints that are there."""
  folder = pathlib.Path(workdir) / "checkpoints"
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
