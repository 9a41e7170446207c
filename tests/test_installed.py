"""Without a checkout: an installed package, called from another folder."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from vitkd_jax.commandline import arguments

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """A folder with nothing but the package, as in site-packages."""
  folder = tmp_path_factory.mktemp("site")
  shutil.copytree(ROOT / "vitkd_jax", folder / "vitkd_jax")
  return folder


@pytest.fixture
def run(installed, tmp_path):
  def start(module, *args):
    return subprocess.run(
      [sys.executable, "-m", f"vitkd_jax.{module}", *args],
      cwd=tmp_path,
      env={**os.environ, "PYTHONPATH": str(installed)},
      capture_output=True,
      text=True,
      check=False,
    )

  return start


def test_help_says_where_configs_are(run):
  done = run("train", "--help")
  assert done.returncode == 0, done.stderr
  assert "which the package does not install" in " ".join(done.stdout.split())


def test_a_config_that_is_not_there_is_not_promised(run):
  done = run("doctor", "--config=configs/quickstart.py")
  assert done.returncode == 2
  assert done.stderr.endswith(
    "no config file configs/quickstart.py; the project's own are in "
    "configs/ of its repository, which the package does not install\n"
  )


def test_a_copied_folder_of_configs_works(run, tmp_path):
  shutil.copytree(ROOT / "configs", tmp_path / "configs")
  done = run("train", "--config=configs/quickstart.py", "--help")
  assert done.returncode == 0, done.stderr
  assert "--config.student.depth" in done.stdout


def test_what_ships_is_found(run, tmp_path):
  done = run("evaluate", "--weights=shipped:fashion_teacher",
             "--split=test[:20]", "--out=out")  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "out" / "evaluation.json").exists()


def test_in_a_checkout_the_folder_is_named(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  folder = arguments.where_configs_are().rpartition(" ")[2]
  assert os.path.samefile(folder, ROOT / "configs")
