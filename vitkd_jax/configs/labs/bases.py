"""What the labs share: their trainings on each dataset, and a lab's config."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from vitkd_jax.configs import cifar, common, quickstart, vitkd_i1k
from vitkd_jax.distill import methods as published
from vitkd_jax.training import method_sections, sections

# A method of an arm: {its name: keys that differ from the base's}.
Methods = Mapping[str, Mapping[str, Any]]

# Arguments of every lab. `arm` makes the config of one arm's training; epochs=0
# is the dataset's own number; `teacher` is needed where none is shipped;
# `runlocal` tries every arm on 64 images.
ARGUMENTS = dict(
  arm="", data="fashion", teacher="", epochs=0.0, seed=0, runlocal=False
)

# Keys of methods that differ from their published values, with weights for the
# maps of each dataset's teacher.
_SETTINGS = {
  "fashion": quickstart.METHODS,
  "cifar10": quickstart.METHODS,
  "imagenet": common.PAPERS,
}
# The methods of configs/labs/methods.py:part=core, and what their weights above
# are multiplied by, as configs/labs/tuning.py chose.
CORE = ("vitkd", "nkd", "wttm", "manifold", "mgd", "regress")
FACTORS: dict[str, dict[str, float]] = {
  "fashion": dict(
    vitkd=1, nkd=1, wttm=1 / 4, manifold=1, mgd=1 / 4, regress=1 / 4
  ),
  "cifar10": dict(vitkd=4, nkd=4, wttm=4, manifold=1, mgd=1, regress=1),
}
# Matrix products in a training step on TPU v5e by the compiler's estimate, in
# 10^12 FLOP a second: 2,565 GFLOP in 43 ms (docs/clusters.md).
_CHIP = {"imagenet": dict(chip="TPU v5e", chip_tflops=59.7)}


def settings(data: str) -> dict[str, dict[str, Any]]:
  """Of every method the keys that differ from their published values.

  Args:
    data: argument of the lab.
  """
  found: dict[str, dict[str, Any]] = {name: {} for name in published.METHODS}
  return found | common.choose("data", data, _SETTINGS)


def scaled(name: str, own: Mapping[str, Any], factor: float) -> dict[str, Any]:
  """A method's keys with all of its weights multiplied.

  Args:
    name: of the method.
    own: its keys.
    factor: for every weight.
  """
  weights = method_sections.weights(name, own)
  changed = {term: factor * weight for term, weight in weights.items()}
  return {**own, "weights": changed}


def parts(part: str, known: tuple[str, ...]) -> tuple[str, ...]:
  """The parts of a lab that its argument `part` names.

  Args:
    part: one of them, or "all".
    known: the lab's parts.
  """
  if part == "all":
    return known
  return (common.choose("part", part, {name: name for name in known}),)


# CIFAR-10's first images are the students', all others the teacher's.
_STUDENTS = 10_000
# Images of the training split that what is tuned is judged by; the evaluation
# split decides nothing.
_HELD_OUT = {
  "fashion": ("train[:7000]", "train[7000:]"),
  "cifar10": ("train[:8000]", "train[8000:10000]"),
  "imagenet": ("train[:99%]", "train[99%:]"),  # as in big_vision
}


def share(data: str, divisor: int) -> str:
  """The split of the first 1/divisor of a dataset's training images.

  Args:
    data: argument of the lab.
    divisor: at least 1.
  """
  if data == "cifar10":
    return f"train[:{_STUDENTS // divisor}]"
  return f"train[:{100 / divisor:g}%]" if divisor > 1 else "train"


def training(
  args: Mapping[str, Any], methods: Methods, *, tuning: bool = False
) -> ml_collections.ConfigDict:
  """The training of one arm.

  Args:
    args: the lab's arguments.
    methods: what the student learns from, beside the labels.
    tuning: hold out a part of the training split, and evaluate on it.
  """
  base, teacher = common.choose("data", args["data"], _BASES)
  config = base(args)
  if tuning:
    own, held_out = _HELD_OUT[args["data"]]
    config.data.train_split, config.data.eval_split = own, held_out
  config.task = common.section(sections.Task)
  config.methods = common.methods(tuple(methods), **methods)
  config.teachers = {}
  if methods:
    config.teachers.teacher = teacher(args)
  if args["runlocal"]:
    config.run.batch_size = 8
    return common.trial(config)
  return config


def _fashion(args: Mapping[str, Any]) -> ml_collections.ConfigDict:
  epochs = args["epochs"] or 4.0
  config = quickstart.get_config(
    f"method=baseline,epochs={epochs},seed={args['seed']}"
  )
  config.run.checkpoint_every = 0  # at the end, and when it is stopped
  config.schedule.warmup_epochs = min(1.0, epochs / 4)
  return config


_CIFAR = "student=pico,batch_size=64,method=baseline"


def _cifar10(args: Mapping[str, Any]) -> ml_collections.ConfigDict:
  epochs = args["epochs"] or 4.0
  config = cifar.get_config(f"{_CIFAR},epochs={epochs},seed={args['seed']}")
  config.data.train_split = share("cifar10", 1)
  config.run.log_every, config.run.eval_every = 25, 313  # of 157 steps an epoch
  config.run.checkpoint_every = 0
  config.schedule.warmup_epochs = min(1.0, epochs / 4)
  return config


def _cifar10_teacher(args: Mapping[str, Any]) -> ml_collections.ConfigDict:
  if not args["teacher"]:
    raise ValueError(
      "expected config argument teacher beside data=cifar10, got none; train "
      "one on images that the students do not see: python -m vitkd_jax.train "
      "--config configs/cifar.py:student=nano,epochs=12 --workdir TEACHER "
      f"--config.data.train_split='train[{_STUDENTS}:]'"
    )
  one = f"student=pico,method=vitkd,teacher={args['teacher']}"
  return cifar.get_config(one).teachers.teacher


def _imagenet(args: Mapping[str, Any]) -> ml_collections.ConfigDict:
  epochs = int(args["epochs"] or 300)
  return vitkd_i1k.get_config(
    f"pair=s3-ti,method=baseline,epochs={epochs},seed={args['seed']}"
  )


# Of each dataset, its training and its teacher.
_BASES: dict[str, tuple[Any, Any]] = {
  "fashion": (_fashion, lambda args: quickstart.teacher()),
  "cifar10": (_cifar10, _cifar10_teacher),
  "imagenet": (_imagenet, lambda args: vitkd_i1k.teacher("s3-ti")),
}


def lab(
  args: Mapping[str, Any],
  *,
  name: str,
  question: str,
  reference: str,
  arms: Mapping[str, Mapping[str, str]],
  claims: Mapping[str, Mapping[str, str]] | None = None,
  varies: tuple[str, ...] = ("methods", "teachers", "task"),
  seeds: int = 3,
) -> ml_collections.ConfigDict:
  """A lab's config, see `vitkd_jax.labs.description.make`.

  Args:
    args: the lab's arguments.
    name: of the lab; the dataset is added.
    question: that it answers.
    reference: name of the reference arm.
    arms: {name: {says, claim, against}}.
    claims: {name: {says, better, worse}}.
    varies: keys and sections in which arms may differ.
    seeds: their number.
  """
  config = ml_collections.ConfigDict(
    dict(
      name=f"{name}_{args['data']}",
      question=question,
      reference=reference,
      seeds=seeds,
      varies=varies,
      chip="",
      chip_tflops=0.0,
    )
  )
  config.arms = ml_collections.ConfigDict(
    {arm: dict(values) for arm, values in arms.items()}
  )
  config.claims = ml_collections.ConfigDict(
    {claim: dict(values) for claim, values in (claims or {}).items()}
  )
  config.update(_CHIP.get(args["data"], {}))
  return config
