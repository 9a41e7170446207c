"""The console script: each command under one name."""

import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

import vitkd_jax
from vitkd_jax import __main__ as script
from vitkd_jax.commandline import config_files

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


def test_a_version_is_told_where_there_is_no_device():
  env = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "abc"}
  done = subprocess.run(
    [sys.executable, "-m", "vitkd_jax", "--version"],
    env=os.environ | env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0
  first, second, third = done.stdout.splitlines()
  assert first.startswith(f"vitkd_jax {vitkd_jax.__version__}, jax ")
  assert second.startswith("JAX found no device to compute on with JAX_PL")
  assert third.startswith("datasets: ")


@pytest.mark.parametrize(
  "words, wanted",
  [
    (("tr",), "train"),
    (("train", "--config", "qui"), "quickstart quickstart_teacher"),
    (("train", "--config", "=", "fol"), "folder"),  # --config=fol
    (("doctor", "--config", "="), None),
    (("report", "mi"), "mine"),
    (("train", "--workdir", "qui"), ""),
  ],
)
def test_a_shell_completes_commands_configs_and_paths(
  words, wanted, monkeypatch, capsys, tmp_path
):
  monkeypatch.setattr(sys, "argv", ["vitkd", "--completion"])
  script.main()
  (tmp_path / "mine").mkdir()
  shell = capsys.readouterr().out + (
    'COMP_WORDS=(vitkd "$@") COMP_CWORD=$#; _vitkd; echo "${COMPREPLY[@]}"'
  )
  done = subprocess.run(
    ["bash", "-c", shell, "bash", *words],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.stderr == ""
  if wanted is None:
    wanted = " ".join([*config_files.names(), "mine"])
  assert done.stdout == f"{wanted}\n"


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
