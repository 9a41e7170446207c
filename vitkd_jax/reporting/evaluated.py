"""What an evaluation shows and writes: tables, evaluation.json, a picture."""

from collections.abc import Mapping, Sequence
import functools
import json
from typing import Any

from etils import epath
import numpy as np
import rich.console
import rich.table

from vitkd_jax.data import printable
from vitkd_jax.reporting import confusions, plotting, rendering


def show(
  found: Mapping[str, Any], title: str, *, by_class: bool = True
) -> None:
  """Prints results; of many classes only the worst.

  Args:
    found: from `Scorer.score`, and "cost" if it is known.
    title: printed first.
    by_class: whether to print the table of classes, too.
  """
  console = rich.console.Console(highlight=False, markup=False, emoji=False)
  total = rich.table.Table(box=None)
  total.add_column("measure")
  total.add_column("value", justify="right")
  over = ""
  if "scored_classes" in found:
    over = f" of the {found['scored_classes']:,} classes that occur"
  if "unlabelled" in found:
    over = ", any label of the image"
  rows = {
    "images": f"{found['count']:,}",
    f"top-1{over}": f"{found['top1']:.2%}",
    f"top-5{over}": f"{found['top5']:.2%}",
    "cross-entropy, nats": f"{found['loss']:.4f}",
  }
  if "top1_all" in found:
    over = f" of all {len(found['classes']):,} classes"
    rows |= {
      f"top-1{over}": f"{found['top1_all']:.2%}",
      f"top-5{over}": f"{found['top5_all']:.2%}",
    }
  if "unlabelled" in found:
    rows["images without a label, not counted"] = f"{found['unlabelled']:,}"
  if "kl" in found:
    rows |= _agreement(found, "the teacher")
  for each in found.get("teachers", ()):
    rows |= _agreement(each, printable.printable(each["name"]))
  if "probes" in found:
    rows |= _probes(found["probes"])
  if "cost" in found:
    rows |= _cost(found["cost"])
  for row in rows.items():
    total.add_row(*row)
  console.print(printable.printable(title), soft_wrap=True)
  console.print(total)
  console.print()
  if by_class:
    console.print(_class_table(found))


def _agreement(found: Mapping[str, Any], teacher: str) -> dict[str, str]:
  return {
    f"top-1 of {teacher}": f"{found['teacher_top1']:.2%}",
    f"agreement with {teacher}": f"{found['agreement']:.2%}",
    f"KL({teacher.removeprefix('the ')}, student), nats": f"{found['kl']:.4f}",
  }


def _probes(found: Mapping[str, Any]) -> dict[str, str]:
  rows = {
    f"top-1, kNN, k = {each['k']}": f"{each['top1']:.2%}"
    for each in found.get("knn", ())
  }
  for name in ("ridge", "logistic", "sgd"):
    if name in found:
      key = "learning_rate" if name == "sgd" else "l2"
      chosen = f"{key.replace('_', ' ')} = {found[name][key]:g}"
      row = f"top-1, linear probe, {name}, {chosen}"
      rows[row] = f"{found[name]['top1']:.2%}"
  for each in found.get("fewshot", ()):
    spread = each["top1_std"]
    some = "" if spread is None else f" ± {spread:.2%}"
    row = f"top-1, few-shot, {each['shots']} images a class"
    rows[row] = f"{each['top1']:.2%}{some}"
  return rows


def _cost(cost: Mapping[str, Any]) -> dict[str, str]:
  batch = f"{cost['batch_size']} on {cost['devices']} x {cost['device']}"
  return {
    "parameters": f"{cost['parameters']:,}",
    "GFLOPs of an image's forward pass": f"{cost['flops'] / 1e9:.4g}",
    f"images/s, forward pass of {batch}": f"{cost['images_per_second']:,.4g}",
  }


def _class_table(found: Mapping[str, Any], limit: int = 20) -> rich.table.Table:
  classes = found["classes"]
  order: Sequence[int] = range(len(classes))
  heading = "class"
  if len(classes) > limit:
    known = [i for i in order if classes[i]["count"]]
    order = sorted(known, key=lambda i: classes[i]["accuracy"])[:limit]
    heading = f"class (the {limit} worst of {len(classes)})"
  table = rich.table.Table(box=None)
  table.add_column(heading)
  table.add_column("images", justify="right")
  table.add_column("accuracy", justify="right")
  table.add_column("most often confused with")
  for i in order:
    wrong, count = confused_with(found, i)
    score = classes[i]["accuracy"]
    table.add_row(
      printable.printable(classes[i]["name"]),
      f"{classes[i]['count']:,}",
      "-" if score is None else f"{score:.1%}",
      f"{printable.printable(classes[wrong]['name'])} ({count:,})"
      if count
      else "-",
    )
  return table


def confused_with(found: Mapping[str, Any], true: int) -> tuple[int, int]:
  """The class that a class is most often taken for, and how often.

  Args:
    found: from `Scorer.score`.
    true: index of the class.
  """
  if "confusion" not in found:
    wrong, count = found["classes"][true]["confused_with"] or (true, 0)
    return wrong, count
  row = list(found["confusion"][true])
  row[true] = 0
  wrong = int(np.argmax(row))
  return wrong, row[wrong]


def write(found: Mapping[str, Any], asked: Mapping[str, Any], out: str) -> None:
  """Writes evaluation.json and confusion.png into a folder.

  Args:
    found: from `scoring.evaluate`.
    asked: settings of the evaluation, which come first in the file.
    out: an existing folder, or a URL.
  """
  folder = epath.Path(out)
  items = [
    f"{json.dumps(name)}: {_rows(value)}"
    for name, value in {**asked, **found}.items()
  ]
  text = "{\n  " + ",\n  ".join(items) + "\n}\n"
  (folder / "evaluation.json").write_text(text)
  names = [each["name"] for each in found["classes"]]
  if "confusion" in found:
    draw = functools.partial(
      confusions.matrix, np.array(found["confusion"]), names
    )
  else:
    draw = functools.partial(
      confusions.most_frequent, found["confusions"], names
    )
  picture = rendering.png(draw, plotting.LIGHT)
  (folder / "confusion.png").write_bytes(picture)


def _rows(value: Any) -> str:
  """JSON of a value; each item of a list is a line."""
  if not isinstance(value, list) or not value:
    return json.dumps(value)
  return "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]"
