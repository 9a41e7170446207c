r"""Shows what a model's maps look like, and which of a teacher's it lacks.

  python -m vitkd_jax.inspect --weights runs/both --out DIR
  python -m vitkd_jax.inspect --weights PATH --variant NAME --teacher PATH \
      --data NAME --split SPLIT --out DIR

Of each block: the dimensions that its map uses, spatial frequencies, where its
heads look, norms; of both models: alignment (CKA), the share of the teacher's
map that a linear layer makes of the student's, agreement and calibration. It
ends with the blocks to compare, as options of a training. --weights of a
workdir take the run's own teacher.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath

from vitkd_jax.commandline import command, progress, split_flags
from vitkd_jax.data import datasets, loader, printable
from vitkd_jax.diagnostics import generation, running
from vitkd_jax.evaluation import scoring
from vitkd_jax.reporting import beside, inspected, page, pictures
from vitkd_jax.runs import reading
from vitkd_jax.training import trained as trained_methods


def main(argv: Sequence[str]) -> None:
  """Runs the command line.

  Args:
    argv: unused; absl has parsed the flags.
  """
  del argv
  given = flags.FLAGS.flag_values_dict()
  command.require("weights", given["weights"])
  with command.refusing():
    if given["out"]:
      epath.Path(given["out"]).mkdir(parents=True, exist_ok=True)
    asked = split_flags.asked(given)
    teachers = list((asked.config.get("teachers") or {}).values())
    if not given["teacher"] and len(teachers) == 1:
      given["teacher"] = teachers[0].get("weights")
      given["teacher-variant"] = teachers[0].get("variant")
    info = datasets.info(asked.name, asked.data_dir)
    student = scoring.load(given["weights"], info, variant=given["variant"])
    teacher = given["teacher"] and scoring.load(
      given["teacher"],
      info,
      variant=given["teacher-variant"],
      like=student.images,
    )
    trained = _trained(given, info, student)
    source = datasets.load(
      asked.name, asked.split, data_dir=asked.data_dir, exif=asked.exif
    )
    try:
      with progress.show("images", min(given["images"], len(source))) as add:
        found = running.inspect(
          student,
          source,
          info,
          teacher=teacher or None,
          trained=trained,
          images=given["images"],
          batch_size=given["batch-size"],
          kernel=given["kernel"],
          advance=add,
        )
    except loader.InputError as error:
      raise command.FailedError(str(error)) from error
  title = printable.printable(
    f"{given['weights']} on {asked.name}, {asked.split}"
  )
  _, lead = inspected.headline(found, title)
  made = inspected.make_tables(found)
  print(f"# {title}\n")
  print("\n".join(table.markdown() for table in made))
  for sentence in inspected.warnings(found):
    print(f"warning: {sentence}")
  if "agreement" in found:
    print(
      f"agreement with the teacher {found['agreement']:.2%}, KL(teacher, "
      f"student) {found['kl']:.4f} nats"
    )
  for name, model in found["models"].items():
    off = model["calibration"]["error"]
    print(f"expected calibration error of the {name} {off:.2%}")
  print(lead)
  if options := found.get("advice", {}).get("options"):
    print("  " + " ".join(["method=regress", *options]))
  if given["out"]:
    with command.refusing():
      _write(found, (title, lead), given["out"])
    print(f"report: {given['out']}/index.html", flush=True)


def _trained(
  given: Mapping[str, Any], info: datasets.Info, student: scoring.Scored
) -> generation.Trained | None:
  """The methods of a run that make maps, if its own teacher is meant."""
  record = reading.record_of(given["weights"])
  if record is None:
    return None
  teachers = (record["config"].get("teachers") or {}).values()
  if given["teacher"] not in (None, *(x.get("weights") for x in teachers)):
    return None
  try:
    return trained_methods.maps(
      given["weights"], record, info, student.images.size
    )
  except (ValueError, OSError) as error:
    print(f"what its methods make is not shown: {error}")
    return None


def _write(found: inspected.Found, said: tuple[str, str], out: str) -> None:
  blocks = inspected.blocks(found)
  html = page.render((), blocks, command.line(), said=said)
  files = {**beside.written(found), "index.html": html}
  pictures.write(epath.Path(out), files, blocks)


def _define_flags() -> None:
  split_flags.define()
  command.define_path(
    "teacher", None, "weights to compare with; default: the workdir's teacher"
  )
  flags.DEFINE_string(
    "teacher-variant", None, "name of the teacher's model; default: as stated"
  )
  flags.DEFINE_integer("images", 256, "number of images, evenly spaced")
  flags.DEFINE_integer(
    "batch-size", 64, "images at a time, and in a kernel of the alignment"
  )
  flags.DEFINE_string("kernel", "linear", "of the alignment: linear or rbf")
  command.define_path(
    "out",
    None,
    "folder for the page; a report of the run shows one in its workdir; "
    "default: none",
  )


if __name__ == "__main__":
  _define_flags()
  command.run(main, with_config=False)
