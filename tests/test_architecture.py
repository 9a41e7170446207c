"""Imports point one way, and the training process stays light."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "vitkd_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Which parts of the package a part may import; the entry points may all.
ALLOWED = {
  "models": {"models"},
  "distill": {"distill", "models.linear"},
  "data": {"data"},
  "weights": {"weights", "models", "training", "data.preprocess"},
  "training": {"training", "data", "weights", "models", "distill"},
}
# What `models` and `distill` may need from outside: users carry them away.
LIGHT = {"jax", "flax", "optax", "einops", "numpy"}
STANDARD = sys.stdlib_module_names


def imports(path):
  """Dotted names that a file imports, at the top or within a function."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path):
  parts = path.relative_to(PACKAGE).parts
  return parts[0] if len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_imports_point_one_way(path):
  if part(path) not in ALLOWED:
    return
  for name in imports(path):
    names = name.split(".")
    if names[0] == "vitkd_jax" and len(names) > 1:
      allowed = ALLOWED[part(path)]
      assert names[1] in allowed or ".".join(names[1:3]) in allowed, name


@pytest.mark.parametrize(
  "path",
  [p for p in FILES if part(p) in ("models", "distill")],
  ids=lambda p: p.stem,
)
def test_models_and_losses_need_little(path):
  outside = {name.split(".")[0] for name in imports(path)}
  assert outside - LIGHT - set(STANDARD) <= {"vitkd_jax"}


def test_only_one_module_imports_orbax():
  users = {
    p.name for p in FILES if any(n.startswith("orbax") for n in imports(p))
  }
  assert users == {"checkpoint.py"}


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
