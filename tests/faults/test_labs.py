"""A lab that is killed twice ends as one that nothing happens to."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import drawn
import pytest
import quick
import runner

from vitkd_jax import weights

pytestmark = pytest.mark.slow

HERE = pathlib.Path(__file__).parent


class Lab:
  """One start of a lab; a context that leaves no process behind."""

  def __init__(self, folder, teacher, cache):
    self.folder = folder
    self._log = folder.with_suffix(f".{time.monotonic_ns()}.log")
    env = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "XLA_FLAGS": quick.FLAGS,
    }
    self._file = open(self._log, "w")  # noqa: SIM115, closed by __exit__
    self.process = subprocess.Popen(
      [
        sys.executable,
        "-m",
        "vitkd_jax.lab",
        f"--config={HERE / 'tiny_lab.py'}:teacher={teacher}",
        f"--workdir={folder}",
        "--jobs=2",
      ],
      cwd=runner.ROOT,
      env=env,
      stdout=self._file,
      stderr=subprocess.STDOUT,
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.kill(*runner.children(self.process.pid))
    self._file.close()

  def kill(self, *others):
    """Kills the lab, then the other processes, without warning."""
    for pid in (self.process.pid, *others):
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    self.process.wait()

  @property
  def output(self):
    return self._log.read_text()

  def until(self, happened):
    deadline = time.monotonic() + runner._PATIENCE
    while not happened():
      assert self.process.poll() is None, self.output
      assert time.monotonic() < deadline, self.output
      time.sleep(0.02)

  def end(self, status=0):
    assert self.process.wait(runner._PATIENCE) == status, self.output
    return self.output


def training(folder):
  """The runs that are in the midst of their steps."""
  started = {p.parent for p in folder.glob("*/seed_*/metrics.jsonl")}
  ended = {p.parent for p in folder.glob("*/seed_*/student.safetensors")}
  return started - ended


def finished(folder):
  return len(list(folder.glob("*/seed_*/student.safetensors")))


def test_a_lab_survives_two_kills(tmp_path):
  teacher, cache = tmp_path / "teacher.safetensors", tmp_path / "cache"
  params = drawn.params(10, 7, deviation=0.1, variant="test/7")
  weights.save(teacher, params, variant="test/7", format="flat")
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  with Lab(whole, teacher, cache) as lab:
    lab.end()

  with Lab(broken, teacher, cache) as first:
    first.until(lambda: training(broken))
    orphans = runner.children(first.process.pid)
    first.kill()  # its trainings go on
  with Lab(broken, teacher, cache) as second:
    second.until(lambda: finished(broken) >= 4 and training(broken))
    assert not any(map(runner.alive, orphans))
    with Lab(broken, teacher, cache) as third:
      said = third.end(2)
    second.kill(*runner.children(second.process.pid))
  with Lab(broken, teacher, cache) as last:
    last.end()

  (line,) = said.splitlines()
  assert line.startswith(f"error: workdir {broken} is in use by process ")
  assert f" {second.process.pid} on " in line
  assert (broken / "table.md").read_bytes() == (whole / "table.md").read_bytes()
  for name in ("metrics", "arm", "seed", "config_sha256", "steps"):
    found = [
      [json.loads(line)[name] for line in path.read_text().splitlines()]
      for path in (broken / "results.jsonl", whole / "results.jsonl")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 8
