"""Names that come with data: terminals, tables and pictures show them."""

import json
import unicodedata

import numpy as np
import pytest

from vitkd_jax import report
from vitkd_jax.data import printable
from vitkd_jax.evaluation import classification
from vitkd_jax.reporting import evaluated

ODD = ("[/b]", "[bold]x", r"$\foo$", "a$b", "\x1b[31mred", "\ud800", ":smile:")


@pytest.mark.parametrize(
  "text, shown",
  [
    ("Größe 猫 [/b] $x$ \U0001f600", "Größe 猫 [/b] $x$ \U0001f600"),
    ("two\nlines\tand\r", "two lines and "),
    ("\x1b[2Jgone\x07", "\ufffd[2Jgone\ufffd"),
    ("\x9b31m", "\ufffd31m"),
    ("\u202eleft", "\ufffdleft"),
    ("\ud800", "\ufffd"),
  ],
)
def test_what_a_terminal_obeys_is_replaced(text, shown):
  assert printable.printable(text) == shown


def found(names):
  count = len(names)
  confusion = np.eye(count, dtype=int) + np.eye(count, k=1, dtype=int)
  sums = {
    "confusion": confusion,
    "count": confusion.sum(),
    "top1": count,
    "top5": count,
    "nll": 1.0,
  }
  return classification.Classification(class_names=names).compute(sums)


def assert_plain(text):
  for letter in text:
    assert letter == "\n" or unicodedata.category(letter) not in ("Cc", "Cs")


def show(names, folder, capsys):
  """Everything that `evaluate` shows of class names, as a table and files."""
  results = found(names)
  evaluated.show(results, "".join(names))
  text = capsys.readouterr().out
  assert_plain(text)
  folder.mkdir()
  evaluated.write(results, {"weights": "w"}, str(folder))
  written = json.loads((folder / "evaluation.json").read_text())
  assert [each["name"] for each in written["classes"]] == list(names)
  assert (folder / "confusion.png").read_bytes()[:4] == b"\x89PNG"
  return text


def test_class_names_are_shown_as_they_are(tmp_path, capsys):
  text = show(ODD, tmp_path / "out", capsys)
  for name in ("[/b]", "[bold]x", r"$\foo$", "a$b", ":smile:", "\ufffd[31mred"):
    assert f" {name} " in text


def write_run(folder, name):
  folder.mkdir(parents=True)
  config = {
    "run": {"seed": 0, "batch_size": 10, name: name},
    "data": {"name": name, "train_split": name, "eval_split": name},
    "student": {"variant": name, "pool_type": name},
    "teacher": {"weights": name, "variant": name},
    "weights": {"task": 1.0},
  }
  record = {"config": config, "teacher_sha256": None, "command": name}
  (folder / "config.json").write_text(json.dumps(record))
  lines = [{"step": 5, "loss": 1.0, "eval_top1": 0.5, "raw_task": 1.0}]
  (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def report_on(names, folder):
  for i, name in enumerate(names):
    write_run(folder / f"run_{i}", name)
  out, markdown = report.report([str(folder)], str(folder / "report"))
  assert_plain(markdown)
  rows = [x for x in markdown.splitlines() if x.startswith("| run_")]
  assert len(rows) == len(names)
  return out


def test_a_report_takes_any_text_in_a_config(tmp_path):
  out = report_on((*ODD, "<script>alert(1)</script>"), tmp_path)
  with open(f"{out}/index.html", encoding="utf-8") as file:
    text = file.read()
  assert text.count("<script>") == 1  # the page's own
  assert "<script>alert" not in text
