"""Reports of many methods and of long logs."""

import itertools
import json
import os
import pathlib
import re

import numpy as np
import pytest
from test_report import read_all, write_run

from vitkd_jax import report
from vitkd_jax.reporting import (
  emphasis,
  figures,
  multiples,
  plotting,
  rendering,
  summary,
  thinning,
)
from vitkd_jax.runs import reading


def test_a_thinned_curve_keeps_its_peaks_and_ends():
  random = np.random.default_rng(0)
  steps = np.cumsum(random.integers(1, 9, 5000))
  values = random.normal(size=5000)
  at = thinning.kept(steps, values, 50)
  assert np.all(np.diff(at) > 0)
  assert len(at) <= 2 * 50 + 2
  assert (at[0], at[-1]) == (0, 4999)
  interval = (steps - steps[0]) * 50 // (steps[-1] - steps[0])
  for i in range(50):
    whole, kept = values[interval == i], values[at][interval[at] == i]
    assert (kept.min(), kept.max()) == (whole.min(), whole.max())


def test_a_short_curve_is_drawn_whole():
  steps = np.arange(100)
  assert thinning.kept(steps, np.ones(100), 50).tolist() == steps.tolist()


def test_a_thinned_curve_keeps_its_gap():
  values = np.ones(1000)
  values[400:600] = np.nan
  values[700] = np.inf
  found = values[thinning.kept(np.arange(1000), values, 20)]
  assert np.isnan(found).sum() >= 4
  finite = found[np.isfinite(found)]
  assert finite.size
  assert np.all(finite == 1)
  assert thinning.kept(np.arange(100), np.full(100, np.nan), 5).size


def test_numbers_beside_a_long_curve_are_those_of_all_its_points():
  values = np.sin(np.arange(20_000.0))[None]
  curve = plotting.Curve("a", "k", "-", np.arange(20_000), values)
  with rendering.style(plotting.LIGHT):
    _figure, (axes,) = plotting.panels(plotting.LIGHT, 1, 2, ["a"])
    plotting.draw(axes, [curve])
  (line,) = axes.lines
  assert len(line.get_xdata()) < 1000
  assert curve.last == values[0, -1] == line.get_ydata()[-1]
  assert line.get_ydata().max() == values.max()


@pytest.fixture
def many(tmp_path):
  for i in range(30):
    write_run(tmp_path / f"r{i}", top1=0.8 + (i * 7 % 30) / 1e3,
              changes={"epochs": float(i)})  # fmt: skip
  write_run(tmp_path / "base", "baseline", top1=0.5)
  return tmp_path


def test_of_many_methods_the_best_and_the_baseline_stand_out(many):
  groups = summary.group(read_all(many))
  best = [groups[i] for i in emphasis.best(groups)]
  scores = [group.values(summary.final_top1)[0] for group in best]
  assert scores[:-1] == pytest.approx([0.829 - i / 1e3 for i in range(8)])
  assert best[-1].name == "baseline"
  assert emphasis.best(groups[:20]) == list(range(20))
  figure = figures.accuracy(groups, plotting.LIGHT)
  assert len(figure.axes[0].lines) == 31
  assert len(figure.axes[0].texts) == 9
  assert "the best 8 of 31 methods" in emphasis.best_of(groups)
  rows = figures.finals(groups, plotting.LIGHT).axes[0].get_yticklabels()
  assert len(rows) == 31


def test_no_names_overlap_in_the_figure_of_finals(many):
  groups = summary.group(read_all(many))
  for theme in (plotting.LIGHT, plotting.NARROW):
    with rendering.style(theme):
      figure = figures.finals(groups, theme)
      figure.draw_without_rendering()
    boxes = [
      label.get_window_extent() for label in figure.axes[0].get_yticklabels()
    ]
    for above, below in itertools.pairwise(boxes):
      assert above.y0 >= below.y1 - 1  # of a pixel


def test_the_losses_of_many_methods_are_tiles_of_one_scale(many):
  out, markdown = report.report([str(many)])
  out = pathlib.Path(out)
  names = ["accuracy.png", "final.png", "training.png"]
  assert sorted(p.name for p in out.glob("*.png")) == names
  text = (out / "index.html").read_text()
  tiles = re.search("<div class=tiles>.*?</div>", text, re.DOTALL)[0]
  assert tiles.count("<svg ") == 31
  ticks = {
    tuple(re.findall(r"<text [^>]*>([^<]*)</text>", tile))
    for tile in tiles.split("<figure>")[1:]
  }
  assert len(ticks) == 1
  # The table has them all.
  assert len([x for x in markdown.splitlines() if "nkd + vitkd, epo" in x]) > 60
  # The configs of later runs are told by what differs.
  assert "config.run.epochs=29.0" in text
  assert text.count("&quot;train_split&quot;") == 1


def test_a_picture_takes_its_colours_from_the_page(many):
  groups = summary.group(read_all(many))[:3]
  drawing = rendering.both(lambda theme: figures.accuracy(groups, theme), "a")
  for svg in (drawing.wide, drawing.narrow):
    assert "var(--hue-0)" in svg
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)
  tiles = multiples.losses(groups, "losses")
  assert not re.findall(r"#[0-9a-f]{6}\b", tiles.tiles[0][1])


def test_a_name_in_a_picture_stays_as_it_is():
  name = 'fill: #0072b2 12.3456 <g id="a"></g> &'
  steps = np.arange(3)
  curve = plotting.Curve(name, "#0072b2", "-", steps, np.ones((1, 3)))

  def draw(theme):
    figure, (axes,) = plotting.panels(theme, 1, 2, [name])
    plotting.draw(axes, [curve])
    axes.set_title(name)
    return figure

  svg = rendering.both(draw, "name").wide
  assert '>fill: #0072b2 12.3456 &lt;g id="a"&gt;&lt;/g&gt; &amp;</text>' in svg


def test_common_steps_of_seeds(tmp_path):
  """Logged at other steps, seeds are compared where both were."""
  for name, seed, steps in (("a", 0, (1, 2, 4, 6)), ("b", 1, (2, 3, 6, 9))):
    run = write_run(tmp_path / name, seed=seed)
    lines = [{"step": s, "loss": 10 * s + seed} for s in steps]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  (group,) = summary.group(read_all(tmp_path))
  steps, values = group.curve("loss")
  assert steps.tolist() == [2, 6]
  assert values.tolist() == [[20, 60], [21, 61]]
  apart = reading.read(str(tmp_path / "b"), "b")
  apart.series["loss"] = reading.Series(np.array([3, 5]), np.array([1.0, 2.0]))
  alone = summary.Group("g", (*group.runs[:1], apart)).curve("loss")
  assert alone[0].tolist() == [1, 2, 4, 6]


def test_long_values_are_cut_where_they_differ():
  random = np.random.default_rng(0)
  texts = ["".join(random.choice(list("ab"), 30)) for _ in range(200)]
  texts += ["short", texts[0], None]
  for value, cut in zip(texts, summary.told_apart(texts), strict=True):
    if value is None or len(value) <= 24:
      assert cut == (value or "none")
      continue
    same = max(
      len(os.path.commonprefix([value, other or "none"]))  # noqa: RUF071
      for other in texts
      if other != value
    )
    start = same - 4 if same > 12 else 0
    assert cut == ("…" if start else "") + value[start : start + 24]
