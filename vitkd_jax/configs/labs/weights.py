r"""How much a method's result depends on its loss weights.

  python -m vitkd_jax.lab --config configs/labs/weights.py:method=nkd \
      --workdir DIR

Arguments: method=NAME of docs/methods.md (or NAME+NAME, of which the last one's
weights change), data=fashion|cifar10|imagenet, teacher=PATH, epochs=N, and of
one arm's training arm=NAME, seed=N.

Each weight that is not zero is multiplied by 1/8 to 8, the others staying as
in configs/labs/methods.py. Students are judged by a part of the training split
that is held out, so that weights may be chosen by this lab.
"""

from collections.abc import Iterator

import ml_collections

from vitkd_jax.configs import common
from vitkd_jax.configs.labs import bases
from vitkd_jax.training import method_sections

FACTORS = {
  "eighth": 1 / 8,
  "quarter": 1 / 4,
  "half": 1 / 2,
  "x2": 2.0,
  "x4": 4.0,
  "x8": 8.0,
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The lab, or with arm=NAME the training of that arm.

  Args:
    arg: what follows the colon of --config, see above.
  """
  args = common.parse_arg(arg, method="vitkd", **bases.ARGUMENTS)
  names = common.method_names(args["method"])
  if not names:
    raise ValueError("expected a method whose weights to change, got baseline")
  arms = dict(_arms(args["data"], names))
  if args["arm"]:
    _, methods = common.choose("arm", args["arm"], arms)
    return bases.training(args, methods, tuning=True)
  return bases.lab(
    args,
    name=f"weights_{args['method']}",
    question=f"How much does {args['method']} depend on its weights?",
    reference="as_is",
    arms={name: dict(says=says) for name, (says, _) in arms.items()},
  )


def _arms(
  data: str, names: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, bases.Methods]]]:
  """{arm: (how it differs, methods)}."""
  settings = bases.settings(data)
  methods = {name: settings[name] for name in names}
  yield "none", ("labels alone", {})
  weights = {
    term: weight
    for term, weight in method_sections.weights(
      names[-1], methods[names[-1]]
    ).items()
    if weight
  }
  listed = ", ".join(f"{term} {weight:g}" for term, weight in weights.items())
  yield "as_is", (listed, methods)
  for term, weight in weights.items():
    for name, factor in FACTORS.items():
      changed = {**weights, term: weight * factor}
      own = {**methods[names[-1]], "weights": changed}
      says = f"{term} {weight * factor:g}"
      yield f"{term}_{name}", (says, {**methods, names[-1]: own})
