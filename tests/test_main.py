"""The console script: each command under one name."""

import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

import vitkd_jax
from vitkd_jax import __main__ as script

ROOT = pathlib.Path(__file__).parents[1]


def call(monkeypatch, *args):
  monkeypatch.setattr(sys, "argv", ["vitkd", *args])
  with pytest.raises(SystemExit) as end:
    script.main()
  return end.value.code


def test_it_knows_every_command():
  found = {
    path.stem
    for path in (ROOT / "vitkd_jax").glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
  }
  assert set(script.COMMANDS) == found - {"__main__"}


def test_it_is_installed_as_vitkd():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  module, _, function = project["scripts"]["vitkd"].partition(":")
  assert module == script.__name__
  assert getattr(script, function) is script.main


@pytest.mark.parametrize("args, status", [((), 2), (("--help",), 0)])
def test_its_help_lists_the_commands(args, status, monkeypatch, capsys):
  assert call(monkeypatch, *args) == status
  said = "".join(capsys.readouterr())
  for name, what in script.COMMANDS.items():
    assert f"{name:8}  {what}" in said


def test_a_misspelt_command_is_refused(monkeypatch, capsys):
  assert call(monkeypatch, "tarin") == 2
  assert capsys.readouterr().err == (
    "error: expected a command, got 'tarin'; the nearest is 'train'\n"
  )


def test_versions(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["vitkd", "--version"])
  script.main()
  said = capsys.readouterr().out
  assert said.startswith(f"vitkd_jax {vitkd_jax.__version__}, jax ")
  assert "8 device(s): cpu" in said


def test_a_command_is_the_module_of_its_name():
  """Which is what a workdir records, and what worker processes import."""
  done = subprocess.run(
    [sys.executable, "-m", "vitkd_jax", "convert", "--input=x"],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  plain = subprocess.run(
    [sys.executable, "-m", "vitkd_jax.convert", "--input=x"],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == plain.returncode == 2
  assert done.stderr == plain.stderr
  assert done.stderr.startswith("error: ")
