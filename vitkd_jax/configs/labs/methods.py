r"""The published methods beside each other, alone and on top of logits.

  python -m vitkd_jax.lab --config configs/labs/methods.py --workdir DIR
  python -m vitkd_jax.lab --config configs/labs/methods.py:part=on_nkd ...

Arguments: data=fashion|cifar10|imagenet, teacher=PATH, epochs=N,
part=alone|on_nkd|on_wttm|nulls|all|core, and of one arm's training arm=NAME,
seed=N.

Steps, data, augmentation and student are the same for all. The nulls are what a
method has to beat: NKD alone, a generator without a mask, a plain regression
through a trained projector, and through one that is never trained, as in two
published repositories.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from vitkd_jax.configs import common
from vitkd_jax.configs.labs import bases

PARTS = ("alone", "on_nkd", "on_wttm", "nulls")
# Those that compare features, and so can stand on top of logits.
FEATURES = (
  "vitkd",
  "regress",
  "spectral",
  "manifold",
  "mgd",
  "srrl",
  "cka",
  "relation",
  "token_similarity",
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The lab, or with arm=NAME the training of that arm.

  Args:
    arg: what follows the colon of --config, see above.
  """
  args = common.parse_arg(arg, part="alone", **bases.ARGUMENTS)
  if args["part"] == "core":
    arms = dict(_core(args["data"]))
  else:
    arms = dict(_arms(args["data"], bases.parts(args["part"], PARTS)))
  if args["arm"]:
    _, _, methods = common.choose("arm", args["arm"], arms)
    return bases.training(args, methods)
  return bases.lab(
    args,
    name="methods" + ("" if args["part"] == "alone" else f"_{args['part']}"),
    question="Which methods help this student, and by how much?",
    reference="none",
    arms={
      name: dict(says=says, against=against)
      for name, (says, against, _) in arms.items()
    },
  )


def _core(data: str) -> Iterator[tuple[str, tuple[str, str, bases.Methods]]]:
  """As `_arms`, with weights that were chosen."""
  settings, factors = bases.settings(data), bases.FACTORS.get(data, {})
  chosen = {
    name: bases.scaled(name, settings[name], factors.get(name, 1.0))
    for name in bases.CORE
  }
  yield "none", ("labels alone", "", {})
  for name, own in chosen.items():
    yield name, (name, "", {name: own})
  both = {name: chosen[name] for name in ("nkd", "vitkd")}
  yield "nkd+vitkd", ("NKD and ViTKD", "", both)


def _arms(
  data: str, parts: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, str, bases.Methods]]]:
  """{arm: (how it differs, the arm to compare with, methods)}."""
  settings = bases.settings(data)
  yield "none", ("labels alone", "", {})
  if "alone" in parts:
    for name, own in settings.items():
      yield name, (name, "", {name: own})
  for base in ("nkd", "wttm"):
    if f"on_{base}" not in parts:
      continue
    if "alone" not in parts:
      yield base, (base, "", {base: settings[base]})
    for name in FEATURES:
      both: Mapping[str, Mapping[str, Any]] = {
        base: settings[base],
        name: settings[name],
      }
      yield f"{base}+{name}", (f"{name} on top of {base}", base, both)
  if "nulls" in parts:
    if not {"alone", "on_nkd"} & set(parts):
      yield "nkd", ("NKD alone", "", {"nkd": settings["nkd"]})
    if "alone" not in parts:
      yield "vitkd", ("ViTKD", "", {"vitkd": settings["vitkd"]})
    unmasked = {**settings["vitkd"], "mask_ratio": 0.0}
    yield "unmasked", ("ViTKD, no token masked", "", {"vitkd": unmasked})
    if "alone" not in parts:
      says = "regression through a trained projector"
      yield "regress", (says, "", {"regress": {}})
    says = "regression through an untrained projector"
    yield "untrained", (says, "", {"regress": dict(projector="random")})
