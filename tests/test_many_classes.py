"""Beyond 2,000 classes: counts and confusions without a C x C matrix."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_evaluate import Source, agree, info, model

from vitkd_jax.evaluation import classification, running, scoring
from vitkd_jax.reporting import confusions, evaluated, plotting, rendering

CLASSES = 7
NAMES = tuple(f"class {i}" for i in range(CLASSES))


def scored(names, room, batches):
  """The results of batches of logits, as a pass over a split adds them up."""
  evaluator = classification.Classification(class_names=names, room=room)
  step = jax.jit(
    running.make_step(
      {"student": lambda params, image: image}, {"student": evaluator}
    )
  )
  sums = running.zero_sums({"student": evaluator})
  for batch in batches:
    sums = step(sums, {"student": None}, batch)
  return evaluator.compute(jax.device_get(sums["student"]))


def batches(seed=0, size=16, number=9):
  random = np.random.default_rng(seed)
  for _ in range(number):
    label = random.integers(0, CLASSES - 1, size)  # the last has no image
    logits = random.normal(size=(size, CLASSES)) + np.eye(CLASSES)[label]
    yield {
      "image": np.float32(logits),
      "label": np.int32(label),
      "weight": np.float32(random.random(size) < 0.8),
    }


@pytest.fixture
def few(monkeypatch):
  """Every class of these tests is one too many for a matrix."""
  monkeypatch.setattr(classification, "DENSE", 3)


def test_sparse_results_equal_the_matrix_s(few, monkeypatch):
  sparse = scored(NAMES, 16 * 9, batches())
  monkeypatch.setattr(classification, "DENSE", 2000)
  dense = scored(NAMES, 0, batches())
  matrix = np.array(dense.pop("confusion"))
  wrong = matrix * (1 - np.eye(CLASSES, dtype=int))
  found = {tuple(row[:2]): row[2] for row in sparse["confusions"]}
  assert found == {
    (int(i), int(j)): int(wrong[i, j]) for i, j in np.argwhere(wrong)
  }
  counts = [row[2] for row in sparse.pop("confusions")]
  assert counts == sorted(counts, reverse=True)
  assert sparse.pop("distinct_confusions") == len(counts)
  for i, each in enumerate(sparse["classes"]):
    most = each.pop("confused_with")
    if not wrong[i].any():
      assert most is None
    else:  # of equally frequent ones the first, as in the matrix
      assert most == [wrong[i].argmax(), wrong[i].max()]
  assert sparse == dense
  assert sparse["classes"][-1]["accuracy"] is None


def test_only_the_most_frequent_are_listed(few, monkeypatch):
  whole = scored(NAMES, 16 * 9, batches())
  monkeypatch.setattr(classification, "MOST", 4)
  found = scored(NAMES, 16 * 9, batches())
  assert found["confusions"] == whole["confusions"][:4]
  assert found["distinct_confusions"] == len(whole["confusions"]) > 4
  assert found["classes"] == whole["classes"]


def test_no_array_has_a_row_and_a_column_a_class():
  names = tuple(map(str, range(100_000)))
  evaluator = classification.Classification(class_names=names, room=512)
  sums = jax.eval_shape(evaluator.init)
  assert sum(x.size for x in jax.tree.leaves(sums)) < 2000
  batch = {
    "label": jax.ShapeDtypeStruct((256,), jnp.int32),
    "weight": jax.ShapeDtypeStruct((256,), jnp.float32),
  }
  logits = {"student": jax.ShapeDtypeStruct((256, 100_000), jnp.float32)}
  memory = (
    jax.jit(evaluator.update)
    .lower(sums, logits, batch)
    .compile()
    .memory_analysis()
  )
  used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
  assert used + memory.output_size_in_bytes < 1e9


def test_results_without_room_are_refused(few):
  with pytest.raises(ValueError, match="room >= 1, got 0"):
    classification.Classification(class_names=NAMES).init()


def test_an_evaluation_of_many_classes(few, tmp_path, capsys, monkeypatch):
  """Any batch size; what is printed and written is that of the matrix."""
  found = scoring.evaluate(model(0), Source(), info(), batch_size=16)
  agree(found, scoring.evaluate(model(0), Source(), info(), batch_size=37))
  assert list(found)[-2:] == ["classes", "confusions"]
  evaluated.show(found, "title")
  printed = capsys.readouterr().out
  asked = {"weights": "w", "preprocess": {"size": [1, 2]}}
  evaluated.write(found, asked, tmp_path)
  read = json.loads((tmp_path / "evaluation.json").read_text())
  assert read == {**asked, **found}
  assert (tmp_path / "confusion.png").read_bytes()[:4] == b"\x89PNG"
  monkeypatch.setattr(classification, "DENSE", 2000)
  dense = scoring.evaluate(model(0), Source(), info(), batch_size=16)
  agree({name: found[name] for name in ("top1", "top5", "loss")}, dense)
  evaluated.show(dense, "title")
  assert capsys.readouterr().out == printed
  evaluated.write(dense, {}, tmp_path)
  text = pathlib.Path(tmp_path / "evaluation.json").read_text()
  assert json.loads(text) == dense
  assert len(text.splitlines()) < 45  # a line a row, not a number


def test_the_picture_of_many_classes_holds_its_text():
  names = [f"a long name of a kind of bird {i}" for i in range(40)]
  rows = [[i, i + 1, 2000 - i] for i in range(39)]
  for shown in (rows, rows[:1], []):
    with rendering.style(plotting.LIGHT):
      figure = confusions.most_frequent(shown, names, plotting.LIGHT)
      figure.draw_without_rendering()
    (axes,) = figure.axes
    texts = [axes.title, axes._left_title, *axes.texts, *axes.get_yticklabels()]
    assert len(axes.texts) == min(len(shown), 30)
    for text in texts:
      box = text.get_window_extent()
      assert box.x0 >= 0
      assert box.x1 <= figure.bbox.width
