"""Class names of any letters, through evaluate's outputs and a report."""

import random

import pytest
import test_printable

pytestmark = pytest.mark.slow

# What some reader or writer on the way takes for its own.
_PIECES = (
  "[/b]", "[bold", "[red]x[/red]", "[link=x]", "]", "\\", "\\[", "$", "$$",
  "$\\foo$", "\\frac{", "_{", "^", "%s", "{0}", "{x", "|", "`", "<b>", "&amp;",
  '"', "'", "\x1b[31m", "\x1b]0;x\x07", "\x00", "\x07", "\r", "\n", "\t",
  "\x7f", "\x85", "\x9b2J", "\u2028", "\u202e", "\u2066", "\ud800", "\udfff",
  "\ufeff", "\u200d", "\U0001f600", "猫", "שלום", "é", "e\u0301", ":smile:",
  "a", "Z", "0", " ", ",", "=", "/", "..", "x" * 200,
)  # fmt: skip


def draw(rng, count):
  """Names of one to six pieces, all different, as classes are."""
  names = set()
  while len(names) < count:
    pieces = rng.choices(_PIECES, k=rng.randint(1, 6))
    name = "".join(map(rng.choice, (pieces,) * len(pieces)))
    names.add(name)
  return sorted(names, key=repr)


@pytest.mark.parametrize("seed", range(30))
def test_evaluate(seed, tmp_path, capsys):
  rng = random.Random(seed)
  names = draw(rng, rng.choice((3, 12, 25, 40)))
  test_printable.show(names, tmp_path / "out", capsys)


@pytest.mark.parametrize("seed", range(6))
def test_report(seed, tmp_path):
  test_printable.report_on(draw(random.Random(seed), 5), tmp_path)
