"""The report as one self-contained HTML page."""

from collections.abc import Callable, Sequence
import dataclasses
import html
from importlib import resources
import json
import string

from vitkd_jax.models import variants
from vitkd_jax.reporting import (
  multiples,
  plotting,
  rendering,
  summary,
  tables,
)
from vitkd_jax.runs import history, reading

# Up to so many runs have a whole config each.
_CONFIGS = 12


@dataclasses.dataclass(frozen=True)
class Part:
  """The beginning of a part of a long page, which its contents name.

  Attributes:
    title: heading.
    lead: a sentence below it; "" for none.
  """

  title: str
  lead: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
  """A figure with its caption.

  Attributes:
    name: file name without suffix.
    title: what it shows.
    drawing: the figure.
  """

  name: str
  title: str
  drawing: rendering.Drawing


Block = Part | Picture | multiples.Tiles | tables.Table


def render(
  groups: Sequence[summary.Group],
  blocks: Sequence[Block],
  command: str,
  said: tuple[str, str] | None = None,
) -> str:
  """The page as HTML.

  Args:
    groups: the runs by method.
    blocks: tables and pictures in the order of the page.
    command: the command line that made the report.
    said: title and lead; None for those of `headline`.
  """
  runs = [run for group in groups for run in group.runs]
  title, lead = said or headline(groups)
  parts = [block for block in blocks if isinstance(block, Part)]
  return _PAGE.substitute(
    title=html.escape(title),
    lead=html.escape(lead),
    facts=_facts(runs),
    contents=_contents(parts),
    blocks="\n".join(_block(block, parts) for block in blocks),
    light=_variables(plotting.LIGHT),
    dark=_variables(plotting.DARK),
    style=_file("page.css"),
    script=_file("page.js"),
    runs=_runs(runs),
    command=html.escape(command),
  )


def _file(name: str) -> str:
  return (resources.files(__package__) / name).read_text()


def _contents(parts: Sequence[Part]) -> str:
  links = "".join(
    f'<a href="#part-{index}">{html.escape(part.title)}</a>'
    for index, part in enumerate(parts)
  )
  return f'<nav aria-label="On this page">{links}</nav>' if links else ""


def _block(block: Block, parts: Sequence[Part]) -> str:
  if isinstance(block, Part):
    lead = f"<p class=lead>{html.escape(block.lead)}</p>" if block.lead else ""
    name = f"part-{next(i for i, x in enumerate(parts) if x is block)}"
    title = html.escape(block.title)
    return f'<h2 class=part id="{name}">{title}</h2>{lead}'
  if isinstance(block, Picture):
    return _picture(block)
  return _table(block) if isinstance(block, tables.Table) else _tiles(block)


def headline(groups: Sequence[summary.Group]) -> tuple[str, str]:
  """The runs' result: a title, and the sentence below it.

  Args:
    groups: the runs by method.
  """
  scores = {}
  for group in groups:
    values = group.values(summary.final_top1)
    if len(values):
      scores[group.name] = (summary.mean_std(values), len(values), group)
  if not scores:
    return "No evaluation yet", "The curves show the training so far."
  name = max(scores, key=lambda n: scores[n][0][0])
  (mean, deviation), count, group = scores[name]
  so_far = "" if all(run.finished for run in group.settled) else " so far"
  title = f"{name}: {100 * mean:.2f} % top-1{so_far}"
  lead = "One run"
  if deviation is not None:
    lead = f"Mean of {count} seeds, standard deviation {100 * deviation:.2f}"
  base = summary.baseline(groups)
  if base and group is not base and base.name in scores:
    gain, error = summary.gain(group, base)
    lead += f"; {100 * gain:.2f} points above the baseline"
    lead += f" (standard error {100 * error:.2f})" if error else ""
  elif group is base and len(scores) > 1:
    lead += "; no other method is above this baseline"
  return title, lead + "."


def _facts(runs: Sequence[reading.Run]) -> str:
  facts = {
    "Data": _distinct(runs, _data),
    "Student": _distinct(runs, _student),
    "Teacher": _distinct(runs, _teachers),
    "Seeds": _distinct(runs, lambda r: r.seed),
    "Steps": _distinct(runs, lambda r: r.total_steps and f"{r.total_steps:,}"),
    "Batch": _distinct(runs, lambda r: r.config["run"].get("batch_size")),
  }
  listed = "\n".join(
    f"<div><dt>{name}</dt><dd>{value}</dd></div>"
    for name, value in facts.items()
    if value
  )
  return f"<dl>\n{listed}\n</dl>" if listed else ""


def _distinct(
  runs: Sequence[reading.Run], of: Callable[[reading.Run], object]
) -> str:
  values = dict.fromkeys(of(run) for run in runs)
  shown = [html.escape(str(v)) for v in values if v not in (None, "")]
  more = f", and {len(shown) - 8} more" if len(shown) > 8 else ""
  separator = "<br>" if any(len(text) > 8 for text in shown) else ", "
  return separator.join(shown[:8]) + more


def _data(run: reading.Run) -> str:
  data = run.config.get("data") or {}
  return (
    f"{data.get('name')}: {data.get('train_split')}, "
    f"evaluated on {data.get('eval_split')}"
  )


def _student(run: reading.Run) -> str | None:
  """The variant and the fields the config changes, except how it is run."""
  fields = dict(run.config.get("student") or {})
  variant = fields.pop("variant", None)
  changes = ", ".join(
    f"{name}={value}"
    for name, value in fields.items()
    if value is not None and name not in variants.RUNTIME_FIELDS
  )
  return f"{variant} with {changes}" if changes else variant


def _teachers(run: reading.Run) -> str | None:
  found = []
  for name, teacher in (run.config.get("teachers") or {}).items():
    pin = run.teachers.get(name) or {}
    step, sha = pin.get("step"), pin.get("sha256")
    model = teacher.get("variant") or teacher.get("build")
    found.append(
      f"{model}, {teacher.get('weights')}"
      + ("" if step is None else f", step {step:,}")
      + (f", SHA-256 {sha[:12]}…" if sha else "")
    )
  return "; ".join(found) or None


def _table(table: tables.Table) -> str:
  head = _cells(table, table.head, "thead")
  rows = "\n".join(f"<tr>{_cells(table, row)}</tr>" for row in table.rows)
  notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
  title = html.escape(table.title)
  # What scrolls must take the focus, or no key scrolls it.
  return (
    f"<section><h2>{title}</h2>\n"
    f'<div class=scroll tabindex=0 role=region aria-label="{title}">'
    f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
    f"</div><div class=notes>{notes}</div></section>"
  )


def _cells(
  table: tables.Table, texts: Sequence[str], place: str = "tbody"
) -> str:
  found = []
  for column, text in enumerate(texts):
    kinds = ["text"] if column and table.is_text(column) else []
    kinds += ["long"] if len(text) > 30 else []
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    tag, scope = "td", ""
    if place == "thead" or not column:
      tag, scope = "th", " scope=col" if place == "thead" else " scope=row"
    found.append(f"<{tag}{scope}{kind}>{html.escape(text)}</{tag}>")
  return "".join(found)


def _variables(theme: plotting.Theme) -> str:
  """The theme's colours as CSS."""
  return " ".join(
    f"{variable[4:-1]}: {color};" for color, variable in theme.variables.items()
  )


def _picture(picture: Picture) -> str:
  title, drawing = html.escape(picture.title), picture.drawing
  text = html.escape(f"{picture.title}. {drawing.text}".strip())
  both = "".join(
    _labelled(svg, text, f"class={width} ")
    for width, svg in (("wide", drawing.wide), ("narrow", drawing.narrow))
  )
  values = ""
  if any(drawing.values):
    # A name may hold the end of a script.
    plain = json.dumps(drawing.values, separators=(",", ":"))
    plain = plain.replace("<", "\\u003c")
    values = f'<script type="application/json" class=values>{plain}</script>'
  return f"<figure><figcaption>{title}</figcaption>{both}{values}</figure>"


def _tiles(tiles: multiples.Tiles) -> str:
  title = html.escape(tiles.title)
  variables = plotting.LIGHT.variables
  legend = "".join(
    f'<span style="color: {variables[color]}">{html.escape(name)}</span>'
    for name, color in tiles.legend.items()
  )
  each = "\n".join(
    f"<figure><figcaption>{html.escape(name)}</figcaption>"
    f"{_labelled(svg, f'{title}: {html.escape(name)}')}</figure>"
    for name, svg in tiles.tiles
  )
  return (
    f"<section><h2>{title}</h2><p class=legend>{legend}</p>"
    f"<div class=tiles>{each}</div></section>"
  )


def _labelled(svg: str, text: str, attributes: str = "") -> str:
  label = f'<svg {attributes}role="img" aria-label="{text}" '
  return svg.replace("<svg ", label, 1)


def _runs(runs: Sequence[reading.Run]) -> str:
  """Each run's command and config, of many what differs from the first."""
  if not runs:
    return ""
  first, *others = runs
  found = [_run(first, json.dumps(first.config, indent=2, default=str))]
  base = history.flatten(first.config)
  for run in others:
    config = json.dumps(run.config, indent=2, default=str)
    if len(runs) > _CONFIGS:
      flat = history.flatten(run.config)
      lines = [
        f"config.{key}={flat.get(key)!r}"
        for key in sorted(base.keys() | flat.keys())
        if flat.get(key) != base.get(key)
      ]
      config = "\n".join([f"as {first.name}, but", *lines])
    found.append(_run(run, config))
  listed = "\n".join(found)
  return f"<section>\n<h2>Commands and configs</h2>\n{listed}\n</section>"


def _run(run: reading.Run, config: str) -> str:
  evaluate = f"python -m vitkd_jax.evaluate --weights {run.path}"
  lines = [run.command] if run.command else []
  commands = html.escape("\n".join([*lines, evaluate]))
  return (
    f"<details><summary>{html.escape(run.name)}</summary>\n"
    f"<pre>{commands}</pre>\n<pre>{html.escape(config)}</pre></details>"
  )


_PAGE = string.Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>
:root { $light --soft: #f5f7f8; }
@media (prefers-color-scheme: dark) {
  :root { $dark --soft: #1e2227; }
}
$style</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="lead">$lead</p>
$facts
$contents
$blocks
$runs
<section>
<h2>This page</h2>
<pre tabindex=0>$command</pre>
</section>
</main>
<script>
$script</script>
</body>
</html>
""")
