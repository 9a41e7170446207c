"""Without a checkout: an installed package, called from another folder."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import vitkd_jax

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


def test_help_names_the_configs(run):
  done = run("train", "--help")
  assert done.returncode == 0, done.stderr
  said = " ".join(done.stdout.split())
  assert "A config is a path or the name of one of the package's own: " in said
  assert " quickstart, " in said


@pytest.mark.parametrize(
  "config", ["quickstart", "configs/quickstart.py", "labs/methods"]
)
def test_its_configs_are_called_by_name(run, config):
  done = run("train", f"--config={config}", "--help")
  assert done.returncode == 0, done.stderr
  assert "config file" in done.stdout
  named = run("train", "--config", f"{config}:sed=1", "--workdir=w")
  assert named.returncode == 2
  assert "unknown config argument 'sed'; the nearest is 's" in named.stderr


def test_a_config_that_is_not_there_is_not_promised(run):
  done = run("doctor", "--config=configs/quikstart.py")
  assert done.returncode == 2
  assert done.stderr.endswith(
    "no config file configs/quikstart.py, and none of the package's own has "
    "that name; the nearest is 'quickstart'\n"
  )


def test_ones_own_config_builds_on_the_packages(run, tmp_path):
  for number, name in enumerate(("configs", "vitkd_jax.configs")):
    (tmp_path / f"mine{number}.py").write_text(
      f"from {name} import common, quickstart\n"
      "def get_config(arg=None):\n"
      "  return quickstart.get_config(arg)\n"
    )
    done = run("train", f"--config=mine{number}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--config.student.depth" in done.stdout


def test_a_copied_folder_of_configs_works(run, tmp_path):
  shutil.copytree(ROOT / "configs", tmp_path / "configs")
  (tmp_path / "configs" / "common.py").unlink()  # which none of them needs
  done = run("train", "--config=configs/quickstart.py", "--help")
  assert done.returncode == 0, done.stderr
  assert "--config.student.depth" in done.stdout


def test_what_ships_is_found(run, tmp_path):
  done = run("evaluate", "--weights=shipped:fashion_teacher",
             "--split=test[:20]", "--out=out")  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.slow
def test_a_wheel_of_the_sdist_trains_in_a_clean_environment(tmp_path):
  """No checkout, no index; what it depends on comes from this environment."""
  setuptools = pytest.importorskip("setuptools", minversion="77")
  source = tmp_path / "source"
  source.mkdir()
  for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
    shutil.copy(ROOT / name, source)
  shutil.copytree(
    ROOT / "vitkd_jax",
    source / "vitkd_jax",
    ignore=shutil.ignore_patterns("__pycache__"),
  )

  def done(*words, cwd=tmp_path, **more):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    found = subprocess.run(
      list(map(str, words)),
      cwd=cwd,
      env=env | more,
      capture_output=True,
      text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout

  pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
  build = "from setuptools import build_meta as b; b.build_sdist('..')"
  libraries = str(pathlib.Path(setuptools.__file__).parents[1])
  done(sys.executable, "-c", build, cwd=source, PYTHONPATH=libraries)
  (sdist,) = tmp_path.glob("*.tar.gz")
  done(*pip, "wheel", "--no-deps", "--no-build-isolation", sdist)
  (wheel,) = tmp_path.glob("*.whl")

  clean = tmp_path / "clean"
  done(sys.executable, "-m", "venv", "--without-pip", clean)
  (site,) = clean.glob("lib/python*/site-packages")
  done(
    *pip, "--python", clean / "bin" / "python", "install", "--no-deps",
    "--no-index", wheel,
  )  # fmt: skip
  # Of that folder's own .pth files, such as an editable checkout's, none is
  # read.
  (site / "libraries.pth").write_text(f"{libraries}\n")
  script = clean / "bin" / "vitkd"
  where = done(
    clean / "bin" / "python", "-c", "import vitkd_jax as v; print(v.__file__)"
  )
  assert where.startswith(str(clean))
  assert str(ROOT) not in where
  said = done(script, "--version")
  assert said.startswith(f"vitkd_jax {vitkd_jax.__version__}, jax ")
  done(
    script, "train", "--config", "quickstart:method=both,epochs=1",
    "--workdir", "run", "--config.data.train_split=train[:256]",
    "--config.data.eval_split=test[:64]", "--config.schedule.warmup_epochs=0.5",
  )  # fmt: skip
  assert (tmp_path / "run" / "student.safetensors").exists()
  done(script, "evaluate", "--weights", "run", "--split", "test[:64]")
  exported = done(
    script, "convert", "--weights", "run", "--output", "timm", "--to", "timm"
  )
  assert "wrote" in exported
