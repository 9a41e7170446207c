"""The check that every test goes through finds what it is there for."""

import os
import signal
import subprocess
import sys

import jax
import leaks
import pytest


def check(watch, said):
  with pytest.raises(AssertionError, match=said):
    watch.check()
  watch.check()  # all is as it was


def test_a_child_is_found_and_ended(monkeypatch):
  monkeypatch.setattr(leaks, "_PATIENCE", 0.1)
  watch = leaks.Watch()
  with subprocess.Popen(
    [sys.executable, "-c", "import signal; signal.pause()"]
  ) as child:
    with pytest.raises(AssertionError, match=r"the process .*signal\.pause"):
      watch.check()
    assert child.wait() == -signal.SIGKILL
  watch.check()


def test_a_variable_is_found_and_restored():
  watch = leaks.Watch()
  before = os.environ["JAX_PLATFORMS"]
  os.environ["VITKD_LEFT"] = "1"
  del os.environ["JAX_PLATFORMS"]
  check(watch, "JAX_PLATFORMS=None; the variable VITKD_LEFT='1'")
  assert os.environ["JAX_PLATFORMS"] == before


def test_a_handler_is_found_and_restored():
  watch = leaks.Watch()
  signal.signal(signal.SIGUSR1, lambda *_: None)
  check(watch, "a handler of SIGUSR1")


def test_a_setting_of_jax_is_found_and_restored():
  watch = leaks.Watch()
  jax.config.update("jax_debug_nans", True)
  check(watch, "jax.config.jax_debug_nans=True")
