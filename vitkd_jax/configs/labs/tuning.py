r"""Chooses the scale of each method's weights, by equal budgets.

  python -m vitkd_jax.lab --config configs/labs/tuning.py --workdir DIR

Arguments: method=NAME of docs/methods.md, or core (those of
configs/labs/methods.py:part=core), data=fashion|cifar10|imagenet, teacher=PATH,
epochs=N, and of one arm's training arm=NAME, seed=N.

Every method gets three trials of one seed: all of its weights as they are, a
quarter of them, and four times as much. Students are judged by a part of the
training split that is held out. The best trial's factor goes into
`bases.FACTORS`, from which configs/labs/methods.py takes it.
"""

from collections.abc import Iterator

import ml_collections

from vitkd_jax.configs import common
from vitkd_jax.configs.labs import bases

TRIALS = {"quarter": 1 / 4, "as_is": 1.0, "x4": 4.0}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The lab, or with arm=NAME the training of that arm.

  Args:
    arg: what follows the colon of --config, see above.
  """
  args = common.parse_arg(arg, method="core", **bases.ARGUMENTS)
  name = args["method"]
  names = bases.CORE if name == "core" else common.method_names(name)
  if not names:
    raise ValueError("expected a method whose weights to change, got baseline")
  arms = dict(_arms(args["data"], names))
  if args["arm"]:
    methods = common.choose("arm", args["arm"], arms)
    return bases.training(args, methods, tuning=True)
  return bases.lab(
    args,
    name=f"tuning_{name}",
    question="At which scale does each method's weights help most?",
    reference="none",
    arms={arm: dict(says=_says(methods)) for arm, methods in arms.items()},
    seeds=1,
  )


def _says(methods: bases.Methods) -> str:
  return (
    "; ".join(
      ", ".join(f"{term} {x:g}" for term, x in own["weights"].items() if x)
      for own in methods.values()
    )
    or "labels alone"
  )


def _arms(
  data: str, names: tuple[str, ...]
) -> Iterator[tuple[str, bases.Methods]]:
  """{arm: methods}."""
  settings = bases.settings(data)
  yield "none", {}
  for name in names:
    for trial, factor in TRIALS.items():
      own = bases.scaled(name, settings[name], factor)
      yield f"{name}_{trial}", {name: own}
