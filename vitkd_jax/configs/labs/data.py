r"""How a method's gain depends on the number of training images.

  python -m vitkd_jax.lab --config configs/labs/data.py:method=both \
      --workdir DIR

Arguments: method=NAME+NAME of docs/methods.md or both, teacher=PATH,
data=fashion|cifar10|imagenet, epochs=N over all images, and of one arm's
training arm=NAME, seed=N.

Shares of 1/16 to all images, each with the labels alone and with the method,
and all for the same number of steps.
"""

from collections.abc import Iterator

import ml_collections

from vitkd_jax.configs import common
from vitkd_jax.configs.labs import bases

DIVISORS = (16, 8, 4, 2, 1)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The lab, or with arm=NAME the training of that arm.

  Args:
    arg: what follows the colon of --config, see above.
  """
  args = common.parse_arg(arg, method="vitkd", **bases.ARGUMENTS)
  names = common.method_names(args["method"])
  if not names:
    raise ValueError("expected a method to compare with the labels alone")
  arms = dict(_arms(args["method"]))
  if args["arm"]:
    divisor, taught = common.choose("arm", args["arm"], arms)
    settings = bases.settings(args["data"])
    methods = {name: settings[name] for name in names if taught}
    config = bases.training(args, methods)
    config.data.train_split = bases.share(args["data"], divisor)
    config.run.epochs *= divisor
    config.schedule.warmup_epochs *= divisor
    return config
  return bases.lab(
    args,
    name=f"data_{args['method']}",
    question=f"With how many images does {args['method']} help?",
    reference="labels_of_all",
    arms={
      name: dict(
        says=("labels alone" if not taught else args["method"])
        + f", {_share(divisor)} of the images",
        against=f"labels_{_place(divisor)}" if taught else "",
      )
      for name, (divisor, taught) in arms.items()
    },
    varies=(
      "methods",
      "teachers",
      "data.train_split",
      "run.epochs",
      "schedule.warmup_epochs",
    ),
  )


def _share(divisor: int) -> str:
  return "all" if divisor == 1 else f"1/{divisor}"


def _place(divisor: int) -> str:
  return "of_all" if divisor == 1 else f"of_1_{divisor}"


def _arms(method: str) -> Iterator[tuple[str, tuple[int, bool]]]:
  """{arm: (divisor of the images, whether the method teaches)}."""
  for divisor in DIVISORS:
    yield f"labels_{_place(divisor)}", (divisor, False)
    yield f"{method}_{_place(divisor)}", (divisor, True)
