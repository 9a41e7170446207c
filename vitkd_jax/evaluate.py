r"""Scores a model on every example of a split.

  python -m vitkd_jax.evaluate --weights runs/both
  python -m vitkd_jax.evaluate --weights PATH --variant NAME \
      --data fashion_mini --split test [--teacher PATH --teacher-variant NAME]
  python -m vitkd_jax.evaluate --weights PATH --out DIR \
      --data imagenet2012,imagenet2012_real,imagenet_v2,imagenet_a,imagenet_r

Prints top-1, top-5, loss and the accuracy of each class, what a forward pass
costs, and with teachers how often each agrees. --out writes evaluation.json and
confusion.png: up to 2,000 classes the confusion matrix, beyond the most
frequent confusions. Of several datasets, which the model is loaded and compiled
for once, each has a folder for them. --probe fits classifiers of the frozen
features on a training split, which judge the features without the model's head.
No result depends on the batch size or the number of devices. With --out the
same command resumes an evaluation that was stopped.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import os
from typing import Any

from absl import flags
from etils import epath
import jax

from vitkd_jax.cluster import preemption
from vitkd_jax.commandline import command, probe_flags, progress, split_flags
from vitkd_jax.data import datasets, loader, preprocess
from vitkd_jax.evaluation import cost, probes, resuming, scorer, scoring
from vitkd_jax.reporting import evaluated


def _make(out: str) -> None:
  try:
    epath.Path(out).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"cannot create --out={out}: {error.strerror}") from None


def _define_flags() -> None:
  """Defines the flags; not on import, as other commands have an --out too."""
  split_flags.define(several=True)
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
  command.define_paths(
    "teacher", "weights of a teacher to compare with; once for each teacher"
  )
  flags.DEFINE_multi_string(
    "teacher-variant",
    None,
    "name of the teacher's model, once for each teacher or never; default: as"
    " for --variant",
  )
  command.define_path(
    "out", None, "folder for evaluation.json and confusion.png; default: none"
  )
  probe_flags.define()
  command.define_join()


def main(argv: Sequence[str]) -> None:
  """Runs the command line.

  Args:
    argv: unused; absl has parsed the flags.
  """
  del argv
  given = flags.FLAGS.flag_values_dict()
  command.require("weights", given["weights"])
  # Without a folder there is nothing to save when told to stop.
  listening = preemption.listening if given["out"] else contextlib.nullcontext
  with listening():
    command.join()
    _evaluate(given)


def _evaluate(given: Mapping[str, Any]) -> None:
  with command.refusing():
    if given["out"]:  # first, so that a failure costs no work
      _make(given["out"])
    options = probe_flags.asked(given)
    asked = split_flags.asked_each(given)
    infos = [datasets.info(each.name, each.data_dir) for each in asked]
    sources = [
      _source(given, each, info)
      for each, info in zip(asked, infos, strict=True)
    ]
    student, teachers, crops = _models(given, infos)
    splits = [
      scorer.Split(source, info, images)
      for source, info, images in zip(sources, infos, crops, strict=True)
    ]
    train = _training(given, asked[0], student, options) if options else None
    every = [*sources, train.split.source] if train else sources
    batch_size = scorer.fitting(given["batch-size"], every)
    compiled = scorer.Scorer(student, teachers, batch_size, bool(options))
    try:
      with preemption.saving():
        fitted = _fitted(given, compiled, train) if train else None
        kept = [
          _resumed(given, compiled, each, split, train, fitted)
          for each, split in zip(asked, splits, strict=True)
        ]
        left = sum(map(compiled.left, splits, kept))
        with _progress("images", left) as advance:
          found = [
            compiled.score(split, advance, fitted, each)
            for split, each in zip(splits, kept, strict=True)
          ]
    except loader.InputError as error:
      raise command.FailedError(str(error)) from error
    price = cost.of_image(student) | compiled.speed()
  if jax.process_index() > 0:
    return
  for each, split, results in zip(asked, splits, found, strict=True):
    _tell(given, each, split, train, {**results, "cost": price})
  if given["out"]:
    with command.refusing():
      epath.Path(_unfinished(given)).rmtree(missing_ok=True)


def _how(given: Mapping[str, Any]) -> dict[str, Any]:
  """What `scoring.load` and `scoring.images_of` are told alike."""
  return {
    "variant": given["variant"],
    "image_size": given["image-size"],
    "eval_resize": given["eval-resize"],
  }


def _models(
  given: Mapping[str, Any], infos: Sequence[datasets.Info]
) -> tuple[
  scoring.Scored, dict[str, scoring.Scored], list[preprocess.Preprocess]
]:
  """The student, its teachers, and the preprocessing of each dataset."""
  how = _how(given)
  names = given["teacher"] or []
  variants = given["teacher-variant"] or [None] * len(names)
  if len(set(names)) < len(names) or len(variants) != len(names):
    raise ValueError(
      "expected each --teacher once, with a --teacher-variant for each or for "
      f"none, got {', '.join(names) or 'no teacher'} and "
      f"{', '.join(map(str, variants))}"
    )
  student = scoring.load(
    given["weights"],
    infos[0],
    which=given["which"],
    step=given["step"],
    **how,
  )
  others = [
    scoring.images_of(student, given["weights"], info, **how)
    for info in infos[1:]
  ]
  teachers = {
    name: scoring.load(
      name, infos[0], variant=variant or None, like=student.images
    )
    for name, variant in zip(names, variants, strict=True)
  }
  return student, teachers, [student.images, *others]


@dataclasses.dataclass(frozen=True)
class _Training:
  """The probes, and the images that they are fitted on."""

  options: probes.Options
  asked: split_flags.Asked
  split: scorer.Split


def _training(
  given: Mapping[str, Any],
  first: split_flags.Asked,
  student: scoring.Scored,
  options: probes.Options,
) -> _Training:
  asked = probe_flags.training(given, first)
  info = datasets.info(asked.name, asked.data_dir)
  images = scoring.images_of(student, given["weights"], info, **_how(given))
  source = _source(given, asked, dataclasses.replace(info, label_sets=False))
  options.check_size(len(source))
  return _Training(options, asked, scorer.Split(source, info, images))


def _fitted(
  given: Mapping[str, Any], compiled: scorer.Scorer, train: _Training
) -> probes.Fitted:
  kept = None
  if given["out"]:
    settings = {"split": _place(given, train.asked)}
    kept = compiled.resume_features(
      train.split, _unfinished(given, "features"), settings
    )
  left = compiled.left(train.split, kept)
  with _progress("training images", left) as advance:
    x, label = compiled.features(train.split, advance, kept)
  with _progress("iterations of linear probes", None) as advance:

    def iterated(number: int) -> None:
      advance(number)
      if kept and preemption.noticed():
        preemption.stop("the pass over the training images is saved")

    classes = train.split.info.num_classes
    return probes.fit(train.options, x, label, classes, compiled.mesh, iterated)


def _resumed(
  given: Mapping[str, Any],
  compiled: scorer.Scorer,
  asked: split_flags.Asked,
  split: scorer.Split,
  train: _Training | None,
  fitted: probes.Fitted | None,
) -> resuming.Pass | None:
  """What there is of a split's scores; None if nothing is kept."""
  if not given["out"]:
    return None
  settings: dict[str, Any] = {"split": _place(given, asked)}
  if train:
    settings["probes"] = [
      dataclasses.asdict(train.options),
      _place(given, train.asked),
      train.split.described,
    ]
  return compiled.resume(
    split, _unfinished(given, asked.name), settings, fitted
  )


def _unfinished(given: Mapping[str, Any], name: str = "") -> str:
  """Where a pass is kept until the results are written; all of them."""
  return os.path.join(given["out"], "unfinished", name)


def _place(given: Mapping[str, Any], asked: split_flags.Asked) -> list[Any]:
  """Which images of a dataset are meant, ready for JSON."""
  return [asked.split, asked.data_dir, _exif(given, asked)]


def _source(
  given: Mapping[str, Any], asked: split_flags.Asked, info: datasets.Info
) -> datasets.Source:
  return datasets.load(
    asked.name,
    asked.split,
    data_dir=asked.data_dir,
    label_sets=info.label_sets,
    exif=_exif(given, asked),
  )


def _exif(given: Mapping[str, Any], asked: split_flags.Asked) -> bool:
  return asked.exif if given["exif"] is None else given["exif"]


def _tell(
  given: Mapping[str, Any],
  asked: split_flags.Asked,
  split: scorer.Split,
  train: _Training | None,
  found: Mapping[str, Any],
) -> None:
  """Prints the results of a dataset, and writes them with --out."""
  several = given["data"] is not None and "," in given["data"]
  title = f"{given['weights']} on {asked.name}, {asked.split}"
  evaluated.show(found, f"{title}: {split.images}", by_class=not several)
  if not given["out"]:
    return
  out = os.path.join(given["out"], asked.name) if several else given["out"]
  teachers = given["teacher"] or [None]
  settings = {
    "weights": given["weights"],
    "variant": given["variant"],
    "which": given["which"],
    "step": given["step"],
    "data": asked.name,
    "split": asked.split,
    "teacher": teachers[0] if len(teachers) == 1 else teachers,
    "exif": _exif(given, asked),
    "preprocess": dataclasses.asdict(split.images),
  }
  if train:
    settings |= {
      "train_data": train.asked.name,
      "train_split": train.asked.split,
    }
  with command.refusing():
    _make(out)
    evaluated.write(found, settings, out)
  print(f"\nwrote {out}/evaluation.json and confusion.png")


def _progress(
  what: str, total: int | None
) -> contextlib.AbstractContextManager[Callable[[int], None]]:
  """Shows how many are done, on the first process."""
  if jax.process_index() > 0:
    return contextlib.nullcontext(lambda number: None)
  return progress.show(what, total)


if __name__ == "__main__":
  _define_flags()
  command.run(main, with_config=False)
