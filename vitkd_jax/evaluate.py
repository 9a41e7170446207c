r"""Scores a model on every example of a split.

  python -m vitkd_jax.evaluate --weights runs/both
  python -m vitkd_jax.evaluate --weights PATH --variant NAME \
      --data fashion_mini --split test [--teacher PATH --teacher-variant NAME]

Prints top-1, top-5, loss and the accuracy of each class, and with a teacher how
often both agree. --out writes evaluation.json and confusion.png: up to 2,000
classes the confusion matrix, beyond the most frequent confusions. No result
depends on the batch size or the number of devices.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
from typing import Any

from absl import flags
from etils import epath
import jax
import numpy as np
import rich.console
import rich.table

from vitkd_jax.commandline import command, progress, split_flags
from vitkd_jax.data import datasets, loader, printable
from vitkd_jax.evaluation import scoring
from vitkd_jax.reporting import confusions, plotting, rendering


def show(found: Mapping[str, Any], title: str) -> None:
  """Prints results; of many classes only the worst.

  Args:
    found: from `scoring.evaluate`.
    title: printed first.
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
    rows |= {
      "teacher's top-1": f"{found['teacher_top1']:.2%}",
      "agreement with the teacher": f"{found['agreement']:.2%}",
      "KL(teacher, student), nats": f"{found['kl']:.4f}",
    }
  for row in rows.items():
    total.add_row(*row)
  console.print(printable.printable(title), soft_wrap=True)
  console.print(total)
  console.print()
  console.print(_class_table(found))


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
    wrong, count = _confused_with(found, i)
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


def _confused_with(found: Mapping[str, Any], true: int) -> tuple[int, int]:
  """The class that a class is most often taken for, and how often."""
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


def _make(out: str) -> None:
  try:
    epath.Path(out).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"cannot create --out={out}: {error.strerror}") from None


def _define_flags() -> None:
  """Defines the flags; not on import, as other commands have an --out too."""
  split_flags.define()
  flags.DEFINE_integer(
    "batch-size",
    256,
    "images per step, over all devices; no result depends on it",
  )
  flags.DEFINE_integer(
    "image-size",
    0,
    "side of the crop in pixels; default: as the weights state, else whole"
    " images if all have one size, no larger than the model's, else the"
    " model's",
    lower_bound=0,
  )
  flags.DEFINE_integer(
    "eval-resize",
    0,
    "short side in pixels before the crop; default: as for --image-size",
    lower_bound=0,
  )
  flags.DEFINE_boolean(
    "exif",
    None,
    "rotate images as EXIF states; default: as the workdir's run, else no",
  )
  flags.DEFINE_enum(
    "which",
    None,
    ["student", "ema"],
    "part of a workdir's checkpoint to read; default: the exported student",
  )
  flags.DEFINE_string(
    "step",
    None,
    "step of the checkpoint: a number, best (by top-1) or latest; default: the"
    " exported student, else latest",
  )
  command.define_path("teacher", None, "weights of a teacher to compare with")
  flags.DEFINE_string(
    "teacher-variant",
    None,
    "name of the teacher's model; default: as for --variant",
  )
  command.define_path(
    "out", None, "folder for evaluation.json and confusion.png; default: none"
  )
  command.define_join()


def main(argv: Sequence[str]) -> None:
  """Runs the command line.

  Args:
    argv: unused; absl has parsed the flags.
  """
  del argv
  given = flags.FLAGS.flag_values_dict()
  command.require("weights", given["weights"])
  command.join()
  with command.refusing():
    if given["out"]:  # first, so that a failure costs no work
      _make(given["out"])
    images = split_flags.asked(given)
    asked = {
      "weights": given["weights"],
      "variant": given["variant"],
      "which": given["which"],
      "step": given["step"],
      "data": images.name,
      "split": images.split,
      "teacher": given["teacher"],
      "exif": images.exif if given["exif"] is None else given["exif"],
    }
    info = datasets.info(images.name, images.data_dir)
    student = scoring.load(
      given["weights"],
      info,
      variant=given["variant"],
      which=given["which"],
      step=given["step"],
      image_size=given["image-size"],
      eval_resize=given["eval-resize"],
    )
    teacher = given["teacher"] and scoring.load(
      given["teacher"],
      info,
      variant=given["teacher-variant"],
      like=student.images,
    )
    source = datasets.load(
      images.name,
      images.split,
      data_dir=images.data_dir,
      label_sets=info.label_sets,
      exif=asked["exif"],
    )
    try:
      with _progress(len(source)) as advance:
        found = scoring.evaluate(
          student,
          source,
          info,
          batch_size=given["batch-size"],
          teacher=teacher or None,
          advance=advance,
        )
    except loader.InputError as error:
      raise command.FailedError(str(error)) from error
  if jax.process_index() > 0:
    return
  asked["preprocess"] = dataclasses.asdict(student.images)
  title = f"{asked['weights']} on {asked['data']}, {asked['split']}"
  show(found, f"{title}: {student.images}")
  if given["out"]:
    with command.refusing():
      write(found, asked, given["out"])
    print(f"\nwrote {given['out']}/evaluation.json and confusion.png")


def _progress(
  total: int,
) -> contextlib.AbstractContextManager[Callable[[int], None]]:
  """Shows how many images are done, on the first process."""
  if jax.process_index() > 0:
    return contextlib.nullcontext(lambda number: None)
  return progress.show("images", total)


if __name__ == "__main__":
  _define_flags()
  command.run(main, with_config=False)
