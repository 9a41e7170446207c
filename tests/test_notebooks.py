"""The notebooks are committed without outputs, and run from top to bottom."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = """
import sys, nbclient, nbformat
path, folder = sys.argv[1:]
book = nbformat.read(path, 4)
where = {"metadata": {"path": folder}}
nbclient.NotebookClient(book, timeout=1200, resources=where).execute()
for cell in book.cells:  # what cannot be displayed does not stop a notebook
  for output in cell.get("outputs", ()):
    assert output.output_type != "error", output.traceback
"""
by_book = pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.name)


@by_book
def test_it_has_no_outputs(path):
  cells = json.loads(path.read_text())["cells"]
  code = [cell for cell in cells if cell["cell_type"] == "code"]
  assert code
  for cell in code:
    assert (cell["outputs"], cell["execution_count"]) == ([], None)


@by_book
@pytest.mark.slow
def test_it_runs(path, tmp_path):
  pytest.importorskip("nbclient", reason='nbclient: pip install ".[notebook]"')
  # Without the tests' eight devices and unoptimised programs.
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  env["PYTHONPATH"] = str(ROOT)
  done = subprocess.run(
    [sys.executable, "-c", RUN, path, tmp_path],
    cwd=tmp_path,
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
