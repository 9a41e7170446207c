"""What the starts share: a teacher, and compiled steps.

Every fault that a training must survive, and the test that makes it:
 1 crash                       test_kills, on the same devices; test_packs
 2 a flipped bit               ../test_checkpoint, 20 positions
 3 a damaged newest step       ../test_checkpoint, 20 kinds
 4 preemption                  test_preemption: steps, evaluation, compilation;
                               test_packs
 5 other devices               test_kills, across devices
 6 order of the data           ../test_loader, processes and workers
 7 killed inside a save        test_saves
 8 a peer dies                 test_deaths, with and without the launcher
 9 one process hangs           test_deaths
10 orphans, shared memory      test_deaths, workers
11 SIGTERM to the whole group  test_preemption, twice
12 NaN                         ../test_steps (one), ../test_loop (in a row)
13 a full disk                 test_deaths, ../test_checkpoint
14 records that are damaged    ../test_loader
15 a bad configuration         ../test_command, ../test_experiment
16 a worker dies               test_deaths, workers
17 a peer is missing or late   test_deaths, ../test_startup
18 what is kept                ../test_checkpoint
19 DP = FSDP = hybrid          ../test_steps
20 two writers, one workdir    test_two_writers, ../test_lock, ../gcs
21 Ctrl-C, a closed terminal   test_signals, ../test_notices
22 a console that goes away    test_deaths, ../test_writer

And an evaluation: killed or told to stop, test_evaluations; damaged files,
../test_resuming.
"""

import functools
import signal

import drawn
import pytest
import runner

from vitkd_jax import weights

# nohup's disposition, which every process here would inherit.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
  """A teacher and a cache, as options of `runner.Training`."""
  folder = tmp_path_factory.mktemp("shared")
  params = drawn.params(10, 7, deviation=0.1, variant="test/7")
  path = folder / "teacher.safetensors"
  weights.save(path, params, variant="test/7", format="flat")
  return dict(teacher=path, cache=folder / "cache")


@pytest.fixture(scope="session")
def start(shared):
  """`runner.Training` with a teacher and a cache."""
  return functools.partial(runner.Training, **shared)


@pytest.fixture(scope="session")
def unbroken(start, tmp_path_factory):
  """The workdir of a training that nothing happens to, by its devices."""

  @functools.cache
  def run(processes, devices, *options):
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    env = {"EATEN": str(workdir) + ".eaten"}
    with start(
      workdir, *options, processes=processes, devices=devices, env=env
    ) as training:
      training.end()
    return workdir

  return run
