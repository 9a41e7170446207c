"""What the labs share: their trainings on each dataset, and a lab's config."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from vitkd_jax.configs import common, quickstart, vitkd_i1k
from vitkd_jax.distill import methods as published
from vitkd_jax.training import sections

# A method of an arm: {its name: keys that differ from the base's}.
Methods = Mapping[str, Mapping[str, Any]]

# Arguments of every lab. `arm` makes the config of one arm's training; epochs=0
# is the dataset's own number.
ARGUMENTS = dict(arm="", data="fashion", epochs=0.0, seed=0)

# Keys of methods that differ from their published values, with weights for the
# maps of each dataset's teacher.
_SETTINGS = {"fashion": quickstart.METHODS, "imagenet": common.PAPERS}
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


def parts(part: str, known: tuple[str, ...]) -> tuple[str, ...]:
  """The parts of a lab that its argument `part` names.

  Args:
    part: one of them, or "all".
    known: the lab's parts.
  """
  if part == "all":
    return known
  return (common.choose("part", part, {name: name for name in known}),)


# Images of the training split that what is tuned is judged by; the evaluation
# split decides nothing.
_HELD_OUT = {
  "fashion": ("train[:7000]", "train[7000:]"),
  "imagenet": ("train[:99%]", "train[99%:]"),  # as in big_vision
}


def training(
  args: Mapping[str, Any], methods: Methods, *, tuning: bool = False
) -> ml_collections.ConfigDict:
  """The training of one arm.

  Args:
    args: the lab's arguments.
    methods: what the student learns from, beside the labels.
    tuning: hold out a part of the training split, and evaluate on it.
  """
  base = common.choose("data", args["data"], _BASES)
  config, teacher = base(args)
  if tuning:
    own, held_out = _HELD_OUT[args["data"]]
    config.data.train_split, config.data.eval_split = own, held_out
  config.task = common.section(sections.Task)
  config.methods = common.methods(tuple(methods), **methods)
  config.teachers = {}
  if methods:
    config.teachers.teacher = teacher
  return config


def _fashion(args: Mapping[str, Any]) -> Any:
  epochs = args["epochs"] or 4.0
  config = quickstart.get_config(
    f"method=baseline,epochs={epochs},seed={args['seed']}"
  )
  config.run.checkpoint_every = 0  # at the end, and when it is stopped
  config.schedule.warmup_epochs = min(1.0, epochs / 4)
  return config, quickstart.teacher()


def _imagenet(args: Mapping[str, Any]) -> Any:
  epochs = int(args["epochs"] or 300)
  config = vitkd_i1k.get_config(
    f"pair=s3-ti,method=baseline,epochs={epochs},seed={args['seed']}"
  )
  return config, vitkd_i1k.teacher("s3-ti")


_BASES = {"fashion": _fashion, "imagenet": _imagenet}


def lab(
  args: Mapping[str, Any],
  *,
  name: str,
  question: str,
  reference: str,
  arms: Mapping[str, Mapping[str, str]],
  claims: Mapping[str, Mapping[str, str]] | None = None,
  varies: tuple[str, ...] = ("methods", "teachers", "task"),
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
  """
  config = ml_collections.ConfigDict(
    dict(
      name=f"{name}_{args['data']}",
      question=question,
      reference=reference,
      seeds=3,
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
