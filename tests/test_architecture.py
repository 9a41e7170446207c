"""Imports point one way, and the training process stays light."""

import subprocess
import sys

import pytest

from docs.import_graph import LAYERS, PACKAGE, imports, ours, part

FILES = sorted(PACKAGE.rglob("*.py"))

# Narrower than their place among the layers: all of `vitkd_jax` that they may
# import.
ONLY = {
  "models": {"models"},
  "distill": {"distill", "models.linear", "models.protocol", "data.augment"},
  "data": {"data", "remote", "check"},
  "weights": {"weights", "models", "data.preprocess", "remote", "check"},
}
# What `models` and `distill` may need from outside: users carry them away.
LIGHT = {"jax", "flax", "optax", "einops", "numpy"}
STANDARD = sys.stdlib_module_names


def is_command(name):
  return (PACKAGE / f"{name}.py").exists() and name not in LAYERS


@pytest.mark.parametrize(
  "path", FILES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_down(path):
  own = part(path)
  for name in ours(path):
    if name[0] == "__version__" or name[0] == own:
      continue
    assert not is_command(name[0]), f"{path} imports the command {name[0]}"
    assert name[0] in LAYERS, f"{path} imports {name[0]}, which has no layer"
    if own in LAYERS:
      assert LAYERS.index(own) < LAYERS.index(name[0]), (
        f"{path} is in {own}, and imports {'.'.join(name)} above it"
      )
    if own in ONLY:
      assert {name[0], ".".join(name[:2])} & ONLY[own], (
        f"{path} imports {'.'.join(name)}; {own} may import {ONLY[own]}"
      )


def test_configs_know_no_lab_and_no_report():
  for path in (PACKAGE / "configs").rglob("*.py"):
    for name in ours(path):
      assert name[0] not in LAYERS[:3], f"{path} imports {name[0]}"


def test_every_folder_has_its_layer():
  folders = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
  # Configs stand above them all, as the commands do.
  assert folders - {"configs"} <= set(LAYERS)


@pytest.mark.parametrize(
  "path",
  [p for p in FILES if part(p) in ("models", "distill")],
  ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_models_and_losses_need_little(path):
  outside = {name.split(".")[0] for name in imports(path)}
  assert outside - LIGHT - set(STANDARD) <= {"vitkd_jax"}


def test_only_one_module_imports_orbax():
  users = {
    p.name for p in FILES if any(n.startswith("orbax") for n in imports(p))
  }
  assert users == {"checkpoint.py"}


def test_reporting_imports_no_jax():
  code = (
    "import sys, importlib, pkgutil, vitkd_jax.reporting as r\n"
    "for m in pkgutil.iter_modules(r.__path__):\n"
    "  importlib.import_module(f'vitkd_jax.reporting.{m.name}')\n"
    "assert 'vitkd_jax.reporting.page' in sys.modules\n"
    "bad = {'jax', 'flax', 'orbax', 'grain'} & set(sys.modules)\n"
    "assert not bad, bad\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_training_imports_neither_tensorflow_nor_torch():
  code = (
    "import sys, vitkd_jax.train, vitkd_jax.doctor\n"
    "bad = {'tensorflow', 'torch', 'matplotlib'} & set(sys.modules)\n"
    "assert not bad, bad\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_outgrows_its_purpose():
  long = {
    p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 350
  }
  assert not long
