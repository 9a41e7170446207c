"""A lab of four arms whose trainings cost as little as possible."""

import ml_collections

from configs import common
from tests.faults import tiny

ARMS = {
  "none": (),
  "vitkd": ("vitkd",),
  "nkd": ("nkd",),
  "both": ("vitkd", "nkd"),
}


def get_config(arg):
  """The lab, or with arm=NAME the training of that arm.

  Args:
    arg: teacher=PATH of its weights, arm=NAME.
  """
  args = common.parse_arg(arg, arm="", teacher="")
  if args["arm"]:
    config = tiny.get_config(args["teacher"])
    config.run.epochs = 1.0
    config.schedule.warmup_epochs = 0.5
    both = config.methods
    config.methods = {name: both[name] for name in ARMS[args["arm"]]}
    if not config.methods:
      config.teachers = {}
    return config
  return ml_collections.ConfigDict(
    dict(
      name="tiny",
      question="Does it survive?",
      reference="none",
      seeds=2,
      varies=("methods", "teachers"),
      arms={name: dict(says=name) for name in ARMS},
    )
  )
