"""Students side by side that are stopped and killed (faults 1, 4)."""

import functools
import os
import signal
import subprocess
import sys
import time

import pytest
import quick
import runner

from vitkd_jax.runs import workdir as workdirs

pytestmark = pytest.mark.slow


class Pack:
  """A start of two trainings in one process; a context."""

  def __init__(self, teacher, cache, *folders, own):
    options = []
    for folder in folders:
      config = f"--config={runner.HERE / 'tiny.py'}:{teacher}"
      options += ["--", config, f"--workdir={folder}", *own.get(folder, ())]
    env = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "XLA_FLAGS": f"{quick.FLAGS} --xla_force_host_platform_device_count=2",
    }
    self.process = subprocess.Popen(
      [sys.executable, "-m", "vitkd_jax.pack", *options],
      cwd=runner.ROOT,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.process.kill()
    self.process.communicate()

  def until_step(self, folder, step):
    """Waits until the metrics of a step are written."""
    deadline = time.monotonic() + 900
    while max(runner.losses(folder), default=0) < step:
      assert self.process.poll() is None, self.process.communicate()[0]
      assert time.monotonic() < deadline
      time.sleep(0.02)

  def end(self):
    """Waits for the end; its status and what it printed."""
    output, _ = self.process.communicate(timeout=900)
    return self.process.returncode, output


def test_packs_resume_as_trainings_do(start, unbroken, tmp_path):
  whole = unbroken(1, 2)
  given, cache = start.keywords["teacher"], start.keywords["cache"]
  both, alone = tmp_path / "both", tmp_path / "alone"
  own = {alone: ["--config.methods={}", "--config.teachers={}"]}
  again = functools.partial(Pack, given, cache, both, alone, own=own)

  with again() as pack:
    pack.until_step(alone, 7)
    pack.process.send_signal(signal.SIGTERM)
    status, output = pack.end()
  assert status == 0, output
  assert "stopped, and the states are saved" in output
  assert runner.saved_steps(both)[-1] == runner.saved_steps(alone)[-1]

  with again() as pack:
    pack.until_step(alone, 21)
    pack.process.kill()
  with again() as pack:
    status, output = pack.end()
  assert status == 0, output
  assert workdirs.is_finished(str(both))
  assert workdirs.is_finished(str(alone))
  ours, theirs = runner.metrics(both), runner.metrics(whole)
  assert ours.keys() == theirs.keys()
  for step, values in theirs.items():
    assert ours[step] == pytest.approx(values, rel=1e-3), step
