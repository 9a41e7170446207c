"""Tests of vitkd_jax.report and what it is made of."""

import json
import math
import os
import pathlib
import re

import numpy as np
import pytest

from vitkd_jax import report
from vitkd_jax.commandline import command
from vitkd_jax.reporting import (
  beside,
  classes,
  figures,
  page,
  pictures,
  plotting,
  rendering,
  summary,
  tables,
)
from vitkd_jax.runs import history, reading

THEMES = (plotting.LIGHT, plotting.NARROW)
ACCURACY = {"baseline": (0.70, 0.72, 0.74), "both": (0.75, 0.76, 0.83)}
WEIGHTS = {
  "baseline": {"task": 1.0},
  "both": {"task": 1.0, "mimic": 2.0, "generation": 0.5, "nkd": 1.0},
}


def write_run(folder, method="both", seed=0, top1=0.8, changes=None, until=100):
  """A run of 100 steps of 10 images, 50 images a second up to 60, then 20."""
  folder.mkdir(parents=True)
  config = {
    "run": {"seed": seed, "batch_size": 10, "epochs": 1.0, **(changes or {})},
    "data": {"name": "mini", "train_split": "train", "eval_split": "test"},
    "student": {"variant": "test/4"},
    "teacher": {} if method == "baseline" else {"weights": "t", "variant": "T"},
    "weights": {**WEIGHTS[method], "kl": 0.0},
  }
  sha = None if method == "baseline" else "ab" * 32
  record = {"config": config, "teacher_sha256": sha}
  (folder / "config.json").write_text(json.dumps(record))
  lines = []
  for step in range(20, until + 1, 20):
    speed = 50 if step <= 60 else 20
    raw = {f"raw_{term}": 10 / step for term in WEIGHTS[method]}
    weighted = {
      f"weighted_{term}": weight * 10 / step
      for term, weight in WEIGHTS[method].items()
    }
    lines.append(
      {
        "step": step,
        "loss": sum(weighted.values()),
        "learning_rate": 1e-3,
        "grad_norm_student": 2.0,
        "grad_norm_head": 0.0 if method == "baseline" else 1.0,
        "images_per_second": speed,
        "eta_seconds": (100 - step) * 10 / speed,
        **raw,
        **weighted,
      }
    )
    lines.append({"step": step, "eval_top1": top1 - (100 - step) / 1000})
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text)
  return folder


@pytest.fixture
def runs(tmp_path):
  for method, scores in ACCURACY.items():
    for seed, top1 in enumerate(scores):
      write_run(tmp_path / "runs" / f"{method}_{seed}", method, seed, top1)
  return tmp_path / "runs"


@pytest.fixture
def undrawn(monkeypatch):
  """Pages hold nothing in the place of pictures, which other tests draw."""
  drawing = rendering.Drawing("<svg />", "<svg />", b"a picture")
  monkeypatch.setattr(rendering, "both", lambda draw, name: drawing)


def read_all(folder):
  return [reading.read(str(p), p.name) for p in sorted(folder.iterdir())]


def test_seeds_are_one_method(runs):
  groups = summary.group(read_all(runs))
  assert [g.name for g in groups] == ["baseline", "nkd + vitkd"]
  assert [len(g.runs) for g in groups] == [3, 3]
  values = groups[1].values(lambda run: run.accuracy.final)
  # (0.05^2 + ...) / 2 by hand: deviations -0.03, -0.02, 0.05 of mean 0.78.
  mean, deviation = summary.mean_std(values)
  assert mean == pytest.approx(0.78)
  assert deviation == pytest.approx(math.sqrt(0.0038 / 2))
  gain, error = summary.gain(groups[1], groups[0])
  assert gain == pytest.approx(0.06)
  assert error == pytest.approx(math.sqrt(0.0019 / 3 + 0.0004 / 3))


def test_speed_time_and_length(runs):
  run = read_all(runs)[0]
  assert run.step == run.total_steps == 100
  assert run.finished
  assert run.seconds == pytest.approx(60 * 10 / 50 + 40 * 10 / 20)
  assert run.images_per_second == pytest.approx(1000 / 32)


def test_a_run_still_going(tmp_path):
  write_run(tmp_path / "a", seed=0, top1=0.8)
  write_run(tmp_path / "b", seed=1, top1=0.9, until=40)
  (group,) = summary.group(read_all(tmp_path))
  going = group.runs[1]
  assert (going.step, going.total_steps, going.finished) == (40, 100, False)
  # Half a run would spoil the mean.
  assert group.values(lambda run: run.accuracy.final).tolist() == [0.8]
  assert "b (40 of 100 steps)" in tables.make([group])[0].markdown()


def test_the_page_and_its_files(runs):
  out, markdown = report.report([str(runs)])
  out = pathlib.Path(out)
  assert out == runs / "report"
  assert (out / "table.md").read_text() == markdown
  for cell in ("72.00 ± 2.00", "78.00 ± 4.36", "+6.00 (2.77)", "0.1 → 0.05"):
    assert f" {cell} " in markdown
  text = (out / "index.html").read_text()
  for fact in ("ab" * 6 + "…", "test/4", "6.00 points above the baseline"):
    assert fact in text
  assert "ab" * 7 not in text
  files = sorted(out.glob("*.png"))
  assert [p.stem for p in files] == [
    "accuracy", "final", "losses_1", "losses_2", "training",
  ]  # fmt: skip
  assert len(re.findall("<svg ", text)) == 2 * len(files)  # wide and narrow
  assert not re.findall(r"(?:src|srcset)=|@import", text)
  # Within the page alone, and to one of its elements.
  links = re.findall(r'href="([^"]*)"', text) + re.findall(
    r"url\((.*?)\)", text
  )
  ids = re.findall(r' id="([^"]*)"', text)
  assert {link.removeprefix("#") for link in links} == set(ids)
  assert len(set(ids)) == len(ids)


def test_the_report_does_not_read_itself(runs, undrawn):
  first = report.report([str(runs)])
  everything = sorted(str(p) for p in runs.iterdir())
  assert str(runs / "report") in everything
  assert report.report(everything) == first


def test_one_run(tmp_path):
  run = write_run(tmp_path / "only")
  out, markdown = report.report([str(run)])
  assert pathlib.Path(out) == run / "report"
  assert "gain" not in markdown
  assert "losses.png" in {p.name for p in pathlib.Path(out).iterdir()}


def test_looks_at_the_terms_are_drawn(tmp_path):
  run = write_run(tmp_path / "only")
  with open(run / "metrics.jsonl", "a") as file:
    for step in (10, 20):
      seen = {f"cka/teacher/block_{i}": i / 12 for i in range(12)}
      seen |= {f"rank/block_{i}": 3.0 + i for i in range(3)}
      seen |= {"grad_cosine/vitkd/mimic": -0.1 * step}
      file.write(json.dumps({"step": step, **seen}) + "\n")
  (group,) = summary.group([reading.read(str(run), "only")])
  figure = figures.looks(group, plotting.LIGHT)
  said = [
    [" ".join(text.get_text().split()) for text in axes.texts]
    for axes in figure.axes
  ]
  blocks = (0, 2, 4, 6, 7, 9, 11)  # seven of twelve, by number
  assert sorted(said[0]) == ["vitkd/mimic -2.00"]
  assert set(said[1]) == {f"block {i} {i / 12:.2f}" for i in blocks}
  assert set(said[2]) == {f"block {i} {3 + i}.00" for i in range(3)}
  assert [axes.get_visible() for axes in figure.axes] == [True] * 3 + [False]
  assert "looks" in [picture.name for picture in pictures.training([group])]


def test_what_makes_a_comparison_unfair_is_said(tmp_path):
  write_run(tmp_path / "a", "baseline")
  write_run(tmp_path / "b", "both", changes={"epochs": 2.0})
  notes = "\n".join(tables.make(summary.group(read_all(tmp_path)))[0].notes)
  assert "the methods also differ in run.epochs." in notes


def test_runs_of_one_seed_are_named(tmp_path):
  for name, seed in (("a", 0), ("b", 1), ("copy_of_a", 0)):
    write_run(tmp_path / name, seed=seed)
  notes = "\n".join(tables.make(summary.group(read_all(tmp_path)))[0].notes)
  assert (
    "Warning: a, copy_of_a are 2 runs of nkd + vitkd with the seed 0" in notes
  )
  assert notes.count("Warning: ") == 1


def test_equal_methods_are_told_apart_by_what_differs(tmp_path):
  write_run(tmp_path / "a", changes={"epochs": 1.0})
  write_run(tmp_path / "b", changes={"epochs": 2.0, "log_every": 7})
  write_run(tmp_path / "c", changes={"epochs": 2.0, "log_every": 9})
  groups = summary.group(read_all(tmp_path))
  assert [(g.name, len(g.runs)) for g in groups] == [
    ("nkd + vitkd, epochs=1.0", 1),
    ("nkd + vitkd, epochs=2.0", 2),
  ]


def edit(run, section, **keys):
  path = run / "config.json"
  record = json.loads(path.read_text())
  record["config"][section].update(keys)
  path.write_text(json.dumps(record))


def test_what_changes_no_result_makes_no_method(tmp_path):
  """The keys that a resumed run may change, and those that are not given."""
  write_run(tmp_path / "a")
  for i, key in enumerate(history.FREE[1:]):
    _, section, name = key.split(".")
    edit(write_run(tmp_path / f"b{i}", seed=i), section, **{name: 7})
  edit(write_run(tmp_path / "c", seed=99), "student", depth=None)
  (group,) = summary.group(read_all(tmp_path))
  assert len(group.runs) == len(history.FREE) + 1
  edit(write_run(tmp_path / "d"), "student", depth=3)
  assert len(summary.group(read_all(tmp_path))) == 2


def test_long_names_are_told_apart_by_their_ends(tmp_path):
  for end in "ab":
    run = write_run(tmp_path / end, "baseline")
    edit(run, "data", name="a_long_name_of_a_dataset_of_birds_" + end)
  groups = summary.group(read_all(tmp_path))
  assert [g.name for g in groups] == [
    "baseline, name=…rds_a'",
    "baseline, name=…rds_b'",
  ]
  names = ["baseline, " + "x" * 60 + end for end in "ab"]
  for theme in THEMES:
    one, other = (theme.wrapped(name, 2) for name in names)
    assert one != other
    assert max(map(len, one.splitlines())) <= theme.letters(2)


def test_a_phone_gets_charts_of_its_own(runs, undrawn):
  """Text of 10 points is at least 10 px high on a page 350 px wide."""
  groups = summary.group(read_all(runs))
  for draw in (figures.accuracy, figures.training):
    for theme in THEMES:
      figure = draw(groups, theme)
      inches = figure.get_size_inches()[0]
      assert inches == theme.width
      assert 10 / 72 / inches * (350 if theme.narrow else 960) > 10
  out, _ = report.report([str(runs)])
  text = (pathlib.Path(out) / "index.html").read_text()
  wide = text.count("<svg class=wide ")
  assert text.count("<svg class=narrow ") == wide >= 5


def test_what_a_student_differs_in_from_its_variant_is_said(tmp_path, undrawn):
  run = write_run(tmp_path / "a")
  edit(run, "student", patch_size=[8, 8], dtype_mm="bfloat16", depth=None)
  text = (pathlib.Path(report.report([str(run)])[0]) / "index.html").read_text()
  assert "<dd>test/4 with patch_size=[8, 8]</dd>" in text


def test_the_moving_average_counts_where_there_is_one(tmp_path, undrawn):
  run = write_run(tmp_path / "a")
  with open(run / "metrics.jsonl", "a") as file:
    file.write('{"step": 100, "eval_ema_top1": 0.85}\n')
  markdown = report.report([str(run)])[1]
  assert "final without EMA" in markdown
  assert "| 85.00 | 85.00 |" in re.sub(" +", " ", markdown)


@pytest.mark.parametrize(
  "tail",
  [
    b'{"step": 120, "lo',
    b'{"step": 120',
    b"\n\n",
    b"[1]\n",
    b'{"loss": 1}\n',
    b"7\n",
    b'\xff\xfe\x00{"step": 120',
  ],
)
def test_a_half_written_line_is_passed_over(tmp_path, tail):
  run = write_run(tmp_path / "a")
  whole = reading.read(str(run), "a")
  with open(run / "metrics.jsonl", "ab") as file:
    file.write(tail)
  again = reading.read(str(run), "a")
  assert again.step == whole.step
  assert again.series.keys() == whole.series.keys()


@pytest.mark.parametrize("peak", [1e-3, 1.43e-3, 2e-2])
def test_no_label_of_an_axis_is_cut_off(tmp_path, peak):
  run = write_run(tmp_path / "run", "both")
  text = (run / "metrics.jsonl").read_text()
  rate = json.dumps({"learning_rate": peak})[1:-1]
  text = text.replace('"learning_rate": 0.001', rate)
  (run / "metrics.jsonl").write_text(text)
  groups = summary.group(read_all(tmp_path))
  for draw in (figures.accuracy, figures.training):
    for theme in THEMES:
      figure = draw(groups, theme)
      figure.draw_without_rendering()
      for axes in figure.axes:
        for label in axes.get_yticklabels():
          assert label.get_window_extent().x0 >= 0, label.get_text()


def test_odd_runs_are_drawn(tmp_path, recwarn):
  """NaN, one evaluation, none, no positive value, names that need escaping."""
  bad = write_run(tmp_path / "nan", "baseline", until=60)
  with open(bad / "metrics.jsonl", "a") as file:
    file.write('{"step": 80, "loss": NaN, "raw_task": NaN, "eval_top1": NaN}\n')
  one = tmp_path / ("<b>&" + "long_name_" * 12)
  write_run(one, "both", 1, until=20)
  none = write_run(tmp_path / "none", "both", 2, changes={"epochs": 3.0})
  text = (none / "metrics.jsonl").read_text().replace("eval_top1", "other")
  (none / "metrics.jsonl").write_text(text)
  zero = write_run(tmp_path / "zero", "both", 3, changes={"epochs": 4.0})
  (zero / "metrics.jsonl").write_text(
    '{"step": 5, "loss": 0, "raw_task": 0, "weighted_task": 0, "eval_top1": 1}'
  )
  out, markdown = report.report([str(tmp_path)])
  assert not recwarn.list
  assert "nan" in markdown
  text = (pathlib.Path(out) / "index.html").read_text()
  assert "<b>" not in text
  assert "&lt;b&gt;&amp;long_name" in text


def test_twenty_runs_of_twenty_methods(tmp_path):
  for i in range(20):
    write_run(tmp_path / f"r{i}", seed=0, top1=0.8 + i / 1e4,
              changes={"epochs": float(i)})  # fmt: skip
  groups = summary.group(read_all(tmp_path))
  assert len({group.name for group in groups}) == 20
  assert page.headline(groups)[0].startswith("nkd + vitkd, epochs=19.0: 80.19")
  picture = figures.accuracy(groups, plotting.LIGHT)
  assert len(picture.axes[0].lines) == 20


def test_labels_do_not_overlap():
  random = np.random.default_rng(0)
  wanted = np.sort(random.uniform(0, 1, 12)).tolist()
  sizes = random.uniform(0.02, 0.1, 12).tolist()
  places = plotting._spread(wanted, sizes)
  below = np.array(places) + np.array(sizes) / 2
  above = np.array(places) - np.array(sizes) / 2
  assert np.all(above[1:] >= below[:-1] - 1e-9)
  assert plotting._spread([0.1, 0.5], [0.1, 0.1]) == pytest.approx([0.1, 0.5])


def test_labels_stay_on_the_picture():
  places = plotting._spread([0.95, 0.96, 0.97], [0.1] * 3)
  assert places == pytest.approx([0.8, 0.9, 1.0])
  # Below the axes are the ticks' numbers.
  assert plotting._spread([0.01, 0.02], [0.1] * 2) == pytest.approx(
    [0.05, 0.15]
  )


def test_run_9_comes_before_run_10(tmp_path):
  for i in (10, 9):
    write_run(tmp_path / f"run_{i}", seed=i)
  found = report._workdirs([str(tmp_path)])
  assert [pathlib.Path(p).name for p in found] == ["run_9", "run_10"]


def test_refusals(tmp_path, capsys, undrawn):
  empty = tmp_path / "empty"
  empty.mkdir()
  fresh = write_run(tmp_path / "fresh")
  (fresh / "metrics.jsonl").unlink()
  damaged = write_run(tmp_path / "damaged")
  (damaged / "config.json").write_text("{")
  for path, sentence in (
    (tmp_path / "nowhere", "there is no folder"),
    (empty, "is not the workdir of a run"),
    (fresh, "has no metrics yet"),
    (damaged, "config.json is damaged"),
    (damaged / "config.json", "which is not a folder"),
  ):
    with pytest.raises(command.RefusedError, match=sentence) as error:
      report.report([str(path)])
    assert "\n" not in str(error.value)
  good = write_run(tmp_path / "good")
  report.report([str(good), str(fresh), str(damaged)], str(tmp_path / "out"))
  assert capsys.readouterr().err.count("left out: ") == 2


def test_a_run_counts_once_however_its_path_is_written(runs, tmp_path):
  one = next(p.parent for p in pathlib.Path(runs).glob("**/config.json"))
  (tmp_path / "link").symlink_to(one)
  paths = [str(one), f"{one}/", f"{one}/../{one.name}", str(tmp_path / "link")]
  assert len(report._workdirs(paths)) == 1


def test_a_path_of_bytes_that_are_no_utf8(tmp_path):
  name = os.fsdecode(b"run\xe9")
  try:
    path = write_run(tmp_path / name)
  except OSError:
    pytest.skip("this file system takes UTF-8 names only")
  out, _ = report.report([str(path)])
  assert "run\ufffd" in (pathlib.Path(out) / "table.md").read_text()


def write_evaluation(run, accuracies, name="scores"):
  """Of two classes; every second wrong answer is the other one."""
  (run / name).mkdir()
  classes = [
    {"name": each, "count": 10, "accuracy": x}
    for each, x in zip(("bag", "boot"), accuracies, strict=True)
  ]
  found = {
    "data": "mini",
    "split": "test",
    "classes": classes,
    "confusion": [[8, 2], [1, 9]],
  }
  (run / name / "evaluation.json").write_text(json.dumps(found))


def test_classes_stand_side_by_side(tmp_path, undrawn):
  for name, scores in {"a": (0.8, 0.9), "b": (0.7, None)}.items():
    write_evaluation(write_run(tmp_path / name), scores)
  runs = read_all(tmp_path)
  lefts = [left for run in runs for left in beside.evaluations(run)]
  (table,) = classes.make_tables(lefts)
  assert table.head == ("class", "images", "a", "b", "range")
  assert table.rows == [
    ("bag", "10", "80.0%", "70.0%", "10.0"),
    ("boot", "10", "90.0%", "-", "0.0"),
  ]
  (alone,) = classes.make_tables(lefts[:1])
  assert [row[2:] for row in alone.rows] == [
    ("80.0%", "boot (2)"),
    ("90.0%", "bag (1)"),
  ]
  out, _ = report.report([str(tmp_path)])
  page_ = (pathlib.Path(out) / "index.html").read_text()
  assert "Accuracy by class on mini, test" in page_


def test_an_inspection_is_read_as_it_was_written(tmp_path):
  run = write_run(tmp_path / "a")
  (run / "maps").mkdir()
  image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
  gallery = {"image": image, "attention": {"student": np.ones((1, 2, 2))}}
  found = {"images": 4, "models": {}, "gallery": gallery}
  for name, text in beside.written(found).items():
    content = text.encode() if isinstance(text, str) else text
    (run / "maps" / name).write_bytes(content)
  (left,) = beside.inspections(reading.read(str(run), "a"))
  assert left.found["images"] == 4
  np.testing.assert_array_equal(left.found["gallery"]["image"], image)
  assert left.found["gallery"]["attention"]["student"].sum() == 4
  for name in ("gallery.npz", "inspect.json"):
    (run / "maps" / name).write_bytes(b"{")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
      list(beside.inspections(reading.read(str(run), "a")))


def test_settings_stand_side_by_side(tmp_path):
  write_run(tmp_path / "a", "baseline")
  write_run(tmp_path / "b", changes={"epochs": 2.0})
  table = tables.settings(summary.group(read_all(tmp_path)))
  assert table.head == ("config", "baseline", "nkd + vitkd")
  rows = {key: values for key, *values in table.rows}
  assert rows["run.epochs"] == ["1.0", "2.0"]
  assert rows["methods.vitkd.weights.mimic"] == ["-", "2.0"]
  assert rows["teachers.teacher.sha256"] == ["-", "ab" * 6]


def test_a_pictures_values_are_those_of_its_curves():
  steps = np.array([10, 20, 1000])
  curve = plotting.Curve("a", plotting.LIGHT.hue(1), "-", steps, np.array(
    [[1.0, np.nan, 100.0], [3.0, 2.0, 300.0]]
  ))  # fmt: skip

  def draw(theme):
    figure, (axes,) = plotting.panels(theme, 1, 2, ["a"])
    plotting.draw(axes, [curve])
    axes.set(ylim=(0, 400), xlim=(0, 1000), xlabel="step")
    axes.set_title("loss")
    return figure

  drawing = rendering.both(draw, "name")
  (((found),),) = drawing.values
  assert (found["name"], found["color"]) == ("a", "var(--hue-1)")
  # Means of both seeds; at step 20 one has none.
  assert (found["x"], found["y"]) == (["10", "1,000"], ["2", "200"])
  np.testing.assert_allclose(found["at"], [[0.01, 0.005], [1, 0.5]], atol=1e-4)
  assert drawing.text == "loss, at step 1,000: a 200."
  for svg in (drawing.wide, drawing.narrow):
    _, _, width, height = map(
      float, re.search(r'viewBox="(.*?)"', svg)[1].split()
    )
    ((left, top, across, down),) = json.loads(
      re.search(r'data-boxes="(.*?)"', svg)[1]
    )
    assert 0 < left < left + across < width
    assert 0 < top < top + down < height
